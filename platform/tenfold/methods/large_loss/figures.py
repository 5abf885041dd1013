"""The figure of two models' explanations: whether they point to the same places, and with what scores."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

_COLOURS = {"reference": "tab:blue", "model": "tab:red", "unboosted": "tab:orange"}


def figure_agreement(pairs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Three panels: rank correlations with their control, highest scores, lowest scores.

    Args:
        pairs: What ``map_evaluation.measure`` gives.
        names: What the model and the reference are called.
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


def _correlations(panel: Any, positives: pd.DataFrame, names: Sequence[str]) -> None:
    values = [positives[name].dropna().to_numpy() for name in ("correlation", "control")]
    labels = [f"{names[0]}\nand {names[1]}", f"{names[1]}\nand the centre"]
    for at, of_kind in enumerate(values):
        if len(of_kind) > 1:  # a density needs two points
            panel.violinplot([of_kind], [at], widths=0.8, showmedians=True)
    panel.set_xticks(range(len(labels)), labels, fontsize=8)
    panel.set_ylim(-1.05, 1.05)
    panel.set_title("rank correlation where the class is there", fontsize=10)
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
    panel.set_xticks(range(2), ["class is there", "class is not there"], fontsize=8)
    panel.axhline(0, color="grey", linewidth=0.6)
    panel.legend(fontsize=8)
