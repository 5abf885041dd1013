"""Figures of the label-noise record and of the comparison of two models' class activation maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

from tenfold.data.multilabel import MultiLabelSplit
from tenfold.figures.overlays import figure_overlays
from tenfold.methods.large_loss.predictor import MultiLabelPredictor

NUM_EXAMPLES = 6
_FOUND, _MISTAKEN, _INK = "#0b7a75", "#d1603d", "#333333"
_COLOURS = {"reference": "tab:blue", "model": "tab:red", "unboosted": "tab:orange"}


def figure_detection(frame: pd.DataFrame) -> Figure:
    """Plot precision and recall of the detected false negatives, and their counts, from ``detection_curve``."""
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    rates, counts = figure.subplots(1, 2)
    epoch = frame["epoch"]
    for name, colour in (("precision", _FOUND), ("recall", _MISTAKEN)):
        rates.plot(epoch, frame[name], color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
        rates.plot(epoch, frame[f"ever_{name}"], color=colour, linestyle=(0, (4, 2)), linewidth=1.2)
    rates.plot([], [], color=_INK, linestyle=(0, (4, 2)), linewidth=1.2, label="of all treated so far")
    rates.set(ylim=(-0.03, 1.18), xlabel="epoch", title="Precision and recall against the truth")
    rates.yaxis.set_major_locator(MultipleLocator(0.2))
    rates.yaxis.set_major_formatter(PercentFormatter(1.0))
    rates.legend(frameon=False, fontsize=8.5, loc="upper left", ncols=3)

    wrong = frame["num_treated"] - frame["rejected_fn"]
    counts.bar(epoch, frame["rejected_fn"], color=_FOUND, width=0.75, label="false negatives")
    counts.bar(epoch, wrong, bottom=frame["rejected_fn"], color=_MISTAKEN, width=0.75, label="others")
    counts.plot(
        epoch, frame["ever_rejected_fn"], color=_INK, linestyle=(0, (4, 2)), linewidth=1.2, label="found so far"
    )
    total = frame["total_fn"].max() if len(frame) else 0
    counts.axhline(total, color=_INK, linewidth=1, linestyle=":")
    counts.annotate(
        f"all false negatives: {total:,}", (0.01, total), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", fontsize=8.5, color=_INK,
    )  # fmt: skip
    counts.set(xlabel="epoch", title="Treated labels", ylim=(0, 1.32 * max([total, *frame["num_treated"], 1])))
    counts.legend(frameon=False, fontsize=8.5, loc="upper left", ncols=3)
    _tidy(rates, counts)
    return figure


def figure_memorisation(frame: pd.DataFrame) -> Figure:
    """Plot the mean loss of true and of false negatives over the epochs, from ``memorisation_curve``."""
    figure = Figure(figsize=(6.0, 3.7), layout="constrained")
    axes = figure.subplots()
    epoch = frame["epoch"]
    for name, label, colour in (
        ("false_negative_loss", "false negatives", _MISTAKEN),
        ("true_negative_loss", "true negatives", _FOUND),
    ):
        axes.plot(epoch, frame[name], color=colour, marker="o", markersize=4, linewidth=1.8, label=label)
    peak = frame["false_negative_loss"].idxmax() if frame["false_negative_loss"].notna().any() else None
    if peak is not None:
        place = (frame.loc[peak, "epoch"], frame.loc[peak, "false_negative_loss"])
        axes.annotate(
            f"peak {place[1]:.3f} at epoch {place[0]}", place, xytext=(0, 8), textcoords="offset points",
            ha="center", fontsize=8.5, color=_INK,
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="mean loss at the step", title="Memorisation of wrong labels")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=8.5)
    _tidy(axes)
    return figure


def figure_agreement(pairs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Plot rank correlations with their control, highest scores and lowest scores, in three panels.

    Args:
        pairs: Table of ``map_evaluation.measure``.
        names: Names of the model and of the reference.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    _correlations(panels[0], pairs[pairs.positive], names)
    shown = {"reference": names[1], "model": names[0], "unboosted": f"{names[0]} before its boost"}
    shown = {key: name for key, name in shown.items() if f"top_{key}" in pairs}
    for panel, extreme, title in (
        (panels[1], "top", "highest 5 % of scores"),
        (panels[2], "bottom", "lowest 5 % of scores"),
    ):
        _extremes(panel, pairs, extreme, shown)
        panel.set_title(title, fontsize=10)
        panel.grid(axis="y", alpha=0.3)
    figure.suptitle(f"Class activation maps of {names[0]} and {names[1]}", fontsize=11)
    return figure


def figure_examples(
    predictor: MultiLabelPredictor,
    reference: MultiLabelPredictor,
    split: MultiLabelSplit,
    pairs: pd.DataFrame,
    names: Sequence[str],
) -> Figure:
    """Show both models' maps over test images, from least agreement (top) to most.

    Args:
        predictor: The model.
        reference: The model it is compared with.
        split: Test images.
        pairs: Table of ``map_evaluation.measure`` for these models.
        names: Names of the model and of the reference.
    """
    ranked = pairs[pairs.positive].sort_values(["correlation", "row"], ignore_index=True)
    places = np.linspace(0.05, 0.95, NUM_EXAMPLES) * (len(ranked) - 1)
    shown = ranked.iloc[np.unique(places.round().astype(int))] if len(ranked) else pairs.iloc[:1]
    images = split.images.read(shown["row"].to_numpy())
    labels = torch.tensor(shown["label"].to_numpy())
    maps = [each.explain(images, labels)["attributions"].numpy() for each in (reference, predictor)]
    titles = [
        f"{predictor.classes[pair.label]}\nrank corr. {pair.correlation:.2f}\n"
        f"p = {pair.prob_reference:.2f} / {pair.prob_model:.2f}"
        for pair in shown.itertuples()
    ]
    return figure_overlays(images.numpy(), maps, [names[1], names[0]], row_titles=titles)


def _tidy(*panels: Any) -> None:
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.title.set_fontsize(10.5)


def _correlations(panel: Any, positives: pd.DataFrame, names: Sequence[str]) -> None:
    values = [positives[name].dropna().to_numpy() for name in ("correlation", "control")]
    labels = [f"{names[0]}\nand {names[1]}", f"{names[1]}\nand centred Gaussian"]
    for at, of_kind in enumerate(values):
        if len(of_kind) > 1:  # a density needs two points
            panel.violinplot([of_kind], [at], widths=0.8, showmedians=True)
    panel.set_xticks(range(len(labels)), labels, fontsize=8)
    panel.set_ylim(-1.05, 1.05)
    panel.set_title("rank correlation on positive classes", fontsize=10)
    panel.grid(axis="y", alpha=0.3)


def _extremes(panel: Any, pairs: pd.DataFrame, extreme: str, shown: dict[str, str]) -> None:
    width = 0.8 / len(shown)
    for number, (key, name) in enumerate(shown.items()):
        values = [pairs.loc[of_kind, f"{extreme}_{key}"].to_numpy() for of_kind in (pairs.positive, ~pairs.positive)]
        places = [at + (number - (len(shown) - 1) / 2) * width for at in range(2)]
        boxes = panel.boxplot(values, positions=places, widths=0.9 * width, showfliers=False, patch_artist=True)
        for box in boxes["boxes"]:
            box.set(facecolor=_COLOURS[key], alpha=0.6)
        for median in boxes["medians"]:
            median.set(color="black")
        panel.plot([], [], "s", color=_COLOURS[key], alpha=0.6, label=name)
    panel.set_xticks(range(2), ["positive classes", "negative classes"], fontsize=8)
    panel.axhline(0, color="grey", linewidth=0.6)
    panel.legend(fontsize=8)
