"""Readers of data sets whose objects are marked by boxes or masks."""
