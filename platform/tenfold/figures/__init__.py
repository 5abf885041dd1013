"""Images of numbers: curves, histograms, reliability diagrams, heat maps."""
