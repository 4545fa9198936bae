"""Drawing: pictures of images, plots of curves, and the report page."""
