"""Data sets: readers of real ones, embedded ones, and the label draws and splits made from them."""
