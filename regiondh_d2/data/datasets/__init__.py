"""The datasets that the package registers, and generated scenes."""
