"""Partial labels: single-positive and partial-label draws, and the split of the training part.

The draws are those of Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021), number for number:
numpy's legacy ``RandomState``, one row after the other, so that results compare with published ones of the same seed.
Shapes: N images, K classes. Coding: full labels in {0, 1}; observed labels +1 positive, 0 unobserved, -1 negative.
"""

import math

import numpy as np


def observe_labels(full: np.ndarray, num_pos: int = 1, num_neg: int = 0, seed: int = 1200) -> np.ndarray:
    """Draw the observed labels of every image and hide the rest; exactly the published draw.

    Args:
        full: True labels ``(N, K)``, any real or boolean dtype, values in {0, 1}.
        num_pos: Positives observed in each image; all of them if it has fewer, or if ``num_pos`` is -1.
        num_neg: Negatives observed in each image, likewise.
        seed: Seed of a fresh ``numpy.random.RandomState``.

    Returns:
        int8 ``(N, K)``: +1 observed positive, 0 unobserved, -1 observed negative.

    Raises:
        ValueError: If ``full`` is not a matrix of 0 and 1, holds one distinct value only, or a count is below -1.
    """
    positive = _positives(full)
    _check_counts(num_pos, num_neg)
    rng = np.random.RandomState(seed)
    observed = np.zeros(positive.shape, dtype=np.int8)
    # The loop over rows is the definition: how far one row moves the generator depends on its number of positives.
    for labels, shown in zip(positive, observed, strict=True):
        candidates = np.flatnonzero(labels)
        rng.shuffle(candidates)
        shown[candidates if num_pos == -1 else candidates[:num_pos]] = 1
        candidates = np.flatnonzero(~labels)
        rng.shuffle(candidates)  # also when none is shown: the published draw consumes these random numbers
        shown[candidates if num_neg == -1 else candidates[:num_neg]] = -1
    return observed


def train_val_split(n: int, val_frac: float = 0.2, seed: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Split a validation part off the training images; exactly the published draw.

    Args:
        n: Number of images.
        val_frac: Share that goes to validation, in (0, 1); the count is rounded half to even.
        seed: Seed of a fresh ``numpy.random.RandomState``.

    Returns:
        Sorted int64 indices of training and validation. The share may round to an empty part when ``n`` is tiny.

    Raises:
        ValueError: If ``n`` is below 2 or ``val_frac`` outside (0, 1).
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if not 0 < val_frac < 1:
        raise ValueError(f"val_frac must lie strictly between 0 and 1, got {val_frac}")
    num_train = n - round(val_frac * n)
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[:num_train]), np.sort(order[num_train:])


def subsample(
    train: np.ndarray, val: np.ndarray, train_fraction: float = 1.0, val_fraction: float = 1.0, seed: int = 999
) -> tuple[np.ndarray, np.ndarray]:
    """Keep a random share of the training and of the validation images; exactly the published draw.

    Args:
        train: Indices of the training images ``(N1,)``.
        val: Indices of the validation images ``(N2,)``.
        train_fraction: Share of ``train`` to keep, in (0, 1].
        val_fraction: Share of ``val`` to keep, in (0, 1].
        seed: Seed of one ``numpy.random.RandomState``, used for training first, then validation.

    Returns:
        The kept indices, in the order in which they were given.

    Raises:
        ValueError: If an index array is not one-dimensional or a share is outside (0, 1].
    """
    parts = ((train, train_fraction), (val, val_fraction))
    for indices, fraction in parts:
        if np.ndim(indices) != 1:
            raise ValueError(f"indices must be one-dimensional, got shape {np.shape(indices)}")
        if not 0 < fraction <= 1:
            raise ValueError(f"the share to keep must lie in (0, 1], got {fraction}")
    rng = np.random.RandomState(seed)
    kept_train, kept_val = (
        np.asarray(indices)[np.sort(rng.permutation(len(indices))[: round(fraction * len(indices))])]
        for indices, fraction in parts
    )
    return kept_train, kept_val


def _positives(full: np.ndarray) -> np.ndarray:
    """Return ``full == 1``, bool ``(N, K)``, after checking the matrix."""
    full = np.asarray(full)
    if full.ndim != 2:
        raise ValueError(f"full labels must be (N, K), got shape {full.shape}")
    positive: np.ndarray = full == 1
    if not np.all(positive | (full == 0)):
        raise ValueError("full labels must be 0 or 1; recode unobserved entries before the draw")
    if full.size == 0 or positive.all() or not positive.any():
        raise ValueError(f"full labels {full.shape} hold fewer than two distinct values: nothing can be learnt")
    return positive


def _check_counts(num_pos: int, num_neg: int) -> None:
    for name, count in (("num_pos", num_pos), ("num_neg", num_neg)):
        if count < -1 or count != math.floor(count):
            raise ValueError(f"{name} must be an integer of at least 0, or -1 for all, got {count}")
