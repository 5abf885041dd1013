"""Metrics of regression with predicted uncertainty."""
