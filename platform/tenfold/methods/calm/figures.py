"""Figures of attribution maps and of their evaluation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.data.localisation import LocalisationSplit
from tenfold.engine.run import Run
from tenfold.figures.overlays import figure_overlays
from tenfold.methods.calm.data import spread_rows
from tenfold.methods.calm.map_metrics import Measured
from tenfold.methods.calm.predictor import CalmPredictor
from tenfold.methods.calm.sources import further_sources, own_source, view
from tenfold.metrics.localisation.maps import Normalization, normalize_score_map, resize_score_map

NUM_EXAMPLES = 8


def log_figures(
    run: Run,
    predictors: Mapping[str, CalmPredictor],
    measured: Mapping[str, Measured],
    split: LocalisationSplit,
    stem: str = "",
) -> None:
    """Log figures of the results, and map overlays; nothing without a recorder.

    Args:
        run: Execution context, whose recorder takes the figures.
        predictors: Models, by display name.
        measured: Results, by display name of the source.
        split: Images to show.
        stem: Prefix of the figures' names.
    """
    if not run.is_main or run.recorder is None:
        return
    if any(each.ratios for each in measured.values()):
        run.log_figure(f"{stem}remove_and_classify.png", figure_remove_and_classify(measured))
    if any(each.pixel_precision for each in measured.values()):
        run.log_figure(f"{stem}pixel_precision.png", figure_pixel_precision(measured))
        run.log_figure(f"{stem}precision_recall.png", figure_precision_recall(measured))
    if any(each.boxes for each in measured.values()):
        run.log_figure(f"{stem}boxes.png", figure_boxes(measured))
    run.log_figure(f"{stem}maps.png", figure_maps(predictors, split))


def figure_remove_and_classify(measured: Mapping[str, Measured]) -> Figure:
    """Plot R_k over the share of erased pixels; 1 by definition where nothing or everything is erased."""
    figure, panel = _panel(5.4, 3.8)
    for name, each in measured.items():
        points = {0.0: 1.0, **{float(percent): ratio for percent, ratio in each.ratios.items()}, 100.0: 1.0}
        panel.plot(*zip(*sorted(points.items()), strict=True), marker="o", markersize=4, label=name)
    panel.set(xlabel="erased pixels, %", ylabel="recognised: highest erased / random erased", ylim=(0, None))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    return figure


def figure_pixel_precision(measured: Mapping[str, Measured]) -> Figure:
    """Plot bars of the pixel average precision; only bars of one colour are comparable."""
    kinds = list(dict.fromkeys(kind for each in measured.values() for kind in each.pixel_precision))
    figure, panel = _panel(1.8 + 1.3 * len(measured), 3.8)
    _bars(panel, measured, {kind.replace("_", ", "): [each.pixel_precision.get(kind) for each in measured.values()]
                            for kind in kinds})  # fmt: skip
    chance = next((each.chance for each in measured.values() if each.chance is not None), None)
    if chance is not None:
        panel.axhline(chance, color="k", linestyle="dotted", linewidth=1, label="chance (even thresholds)")
    panel.set_ylabel("pixel average precision, %")
    panel.legend(fontsize=8)
    return figure


def figure_precision_recall(measured: Mapping[str, Measured]) -> Figure:
    """Plot pixel precision over recall, one panel per normalisation and thresholds."""
    kinds = list(dict.fromkeys(kind for each in measured.values() for kind in each.curves))
    figure = Figure(figsize=(4.2 * len(kinds), 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for name, each in measured.items():
            if kind in each.curves:
                panel.plot(*each.curves[kind], label=name)
        panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        panel.set_title(kind.replace("_", ", "), fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return figure


def figure_boxes(measured: Mapping[str, Measured]) -> Figure:
    """Plot bars of MaxBoxAcc by IoU and of MaxBoxAccV2."""
    kinds = list(dict.fromkeys(kind for each in measured.values() for kind in each.boxes))
    shown = [kind for kind in kinds if not kind.startswith("v2_")]
    figure, panel = _panel(1.8 + 1.5 * len(measured), 3.8)
    names = {kind: "V2, mean" if kind == "v2" else f"IoU {float(kind) / 100:g}" for kind in shown}
    _bars(panel, measured, {names[kind]: [each.boxes.get(kind) for each in measured.values()] for kind in shown})
    panel.set_ylabel("images with a correct box, %")
    panel.legend(fontsize=8)
    return figure


@torch.no_grad()
def figure_maps(
    predictors: Mapping[str, CalmPredictor], split: LocalisationSplit, num_examples: int = NUM_EXAMPLES
) -> Figure:
    """Show images with the object's outline, overlaid by every model's map of the true class.

    Probabilities are divided by the maximum of the image, raw class scores are min-max normalised. A single model also
    shows the other maps of its head.
    """
    rows = spread_rows(len(split), num_examples)
    images, labels = split.images.read(rows), torch.from_numpy(split.labels[rows])
    maps: dict[str, Tensor] = {}
    for name, each in predictors.items():
        size = each.preprocessing.image_size
        if images.shape[1] != size:
            raise ValueError(f"image size of {name} must be {images.shape[1]} as that of the data, got {size}")
        device = next(each.model.parameters()).device
        each.model.eval()
        seen = view(each.model, images.to(device), labels.to(device))
        sources = own_source(each.model, each.config, each.superclasses)
        if len(predictors) == 1:
            sources |= further_sources(each.model, each.config, each.superclasses)
        for mode, source in sources.items():
            kind: Normalization = "minmax" if mode.startswith("vanilla") else "max"
            shown = normalize_score_map(resize_score_map(source(seen), size), kind)
            maps[f"{name}\n{mode}"] = shown.cpu()
    names = next(iter(predictors.values())).classes
    titles = [names[label] for label in labels.tolist()]
    truth = split.read_masks(rows) if split.masks is not None else _inside_boxes(split, rows, images.shape[1])
    return figure_overlays(images, list(maps.values()), list(maps), titles, truth)


def _inside_boxes(split: LocalisationSplit, rows: np.ndarray, size: int) -> np.ndarray | None:
    """Return masks of the boxes, to draw their outlines."""
    if split.boxes is None:
        return None
    masks = np.zeros((len(rows), size, size), dtype=np.uint8)
    for mask, row in zip(masks, rows, strict=True):
        for left, top, right, bottom in split.boxes[row]:
            mask[top : bottom + 1, left : right + 1] = 1
    return masks


def _panel(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _bars(panel: Any, measured: Mapping[str, Measured], groups: Mapping[str, list[float | None]]) -> None:
    """Draw a group of bars per source, a colour per measure."""
    wide = 0.8 / max(len(groups), 1)
    for number, (label, values) in enumerate(groups.items()):
        drawn = [(at + wide * (number - (len(groups) - 1) / 2), value) for at, value in enumerate(values)
                 if value is not None]  # fmt: skip
        bars = panel.bar([at for at, _ in drawn], [value for _, value in drawn], 0.94 * wide, label=label)
        panel.bar_label(bars, fmt="%.1f", fontsize=7)
    panel.set_xticks(range(len(measured)), list(measured), fontsize=8)
    panel.margins(y=0.3)  # room for the legend
