"""Storing and searching binary codes."""
