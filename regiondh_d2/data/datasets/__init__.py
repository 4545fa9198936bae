"""Datasets that have names: those that are shipped, and scenes that are generated."""
