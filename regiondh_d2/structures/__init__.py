"""The data that the parts of the package exchange: codes of images and of objects."""
