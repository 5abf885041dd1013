"""Readers of published data sets, a file a format: official lists in, file names and labels out."""
