"""Readers of published data sets, one module per format: file names and labels from official lists."""
