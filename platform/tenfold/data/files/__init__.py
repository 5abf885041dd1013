"""Data sets read from files on disk."""
