"""Readers of real data sets, the embedded data, and the draws made from them."""
