"""Training curves, drawn by every method."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def figure_history(history: Sequence[dict[str, float]], names: Sequence[str], title: str) -> Figure:
    """Plot metrics over epochs, one panel per metric."""
    shown = [name for name in names if any(name in row for row in history)]
    figure = Figure(figsize=(4.2 * max(len(shown), 1), 3.2), layout="constrained")
    panels: Any = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for panel, name in zip(panels, shown, strict=False):
        points = [(row["epoch"], row[name]) for row in history if name in row]
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3)
        panel.set_xlabel("epoch")
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure
