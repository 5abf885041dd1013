"""Types that all packages share: batches, tasks, preprocessing, and the protocol of image sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

Batch = dict[str, Tensor]
"""Tensors by name, with the example as first axis; always holds ``index (B,)``, the row numbers in the data set."""


class Task(StrEnum):
    """Task of a model; fixes the schema of its inputs and outputs."""

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi_label"
    CONCEPTS = "concepts"
    RETRIEVAL = "retrieval"
    REGRESSION = "regression"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Conversion of a decoded image to the network's input: resize, scale to [0, 1], normalise."""

    image_size: int
    """Height and width of the network's input, in pixels."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Mean of each RGB channel, subtracted after scaling to [0, 1]."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Standard deviation of each RGB channel, divided by after subtracting the mean."""
    resize: Literal["stretch", "crop"] = "stretch"
    """Resizing of images of another size: ``stretch`` ignores the aspect ratio; ``crop`` scales the shorter side to
    ``image_size`` and takes the centre crop."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of the resizing; both kinds with antialiasing."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must be 3 numbers each, std positive, got {self.mean} and {self.std}")
        if self.resize not in ("stretch", "crop") or self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"resize must be stretch or crop and interpolation bilinear or bicubic, "
                f"got {self.resize!r} and {self.interpolation!r}"
            )


class ImageSource(Protocol):
    """Images by row, decoded and resized to one size."""

    in_memory: bool
    """True where reading is a gather (array or memory map); False where it decodes files, so that prefetching pays."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray | Sequence[int]) -> Tensor:
        """Return uint8 ``(B, S, S, 3)`` RGB for the requested rows, in their order."""
        ...

    def read_raw(self, indices: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """Return the same images before any resizing, uint8 ``(H, W, 3)`` RGB each."""
        ...


def load_name(name: str) -> Any:
    """Return the object at ``module:name``; called only with names from the tables of this project."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def check_label_range(labels: np.ndarray | Tensor, num_classes: int, name: str = "labels") -> None:
    """Raise if a label is outside the K classes.

    Args:
        labels: Integers of any shape, at least one.
        num_classes: K.
        name: Name of the labels in the message.

    Raises:
        ValueError: A label is outside 0..K - 1.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} must lie in 0..{num_classes - 1}, got {low}..{high}")
