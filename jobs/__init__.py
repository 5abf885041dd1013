"""Entry points: each runs directly (``python jobs/train.py ...``) and through ``ray job submit``."""
