"""Settings of CALM and of the CAM baseline."""

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
    """Settings of one training, validated on construction. The defaults are those of the released code."""

    mode: Objective = "em"
    """``em`` and ``ml`` train CALM with the latent location; ``cam`` is the baseline: global pooling and softmax."""
    prior: Prior = "softplus"
    """Activation phi of attention scores: ``softplus`` (the paper) or ``relu`` (the released code); unused by cam."""
    detach_normalizer: bool = False
    """Exclude the prior's normaliser from the gradient, as in the released code; for comparison, it ruins the maps."""
    attribution: Mode | None = None
    """Map that explains an image; None: ``jointll`` for em and ml, ``vanilla`` for cam."""
    normalization: Normalization | None = None
    """Normalisation of maps to [0, 1] for the pixel precision; None: ``clipping`` for em and ml, whose maps are
    probabilities, ``minmax`` for cam."""
    thresholds: Spacing | None = None
    """Spacing of the thresholds of the pixel precision; None: ``log`` for em and ml, ``even`` for cam. Precisions under
    different thresholds are not comparable, so the one with minmax and even is always reported too."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser; ``sgd`` has Nesterov momentum 0.9."""
    learning_rate: float = 0.01
    """Learning rate of the backbone, positive; the peak rate of a one-cycle schedule."""
    head_multiplier: float = 10.0
    """Learning rate of the head, as a multiple of the backbone's."""
    weight_decay: float = 1e-4
    """L2 penalty, at least 0."""
    schedule: Literal["step", "one_cycle", "constant"] = "step"
    """``step``: multiplied by ``decay_factor`` at every ``decay_every_epochs``-th epoch; ``one_cycle``: rising to the
    rate within the first third of the steps, then annealed to 0."""
    decay_every_epochs: int = 30
    """Period of the step decay; the first is at the beginning of this epoch, counted from 1."""
    decay_factor: float = 0.1
    """Factor of the step decay, in (0, 1]."""
    image_size: int = 224
    """Side of the network's input images, in pixels."""
    crop_from: int | None = 256
    """Training images are resized to this side before a random crop of ``image_size``; None: no crop."""
    horizontal_flip: bool = True
    """Flip training images horizontally with probability 0.5, if the data set allows it."""
    max_shift: int = 0
    """Maximum random shift of training images in pixels, less than ``image_size``, with reflection padding."""
    holdout_fraction: float = 0.1
    """Share of each class's training images, in (0, 1), held out for validation if there is no validation split."""
    keep: Literal["last", "best"] = "last"
    """Epoch whose weights are saved: the last, as published, or the one with the best validation accuracy."""
    measures: tuple[Measure, ...] | None = None
    """Measures besides accuracy: remove-and-classify, average precision of ``pixels`` and share of the map in the cue
    (``mass``), which need masks, ``boxes``, which needs boxes, and ``cues`` (only in ``jobs/evaluate.py``), which needs
    annotated parts; None: all that the data have annotations for."""
    fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Fractions of pixels erased by remove-and-classify, ascending, each in (0, 1)."""
    erase_to: Literal["zero", "picture_mean"] = "zero"
    """Value of erased pixels: ``zero`` after normalisation, the mean colour of ImageNet; ``picture_mean``, the mean
    colour of the image, for networks without normalisation."""
    iou_thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    """IoU from which a box is correct, ascending, each in (0, 1]."""
    interval: float = 0.001
    """Spacing of the thresholds on maps, in (0, 1)."""
    summary_pictures: int | None = 1000
    """Maximum number of images per split, evenly spaced, whose maps are evaluated at the end of training; None: all, as
    in ``jobs/evaluate.py``. Accuracy always uses all images."""
    baselines: tuple[GradientBaseline, ...] = (
        "input_gradient", "integrated_gradient", "smooth_gradient", "variance_gradient",
    )  # fmt: skip
    """Gradient maps of the same network that ``jobs/evaluate.py`` compares with the network's own map."""
    baseline_pictures: int = 100
    """Maximum number of images per split whose gradient maps are evaluated (some take fifty passes); 0: none."""

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
        self._check_images()
        self._check_maps()

    def _check_images(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.crop_from is not None and self.crop_from < self.image_size:
            raise ValueError(
                f"crop_from must be at least image_size = {self.image_size}, or null for no crop, got {self.crop_from}"
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
                raise ValueError(f"{name} must be unique, got {', '.join(given)}")
        if self.mode == "cam" and not self.map_mode.startswith("vanilla"):
            raise ValueError(
                f"attribution must be a vanilla mode for mode cam, which trains no attention, got {self.attribution!r}"
            )

    @property
    def map_mode(self) -> Mode:
        """Mode of the map that explains an image."""
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
