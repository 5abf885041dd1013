"""Figures of a classifier's predictive uncertainty."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.metrics.uncertainty import CALIBRATION_BINS


def figure_scores(
    scores: Mapping[str, Tensor], label: str, title: str, threshold: float | None = None, bins: int = 30
) -> Figure:
    """Plot histograms of one score over several sets of inputs.

    Args:
        scores: Scores ``(N,)`` by the name of the set; the first set is in-distribution.
        label: Name of the score, with its unit.
        title: Title of the figure.
        threshold: Drawn as a line if given.
        bins: Number of bins of equal width over the range of all sets.

    Raises:
        ValueError: No sets, or an empty one.
    """
    if not scores or any(not len(values) for values in scores.values()):
        raise ValueError(
            f"scores must hold at least one score per set, got { ({name: len(v) for name, v in scores.items()}) }"
        )
    highest = max(float(values.max()) for values in scores.values())
    lowest = min(float(values.min()) for values in scores.values())
    edges = np.linspace(lowest, max(highest, lowest + 1e-6), bins + 1)
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    panel: Any = figure.subplots()
    for number, (name, values) in enumerate(scores.items()):
        array = values.detach().cpu().double().numpy()
        panel.hist(
            array, edges, weights=np.full(len(array), 100 / len(array)), histtype="step" if number else "stepfilled",
            linewidth=1.4, alpha=0.9 if number else 0.5, label=f"{name}, mean {array.mean():.2f}",
        )  # fmt: skip
    if threshold is not None:
        panel.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    panel.set_xlabel(label)
    panel.set_ylabel("share of the set, %")
    panel.legend(fontsize=8)
    panel.set_title(title, fontsize=10)
    return figure


def figure_reliability(probs: Mapping[str, Tensor], labels: Tensor, title: str) -> Figure:
    """Plot accuracy over confidence in 15 bins, one curve per classifier, above histograms of confidence.

    Args:
        probs: Mean probabilities ``(N, C)`` by the name of the classifier.
        labels: int64 ``(N,)``.
        title: Title of the figure.
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    for name, of_classifier in probs.items():
        best = of_classifier.max(1)
        confidence = best.values.detach().cpu().double().numpy()
        right = (best.indices == labels).cpu().numpy()
        place = np.clip(np.digitize(confidence, edges) - 1, 0, CALIBRATION_BINS - 1)
        counts = np.bincount(place, minlength=CALIBRATION_BINS)
        filled = counts > 0
        accuracy = np.bincount(place, right, CALIBRATION_BINS)[filled] / counts[filled]
        mean_confidence = np.bincount(place, confidence, CALIBRATION_BINS)[filled] / counts[filled]
        top.plot(mean_confidence, accuracy, marker="o", markersize=3, label=name)
        bottom.stairs(100 * counts / counts.sum(), edges)
    top.set_ylabel("accuracy")
    top.legend(fontsize=8)
    top.set_title(title, fontsize=10)
    bottom.set_xlabel("confidence")
    bottom.set_ylabel("% of inputs")
    return figure
