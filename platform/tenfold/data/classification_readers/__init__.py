"""Readers of data sets with one class for each picture: official lists in, file names and labels out."""
