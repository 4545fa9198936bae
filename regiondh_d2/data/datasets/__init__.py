""" those that are shipped, and scenes that are generated."""
