"""Regression networks that return a mean and a log-variance."""
