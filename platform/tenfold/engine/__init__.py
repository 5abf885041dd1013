"""Where a recipe runs: ``Run`` (plain process or Ray Train), the training loop, checkpoints, stages."""
