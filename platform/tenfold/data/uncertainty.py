"""In-distribution image data with out-of-distribution and ambiguous images beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.data.images import ArrayImages, SubsetImages
from tenfold.types import ImageSource


@dataclass(frozen=True, kw_only=True)
class UncertaintyData:
    """Data for training, calibrating (``val``) and evaluating predictive uncertainty."""

    inside: ClassificationData
    """In-distribution data; has all three parts."""
    outside: Mapping[str, ImageSource]
    """Out-of-distribution images, by name of the set."""
    ambiguous: Mapping[str, ImageSource]
    """Ambiguous images, which can be read as more than one class, by name of the set."""
    confusing: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Rows of confusing test images, by name of the set; their scores are compared with those of the other rows."""

    def __post_init__(self) -> None:
        if self.inside.train is None or self.inside.val is None:
            raise ValueError(f"{self.inside.name} needs training and validation parts beside the test part")
        if not self.outside:
            raise ValueError(f"{self.inside.name} needs at least one set of out-of-distribution images")
        for name, images in {**self.outside, **self.ambiguous}.items():
            if not len(images):
                raise ValueError(f"{self.inside.name}: the set {name!r} holds no image")
        num_test = len(self.inside.test)
        for name, rows in self.confusing.items():
            if len(np.unique(rows)) != len(rows) or not 0 < len(rows) < num_test:
                raise ValueError(
                    f"{self.inside.name}: the set {name!r} must hold some of the {num_test} test images, each once, "
                    f"and leave some; got {len(rows)} rows"
                )

    def sets(self) -> dict[str, ImageSource]:
        """Return the images of every set beside the parts, by name."""
        test = self.inside.test.images
        confusing = {name: SubsetImages(test, rows) for name, rows in self.confusing.items()}
        return {**self.outside, **self.ambiguous, **confusing}


def smallest_margin(probs: Tensor, fraction: float) -> np.ndarray:
    """Return the rows with the smallest margin between the two top classes, smallest first, ties by row number.

    Args:
        probs: Class probabilities of one classifier, ``(N, C)``.
        fraction: Share of the rows to select, in (0, 1).

    Returns:
        Row numbers int64, ``fraction * N`` of them, rounded.

    Raises:
        ValueError: Not two axes, fewer than two classes, a value that is not finite, a fraction outside (0, 1), or one
            that selects no row or every row.
    """
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise ValueError(f"probs must be (N, C) with C at least 2, got {tuple(probs.shape)}")
    if not probs.isfinite().all():
        raise ValueError("probs must be finite, got nan or inf")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}")
    count = round(fraction * len(probs))
    if not 0 < count < len(probs):
        raise ValueError(
            f"fraction must select some of {len(probs)} rows, not all, got {fraction}, which selects {count}"
        )
    best = probs.topk(2, dim=1).values  # (N, 2)
    return (best[:, 0] - best[:, 1]).sort(stable=True).indices[:count].cpu().numpy()


def blend_pairs(split: ClassificationSplit, seed: int) -> ArrayImages:
    """Return pixel averages of two images of different classes, readable as either class or neither.

    A seeded permutation pairs the images; each is used at most once, and pairs of one class are skipped.

    Args:
        split: N images.
        seed: Seed of the permutation.

    Returns:
        At most N / 2 blends.

    Raises:
        ValueError: No pair holds images of different classes.
    """
    order = np.random.default_rng(seed).permutation(len(split))
    half = len(split) // 2
    first, second = order[:half], order[half : 2 * half]
    differ = split.labels[first] != split.labels[second]
    if not differ.any():
        raise ValueError(
            f"none of {half} pairs holds images of two classes; the split must hold images of several classes"
        )
    a, b = (split.images.read(rows[differ]).to(torch.int16) for rows in (first, second))
    return ArrayImages(((a + b + 1) // 2).to(torch.uint8).numpy())
