"""Defaults of every setting, as Hydra groups."""
