"""Helpers without any knowledge of hashing: errors, files, names."""
