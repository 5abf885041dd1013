"""Published preprocessing of CUB-200-2011's attributes to concepts, from the official files.

Koh et al., "Concept Bottleneck Models", ICML 2020, as its code does it.
Shapes: N images, A attributes, C classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tenfold.data.files.readers.official_lists import read_lines

NUM_ATTRIBUTES = 312
# fmt: off
KEPT = (
    1, 4, 6, 7, 10, 14, 15, 20, 21, 23, 25, 29, 30, 35, 36, 38, 40, 44, 45, 50, 51, 53, 54, 56, 57, 59, 63, 64, 69, 70,
    72, 75, 80, 84, 90, 91, 93, 99, 101, 106, 110, 111, 116, 117, 119, 125, 126, 131, 132, 134, 145, 149, 151, 152, 153,
    157, 158, 163, 164, 168, 172, 178, 179, 181, 183, 187, 188, 193, 194, 196, 198, 202, 203, 208, 209, 211, 212, 213,
    218, 220, 221, 225, 235, 236, 238, 239, 240, 242, 243, 244, 249, 253, 254, 259, 260, 262, 268, 274, 277, 283, 289,
    292, 293, 294, 298, 299, 304, 305, 308, 309, 310, 311,
)
# fmt: on
"""Attributes that the published concepts are, counted from 0."""
MIN_CLASSES = 10
"""Classes that must have an attribute for the published rule to keep it."""

_SOFT = np.array([[0, 0.5, 0.25, 0], [0, 0.5, 0.75, 1]], dtype=np.float32)
_SPLIT = "ids of validation images, one a line, as in images.txt"


def vote_by_class(present: np.ndarray, certainty: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return what most images of a class show, leaving out negatives of certainty 1, which are not visible.

    Args:
        present: Whether an image was said to show an attribute, ``(N, A)`` in {0, 1}.
        certainty: Certainty of that, ``(N, A)`` in 1..4.
        labels: Class of each image, ``(N,)``.
        num_classes: C.

    Returns:
        int8 ``(C, A)`` in {0, 1}; 1 on a tie, also of 0 to 0.
    """
    members = np.zeros((num_classes, len(labels)), dtype=np.float32)
    members[labels, np.arange(len(labels))] = 1
    positives = members @ (present == 1).astype(np.float32)  # whole numbers, exact in float32
    negatives = members @ ((present == 0) & (certainty > 1)).astype(np.float32)
    return (positives >= negatives).astype(np.int8)


def soft_values(present: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    """Return the probability that the annotators' certainty stands for, float32 ``(N, A)``.

    Certainties 1 to 4 of a positive become 0, 0.5, 0.75 and 1, those of a negative 0, 0.5, 0.25 and 0.
    """
    return _SOFT[present, certainty - 1]


def group_by_name(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the columns of each group, the part of a name before ``::``, in the order in which they first occur."""
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(name.partition("::")[0], []).append(column)
    return {name: tuple(columns) for name, columns in groups.items()}


def split_by_class(rows: np.ndarray, labels: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Draw the same share of each class for validation.

    Args:
        rows: Ascending row numbers to draw from.
        labels: Class of every image, ``(N,)``.
        val_fraction: Share of each class, rounded half to even.
        seed: Seed of the draw.

    Returns:
        Ascending row numbers of the validation images.
    """
    rng = np.random.default_rng(seed)
    drawn = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels[rows]):
        members = rng.permutation(rows[labels[rows] == label])
        drawn.append(members[: round(val_fraction * len(members))])
    return np.sort(np.concatenate(drawn))


def read_val_rows(path: Path, is_train: np.ndarray) -> np.ndarray:
    """Read the validation images from a text file of their ids, one a line, counted from 1 as in ``images.txt``.

    Args:
        path: The file; its order does not matter.
        is_train: Whether the official list has an image for training, bool ``(N,)``.

    Returns:
        Ascending row numbers, counted from 0.

    Raises:
        ValueError: The file is missing or empty, or an id is unknown, repeated or a test image, with its line.
    """
    rows: set[int] = set()
    for number, line in enumerate(read_lines(path, _SPLIT), start=1):
        text = line.strip()
        if not text.isdecimal() or not 1 <= int(text) <= len(is_train):
            raise ValueError(f"{path}, line {number}: id must be in 1..{len(is_train)}, got {text[:60]!r}")
        row = int(text) - 1
        if row in rows:
            raise ValueError(f"{path}, line {number}: image {text} is listed twice")
        if not is_train[row]:
            raise ValueError(f"{path}, line {number}: image {text} is a test image, as train_test_split.txt says")
        rows.add(row)
    if not rows:
        raise ValueError(f"{path} is empty: expected {_SPLIT}")
    return np.array(sorted(rows), dtype=np.int64)
