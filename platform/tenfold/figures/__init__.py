"""Figures: training curves, histograms, reliability diagrams, heatmap overlays."""
