"""Runtime of a recipe: ``Run`` (plain process or Ray Train), training loop, checkpoints, stages."""
