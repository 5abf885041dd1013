"""Data sets that are read from files of the user's own."""
