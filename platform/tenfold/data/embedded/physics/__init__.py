"""Data made by simulation: chaotic trajectories, bodies that attract each other, molecules."""
