"""Pictures of known classes, beside pictures that a model of these classes should be unsure of."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.data.images import ArrayImages
from tenfold.data.multilabel import ImageSource


@dataclass(frozen=True, kw_only=True)
class UncertaintyData:
    """What predictive uncertainty is trained on, calibrated on (``val``) and measured on."""

    inside: ClassificationData
    """The classes that are learnt; has all three parts."""
    outside: Mapping[str, ImageSource]
    """Name of a set to pictures that show none of the classes."""
    ambiguous: Mapping[str, ImageSource]
    """Name of a set to pictures that can be read as more than one of the classes."""

    def __post_init__(self) -> None:
        if self.inside.train is None or self.inside.val is None:
            raise ValueError(f"{self.inside.name} needs training and validation parts beside the test part")
        if not self.outside:
            raise ValueError(f"{self.inside.name} needs at least one set of pictures that show none of its classes")
        for name, images in {**self.outside, **self.ambiguous}.items():
            if not len(images):
                raise ValueError(f"{self.inside.name}: the set {name!r} holds no picture")


def blend_pairs(split: ClassificationSplit, seed: int) -> ArrayImages:
    """Pixel averages of two pictures of different classes: readable as either, and as neither.

    A seeded permutation pairs the pictures; each is used at most once, pairs of one class are left out.

    Args:
        split: N pictures.
        seed: Of the permutation.

    Returns:
        At most N / 2 blends.

    Raises:
        ValueError: No two pictures of different classes were paired.
    """
    order = np.random.default_rng(seed).permutation(len(split))
    half = len(split) // 2
    first, second = order[:half], order[half : 2 * half]
    differ = split.labels[first] != split.labels[second]
    if not differ.any():
        raise ValueError(
            f"none of {half} pairs of pictures is of two classes: there must be pictures of several classes"
        )
    a, b = (split.images.read(rows[differ]).to(torch.int16) for rows in (first, second))
    return ArrayImages(((a + b + 1) // 2).to(torch.uint8).numpy())
