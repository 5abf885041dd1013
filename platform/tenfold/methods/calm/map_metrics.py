"""Metrics of attribution maps, accumulated over images and workers.

Every metric is a sum over images, so each image is processed once and no map is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.engine.run import Run
from tenfold.methods.calm.settings import Config, Measure
from tenfold.metrics.localisation.boxes import box_fits
from tenfold.metrics.localisation.maps import Normalization, Spacing, normalize_score_map, score_thresholds
from tenfold.metrics.localisation.pixel_ap import IGNORE, PixelAveragePrecision

Kind = tuple[Normalization, Spacing]
SHARED_PRECISION: Kind = ("minmax", "even")
"""Normalisation and thresholds under which the pixel precision of all kinds of maps is comparable."""
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Results of the maps of one source, as plain JSON values."""

    num_pictures: int
    ratios: dict[str, float] = field(default_factory=dict)
    """Remove-and-classify ratio by percent erased; left out where nothing is recognised after random erasing."""
    pixel_precision: dict[str, float] = field(default_factory=dict)
    """Percent, by normalisation and thresholds ("minmax_even")."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """Sampled precision-recall curve of the pixels, by normalisation and thresholds."""
    chance: float | None = None
    """Percentage of object pixels, which is the pixel precision of a constant map."""
    mass: float | None = None
    """Share of a map's positive mass inside the cue, mean over images."""
    boxes: dict[str, float] = field(default_factory=dict)
    """MaxBoxAcc by IoU in percent ("30"), MaxBoxAccV2 by IoU ("v2_30") and its mean ("v2"), in percent."""

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return flat metrics for logging; ``prefix`` is the split."""
        named = {f"R_{percent}": value for percent, value in self.ratios.items()}
        named |= {f"pxap_{kind}": value for kind, value in self.pixel_precision.items()}
        named |= {f"max_box_acc_{level}": value for level, value in self.boxes.items()}
        if self.mass is not None:
            named["mass_in_cue"] = self.mass
        return {f"{prefix}/{name}": value for name, value in named.items()}


class Tally:
    """Sums over the images of one worker, for one source of maps.

    Args:
        config: Fractions, thresholds, normalisation.
        measures: Measures to accumulate; ``cues`` is evaluated elsewhere.
    """

    def __init__(self, config: Config, measures: Sequence[Measure]) -> None:
        self._config = config
        self._measures = measures
        self._levels = config.iou_thresholds
        self._box_thresholds = score_thresholds(config.interval, "even")
        shape = (len(self._levels), len(self._box_thresholds))
        self.num_pictures = torch.zeros((), dtype=torch.int64)
        self.still_right = torch.zeros(2, len(config.fractions), dtype=torch.int64)
        """Number of images recognised after erasing the highest pixels, and random pixels, by fraction."""
        self.mass = torch.zeros((), dtype=torch.float64)
        self.fits = torch.zeros(2, *shape, dtype=torch.int64)
        """Number of images with a correct box, by IoU and threshold: of the largest contour, and of any."""
        self._precision = {
            kind: PixelAveragePrecision(score_thresholds(config.interval, kind[1])) for kind in precision_kinds(config)
        }

    def add(
        self,
        maps: Tensor,
        still_right: Tensor | None,
        masks: Tensor | None,
        boxes: Sequence[np.ndarray] | None,
    ) -> None:
        """Add a batch of images.

        Args:
            maps: Raw maps ``(B, S, S)``.
            still_right: Bool ``(2, K, B)``: recognised after erasing the highest, and after erasing random pixels.
            masks: uint8 ``(B, S, S)``.
            boxes: Boxes ``(n, 4)`` of every image.
        """
        self.num_pictures += len(maps)
        if still_right is not None:
            self.still_right += still_right.sum(2).cpu()
        if masks is not None:
            masks = masks.to(maps.device)
            if "pixels" in self._measures:
                for (normalization, _), metric in self._precision.items():
                    metric.update(normalize_score_map(maps, normalization), masks)
            if "mass" in self._measures:
                self.mass += mass_in_cue(maps, masks).double().sum().cpu()
        if boxes is not None and "boxes" in self._measures:
            # 255 levels cannot resolve probabilities of single locations, so every map is min-max normalised.
            stretched = normalize_score_map(maps, "minmax")
            for sums, multi in zip(self.fits, (False, True), strict=True):
                fits = torch.from_numpy(box_fits(stretched, boxes, self._box_thresholds, multi))
                for row, level in zip(sums, self._levels, strict=True):
                    row += (fits >= level).sum(0)

    def result(self, run: Run, *, with_truth: tuple[bool, bool]) -> Measured:
        """Reduce the sums of all workers to percentages and ratios.

        Args:
            run: Execution context.
            with_truth: Whether there were masks, and boxes.
        """
        count = int(run.all_reduce(self.num_pictures))
        found: dict[str, Any] = {}
        if "remove_and_classify" in self._measures:
            top, random = run.all_reduce(self.still_right).tolist()
            found["ratios"] = {
                f"{100 * fraction:g}": after_top / after_random
                for fraction, after_top, after_random in zip(self._config.fractions, top, random, strict=True)
                if after_random
            }
        if with_truth[0] and "mass" in self._measures:
            found["mass"] = float(run.all_reduce(self.mass)) / count
        if with_truth[0] and "pixels" in self._measures:
            found |= self._pixels(run)
        if with_truth[1] and "boxes" in self._measures:
            found["boxes"] = self._boxes(run, count)
        return Measured(num_pictures=count, **found)

    def _pixels(self, run: Run) -> dict[str, Any]:
        precision, curves, chance = {}, {}, 0.0
        for kind, metric in self._precision.items():
            metric.counts = run.all_reduce(metric.counts)
            name = "_".join(kind)
            precision[name], curves[name] = metric.compute(), precision_recall(metric)
            if kind == SHARED_PRECISION:  # nothing falls below its first threshold
                background, foreground = metric.counts.sum(1).tolist()
                chance = 100 * foreground / (background + foreground)
        return {"pixel_precision": precision, "curves": curves, "chance": chance}

    def _boxes(self, run: Run, count: int) -> dict[str, float]:
        shares = 100 * run.all_reduce(self.fits).amax(2).double() / count  # (2, I)
        levels = [f"{100 * level:g}" for level in self._levels]
        largest = {level: float(share) for level, share in zip(levels, shares[0], strict=True)}
        every = {f"v2_{level}": float(share) for level, share in zip(levels, shares[1], strict=True)}
        return {**largest, **every, "v2": float(shares[1].mean())}


def precision_kinds(config: Config) -> tuple[Kind, ...]:
    """Return the normalisations and thresholds of the pixel precision: that of the settings, and the shared one."""
    return tuple(dict.fromkeys((config.pixel_precision, SHARED_PRECISION)))


def mass_in_cue(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the share of each map's positive mass on the object, ``(B,)``; 0 for a map without positive mass.

    Args:
        maps: ``(B, H, W)``.
        masks: 1 object, 0 background, 255 ignored; the same shape.
    """
    positive = maps.clamp(min=0) * (masks != IGNORE)
    inside, total = (positive * (masks == 1)).sum((1, 2)), positive.sum((1, 2))
    return inside / total.clamp(min=torch.finfo(total.dtype).tiny)


def precision_recall(metric: PixelAveragePrecision, points: int = CURVE_POINTS) -> list[list[float]]:
    """Return recall and precision from the highest threshold down, at most ``points`` of each."""
    false, true = metric.counts.flip(1).cumsum(1).double()
    there = (true + false > 0).nonzero().flatten()
    chosen = there[torch.linspace(0, len(there) - 1, min(points, len(there))).round().long()]
    recall, precision = true[chosen] / true[-1], true[chosen] / (true + false)[chosen]
    return [recall.tolist(), precision.tolist()]
