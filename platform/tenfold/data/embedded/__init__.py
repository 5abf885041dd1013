"""Data that a fresh machine has: drawn, simulated, or shipped inside a package."""
