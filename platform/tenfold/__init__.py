"""Tenfold: vision models that learn from little and say what they do not know."""

__version__ = "0.1.0"
