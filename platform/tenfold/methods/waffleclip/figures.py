"""Figures of an evaluation: repetitions against plain CLIP, modes side by side, gain of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

MANY_CLASSES = 40
"""Most classes in a figure."""
GREY = "0.4"


def figure_repetitions(accuracies: Sequence[float], clip: float, together: float, title: str) -> Figure:
    """Accuracy of each draw of random descriptors, with mean and standard deviation, against plain CLIP.

    Args:
        accuracies: Accuracy of each repetition, in percent.
        clip: Accuracy of the class names alone.
        together: Accuracy of the prompts of all repetitions together.
        title: Title of the figure.
    """
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    panel: Any = figure.subplots()
    values = np.asarray(accuracies)
    panel.axhspan(values.mean() - values.std(), values.mean() + values.std(), color="tab:orange", alpha=0.15, lw=0)
    panel.axhline(values.mean(), color="tab:orange", label=f"mean {values.mean():.2f} ± {values.std():.2f}")
    panel.axhline(together, color="tab:blue", ls=":", label=f"all prompts together {together:.2f}")
    panel.axhline(clip, color=GREY, ls="--", label=f"class names alone {clip:.2f}")
    panel.plot(np.arange(len(values)), values, "o", color="tab:orange", ms=6)
    panel.set_xticks(np.arange(len(values)))
    panel.set_xlabel("repetition")
    panel.set_ylabel("accuracy in %")
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    panel.grid(axis="y", alpha=0.3)
    return figure


def figure_modes(accuracies: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Accuracy of each mode: mean, standard deviation and every repetition.

    Args:
        accuracies: Mode to the accuracies of its repetitions, in percent; ``clip`` is drawn as a line.
        title: Title of the figure.
    """
    shown = [mode for mode in accuracies if mode != "clip"]
    figure = Figure(figsize=(7.4, 1.3 + 0.42 * len(shown)), layout="constrained")
    panel: Any = figure.subplots()
    for at, mode in enumerate(shown):
        values = np.asarray(accuracies[mode])
        panel.errorbar(values.mean(), at, xerr=values.std(), fmt="s", color=f"C{at % 10}", capsize=4, ms=6)
        panel.plot(values, np.full(len(values), at + 0.22), ".", color="0.35", ms=4)
        panel.annotate(
            f"{values.mean():.2f} ± {values.std():.2f}",
            (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=8,
        )  # fmt: skip
    if "clip" in accuracies:
        plain = float(np.mean(accuracies["clip"]))
        panel.axvline(plain, color=GREY, ls="--", label=f"class names alone {plain:.2f}")
        panel.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    panel.set_yticks(np.arange(len(shown)), shown, fontsize=9)
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.set_xlabel("accuracy in %: mean and standard deviation, dots are repetitions")
    panel.set_title(f"{title}\n", fontsize=10)
    panel.grid(axis="x", alpha=0.3)
    return figure


def figure_class_gain(gains: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Gain in accuracy of each class over its name alone; with many classes, those that change most.

    Args:
        gains: Gain of each repetition and class in percentage points, ``(R, C)``; NaN for classes without images.
        classes: Names of the C classes.
        title: Title of the figure.
    """
    gains = np.asarray(gains)
    mean, std = gains.mean(axis=0), gains.std(axis=0)
    order = [at for at in np.argsort(-np.abs(mean), kind="stable") if np.isfinite(mean[at])][:MANY_CLASSES]
    order.sort(key=lambda at: -mean[at])
    figure = Figure(figsize=(6.4, 1.4 + 0.26 * len(order)), layout="constrained")
    panel: Any = figure.subplots()
    colours = ["tab:green" if mean[at] >= 0 else "tab:red" for at in order]
    places = np.arange(len(order))
    panel.barh(places, mean[order], xerr=std[order], color=colours, alpha=0.75, ecolor="0.3", capsize=2)
    panel.axvline(0, color="0.2", lw=0.8)
    panel.set_yticks(places, [classes[at] for at in order], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("points gained over the class name alone")
    left_out = int(np.isfinite(mean).sum()) - len(order)
    panel.set_title(title + (f" ({left_out} less changed classes left out)" if left_out > 0 else ""), fontsize=10)
    panel.grid(axis="x", alpha=0.3)
    return figure
