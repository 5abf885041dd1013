"""Data sets that need no download: synthetic, simulated, or shipped inside a package."""
