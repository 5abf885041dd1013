"""Readers of the published multi-label data sets: a folder in, lists of pictures and their labels out."""
