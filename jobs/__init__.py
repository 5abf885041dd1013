"""Entry points, run directly (``python jobs/train.py ...``) or through ``ray job submit``."""
