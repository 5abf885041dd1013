"""Settings of CALM, and of the class activation maps that it is compared with."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tenfold.methods.calm.attribution import Mode
from tenfold.methods.calm.distributions import Prior
from tenfold.methods.calm.head import Objective
from tenfold.metrics.localisation.maps import Normalization, Spacing

Measure = Literal["remove_and_classify", "pixels", "mass", "boxes", "cues"]
GradientBaseline = Literal["input_gradient", "integrated_gradient", "smooth_gradient", "variance_gradient"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training; a Config that exists is a valid one. The defaults are those of the released code."""

    mode: Objective = "em"
    """``em`` and ``ml`` train the location of the cue with the network; ``cam`` is the baseline: pooling, softmax."""
    prior: Prior = "softplus"
    """What makes attention scores positive: ``softplus`` (the paper) or ``relu`` (the released code). Unused by cam."""
    detach_normalizer: bool = False
    """Hold the prior's sum constant in the gradient, as the released code does; for comparison, it ruins the maps."""
    attribution: Mode | None = None
    """Which map explains a picture; None: ``jointll`` for em and ml, ``vanilla`` for cam."""
    normalization: Normalization | None = None
    """How maps become values in [0, 1] for the pixel precision; None: ``clipping`` for em and ml, whose maps are
    probabilities, ``minmax`` for cam."""
    thresholds: Spacing | None = None
    """Where the pixel precision is read; None: ``log`` for em and ml, ``even`` for cam. Precisions of different
    thresholds are not comparable, so that of minmax and even is always measured beside."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """``sgd`` has Nesterov momentum 0.9."""
    learning_rate: float = 0.01
    """Of the backbone, positive; the peak where the schedule has one."""
    head_multiplier: float = 10.0
    """Learning rate of the head, as a multiple of the backbone's."""
    weight_decay: float = 1e-4
    """At least 0."""
    schedule: Literal["step", "one_cycle", "constant"] = "step"
    """``step``: times ``decay_factor`` from every ``decay_every_epochs``-th epoch on; ``one_cycle``: up to the rate
    within the first third of the steps, then down to nothing."""
    decay_every_epochs: int = 30
    """The first decay is at the begin of this epoch, counted from 1."""
    decay_factor: float = 0.1
    """In (0, 1]."""
    image_size: int = 224
    """Side of the pictures that the network sees, in pixels."""
    crop_from: int | None = 256
    """Training pictures are stretched to this side and a random square of ``image_size`` is cut out; None: they are
    seen whole."""
    horizontal_flip: bool = True
    """Mirror every second training picture, where the data allow it."""
    max_shift: int = 0
    """Pixels, less than ``image_size``, by which a training picture may be moved; it goes on as if reflected."""
    holdout_fraction: float = 0.1
    """Share of each class's training pictures, in (0, 1), that validates where the data have no validation part."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights: the last, as published, or those with the best validation accuracy."""
    measures: tuple[Measure, ...] | None = None
    """What is measured beside accuracy: remove-and-classify, average precision of ``pixels`` and share of the map in
    the cue (``mass``) where there are masks, ``boxes`` where there are boxes, ``cues`` (in ``jobs/evaluate.py`` alone)
    where parts are annotated; None: all that the data have the truth for."""
    fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Shares of the pixels that remove-and-classify erases, ascending, each in (0, 1)."""
    erase_to: Literal["zero", "picture_mean"] = "zero"
    """Erased pixels become 0 after normalisation, the mean colour of ImageNet; ``picture_mean``: the mean colour of
    the picture itself, for networks that don't normalise."""
    iou_thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    """What counts as a box that fits, ascending, each in (0, 1]."""
    interval: float = 0.001
    """Distance of thresholds on maps, in (0, 1)."""
    summary_pictures: int | None = 1000
    """Most pictures of a split whose maps are measured at the end of a training, spread over the split; None: all, as
    ``jobs/evaluate.py`` does. Accuracy is always of all."""
    baselines: tuple[GradientBaseline, ...] = (
        "input_gradient", "integrated_gradient", "smooth_gradient", "variance_gradient",
    )  # fmt: skip
    """Gradient maps of the same network that ``jobs/evaluate.py`` measures beside the network's own."""
    baseline_pictures: int = 100
    """Most pictures of a split whose gradient maps are measured (some take fifty passes); 0: none."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_multiplier"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.decay_every_epochs < 1:
            raise ValueError(f"decay_every_epochs must be at least 1, got {self.decay_every_epochs}")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor must lie in (0, 1], got {self.decay_factor}")
        for name in ("holdout_fraction", "interval"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        self._check_pictures()
        self._check_maps()

    def _check_pictures(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.crop_from is not None and self.crop_from < self.image_size:
            raise ValueError(
                f"crop_from must be at least image_size = {self.image_size}, or null to see pictures whole, "
                f"got {self.crop_from}"
            )
        if not 0 <= self.max_shift < self.image_size:
            raise ValueError(f"max_shift must lie in [0, image_size = {self.image_size}), got {self.max_shift}")
        if self.summary_pictures is not None and self.summary_pictures < 1:
            raise ValueError(f"summary_pictures must be at least 1, or null for all, got {self.summary_pictures}")
        if self.baseline_pictures < 0:
            raise ValueError(f"baseline_pictures must be at least 0, got {self.baseline_pictures}")

    def _check_maps(self) -> None:
        _check_ascending("fractions", self.fractions, upper_end=False)
        _check_ascending("iou_thresholds", self.iou_thresholds, upper_end=True)
        for name in ("measures", "baselines"):
            given = getattr(self, name) or ()
            if len(set(given)) < len(given):
                raise ValueError(f"{name} must name each once, got {', '.join(given)}")
        if self.mode == "cam" and not self.map_mode.startswith("vanilla"):
            raise ValueError(
                f"attribution must be a vanilla mode where mode is cam, which trains no attention, "
                f"got {self.attribution!r}"
            )

    @property
    def map_mode(self) -> Mode:
        """The map that explains a picture."""
        return self.attribution or ("vanilla" if self.mode == "cam" else "jointll")

    @property
    def pixel_precision(self) -> tuple[Normalization, Spacing]:
        """Normalisation and thresholds of the pixel precision."""
        raw = self.map_mode.startswith("vanilla")
        return self.normalization or ("minmax" if raw else "clipping"), self.thresholds or ("even" if raw else "log")


def _check_ascending(name: str, values: tuple[float, ...], *, upper_end: bool) -> None:
    within = all(value > 0 and (value <= 1 if upper_end else value < 1) for value in values)
    if not values or not within or any(after <= before for before, after in pairwise(values)):
        raise ValueError(f"{name} must ascend within (0, 1{']' if upper_end else ')'}, got {list(values)}")
