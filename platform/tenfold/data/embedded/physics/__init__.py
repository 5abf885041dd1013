"""Simulated data sets: chaotic trajectories, gravitating bodies, molecules."""
