"""Multi-label image data: the type that every loader returns.

Label coding of the platform: ``full`` holds the true labels in {0, 1}; ``observed`` the labels shown to the learner in
{-1, 0, +1} = observed negative, unobserved, observed positive.
"""

from dataclasses import dataclass

import numpy as np

from tenfold.types import ImageSource


@dataclass(frozen=True, kw_only=True)
class MultiLabelSplit:
    """One part (train, val or test) of a data set."""

    images: ImageSource
    full: np.ndarray
    """True labels, int8 ``(N, K)`` in {0, 1}; -1 where a partially annotated data set (OpenImages) has none."""
    observed: np.ndarray
    """Labels shown to the learner, int8 ``(N, K)`` in {-1, 0, +1}."""

    def __post_init__(self) -> None:
        expected = (len(self.images), *self.full.shape[1:])
        if self.full.ndim != 2 or self.full.shape != expected or self.observed.shape != expected:
            raise ValueError(
                f"images, full and observed must agree: {len(self.images)} images, "
                f"full {self.full.shape}, observed {self.observed.shape}"
            )


@dataclass(frozen=True, kw_only=True)
class MultiLabelData:
    """A data set ready for training: three splits, class names, and a fingerprint of its content."""

    name: str
    classes: tuple[str, ...]
    train: MultiLabelSplit
    val: MultiLabelSplit
    test: MultiLabelSplit
    image_size: int
    fingerprint: str
    """Hex digest of everything that determines the bytes; enters stage keys and the registry's comparison."""
    mirrorable: bool = False
    """Whether horizontal flips preserve the labels (photographs; not handwriting)."""
