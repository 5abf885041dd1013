"""Figures of a classifier's predictions: images with labels, and a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

_COLOURS = {1: "tab:green", 0: "tab:red", -1: "tab:blue"}
"""Colour of a predicted label by its true value."""


def figure_predictions(
    images: np.ndarray, probs: np.ndarray, truth: np.ndarray, classes: Sequence[str], num_columns: int = 6
) -> Figure:
    """Show images with their predicted labels: green if right, red if wrong, blue if unknown, grey if missed.

    Args:
        images: uint8 ``(P, S, S, 3)``.
        probs: ``(P, K)`` in [0, 1]; a label is predicted at 0.5 and above.
        truth: ``(P, K)`` in {0, 1}, -1 where unknown.
        classes: K names.
    """
    num_rows = -(-len(images) // num_columns)
    figure = Figure(figsize=(2.1 * num_columns, 2.75 * num_rows + 0.3))
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.2 / num_rows, bottom=0.2 / num_rows, hspace=0.38)
    panels = np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, image, prob, true in zip(panels, images, probs, truth, strict=False):
        panel.imshow(image)
        given = np.flatnonzero(prob >= 0.5).tolist()
        missed = np.flatnonzero((prob < 0.5) & (true == 1)).tolist()
        words = [(f"{classes[k]} {prob[k]:.2f}", _COLOURS[int(true[k])]) for k in given]
        words += [(f"({classes[k]} {prob[k]:.2f})", "tab:gray") for k in missed]
        for at, (word, colour) in enumerate(words[:6]):
            panel.text(
                0.5 * (at % 2) + 0.02, -0.06 - 0.11 * (at // 2), word,
                transform=panel.transAxes, color=colour, fontsize=7.5, va="top",
            )  # fmt: skip
        if not words:
            panel.text(0.02, -0.06, "no label", transform=panel.transAxes, color="tab:gray", fontsize=7.5, va="top")
    legend = "green: true positive · red: false positive · blue: predicted, unknown · (grey): missed"
    figure.suptitle(legend, fontsize=9)
    return figure


def figure_confusion(logits: Tensor, labels: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Plot the confusion matrix in percent of each true class: true classes in rows, predicted ones in columns.

    Args:
        logits: ``(N, K)``.
        labels: int64 ``(N,)``.
        classes: K names, shown as tick labels if there are at most 40.
        title: Title of the figure.
    """
    matrix = 100 * multiclass_confusion_matrix(logits, labels, len(classes), normalize="true").numpy()
    named = len(classes) <= 40
    side = 2.5 + 0.32 * min(len(classes), 40)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    panel: Any = figure.subplots()
    image = panel.imshow(matrix, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=panel, shrink=0.8, label="%")
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    if named:
        places = np.arange(len(classes))
        panel.set_xticks(places, classes, rotation=60, ha="right", fontsize=8)
        panel.set_yticks(places, classes, fontsize=8)
    if len(classes) <= 12:
        for row, column in np.ndindex(*matrix.shape):
            value = matrix[row, column]
            if value >= 1:
                panel.text(
                    column, row, f"{value:.0f}",
                    ha="center", va="center", fontsize=7, color="white" if value > 60 else "black",
                )  # fmt: skip
    panel.set_title(title, fontsize=10)
    return figure
