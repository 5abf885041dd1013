"""Images of known classes, beside images that a model of these classes should be unsure of."""

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
    """What predictive uncertainty is trained on, calibrated on (``val``) and measured on."""

    inside: ClassificationData
    """The classes that are learnt; has all three parts."""
    outside: Mapping[str, ImageSource]
    """Name of a set to images that show none of the classes."""
    ambiguous: Mapping[str, ImageSource]
    """Name of a set to images that can be read as more than one of the classes."""
    confusing: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a set to the rows of its images in the test part; their scores are held against those of the rest."""

    def __post_init__(self) -> None:
        if self.inside.train is None or self.inside.val is None:
            raise ValueError(f"{self.inside.name} needs training and validation parts beside the test part")
        if not self.outside:
            raise ValueError(f"{self.inside.name} needs at least one set of images that show none of its classes")
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
        """The images of every set beside the parts, by its name."""
        test = self.inside.test.images
        confusing = {name: SubsetImages(test, rows) for name, rows in self.confusing.items()}
        return {**self.outside, **self.ambiguous, **confusing}


def smallest_margin(probs: Tensor, fraction: float) -> np.ndarray:
    """Rows whose two most probable classes are closest, closest first; where margins are equal, lower rows first.

    Args:
        probs: Class probabilities of one classifier, ``(N, C)``.
        fraction: Share of the rows to choose, in (0, 1).

    Returns:
        Row numbers int64, ``fraction * N`` of them, rounded.

    Raises:
        ValueError: Not two axes, fewer than two classes, a value that is not finite, a fraction outside (0, 1), or one
            that chooses no row or every row.
    """
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise ValueError(f"probs must be (N, C) with C at least 2, got {tuple(probs.shape)}")
    if not probs.isfinite().all():
        raise ValueError("probs must be finite, got nan or inf")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}")
    count = round(fraction * len(probs))
    if not 0 < count < len(probs):
        raise ValueError(f"a fraction of {fraction} of {len(probs)} rows chooses {count}: some must be chosen, not all")
    best = probs.topk(2, dim=1).values  # (N, 2)
    return (best[:, 0] - best[:, 1]).sort(stable=True).indices[:count].cpu().numpy()


def blend_pairs(split: ClassificationSplit, seed: int) -> ArrayImages:
    """Pixel averages of two images of different classes: readable as either, and as neither.

    A seeded permutation pairs the images; each is used at most once, pairs of one class are left out.

    Args:
        split: N images.
        seed: Of the permutation.

    Returns:
        At most N / 2 blends.

    Raises:
        ValueError: No two images of different classes were paired.
    """
    order = np.random.default_rng(seed).permutation(len(split))
    half = len(split) // 2
    first, second = order[:half], order[half : 2 * half]
    differ = split.labels[first] != split.labels[second]
    if not differ.any():
        raise ValueError(f"none of {half} pairs of images is of two classes: there must be images of several classes")
    a, b = (split.images.read(rows[differ]).to(torch.int16) for rows in (first, second))
    return ArrayImages(((a + b + 1) // 2).to(torch.uint8).numpy())
