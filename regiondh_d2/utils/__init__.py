"""What every floor above uses and what knows nothing of hashing: errors, files, names."""
