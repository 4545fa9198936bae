"""What flows between the parts of the package: codes of images and of objects."""
