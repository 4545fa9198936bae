"""Datasets that have a name here: the shipped ones, and generated scenes."""
