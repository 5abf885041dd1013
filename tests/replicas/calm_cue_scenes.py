"""Synthetic images of scikit-learn's digits, with one cue or with objects that differ in known parts.

An image is 32x32 grey, unquantised. ``single``: the class is that of one digit in a cell of a 4x4 grid, next to two
digits with permuted pixels; its cell is the ground truth. ``pairs``: an object of 2x2 digits at a random position, each
slot one of two digits, hence 16 classes; the ground truth of a pair of classes is the slots in which they differ.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

SIZE, CELL, GRID = 32, 8, 4
BACKGROUND = 0.1
"""Mean of the noise, and value of erased pixels."""
NUM_TRAIN_DIGITS = 1300
"""Digits for training images; the other 497 are for test images."""
NUM_TRAIN, NUM_TEST = 4000, 600
SLOTS = ((0, 1), (2, 7), (3, 4), (6, 9))
"""Digits of each slot of the object, selected by bit s of the class."""

Task = Literal["single", "pairs"]


class Scenes(NamedTuple):
    """Images of one split."""

    images: Tensor
    """float32 ``(N, 1, 32, 32)`` in [0, 1]."""
    labels: Tensor
    """int64 ``(N,)``."""
    cues: Tensor
    """uint8 ``(N, P, 32, 32)``: the digit's cell (P = 1), or each slot of the object (P = 4)."""


def num_classes(task: Task) -> int:
    return 10 if task == "single" else 2 ** len(SLOTS)


def make_scenes(task: Task, seed: int) -> tuple[Scenes, Scenes]:
    """Draw training and test images; the split of the digits, positions and noise depend on the seed."""
    rng = np.random.default_rng(seed)
    digits, names = load_digits(return_X_y=True)
    digits = (digits / 16).reshape(-1, CELL, CELL)
    order = rng.permutation(len(digits))
    draw = _single if task == "single" else _objects
    train_digits, test_digits = order[:NUM_TRAIN_DIGITS], order[NUM_TRAIN_DIGITS:]
    return (
        draw(digits[train_digits], names[train_digits], NUM_TRAIN, rng),
        draw(digits[test_digits], names[test_digits], NUM_TEST, rng),
    )


def differing_cue(cues: Tensor, differing: int) -> Tensor:
    """Merge the slots of ``(N, 4, H, W)`` whose bit is set to ``(N, H, W)``."""
    return cues[:, [slot for slot in range(len(SLOTS)) if differing >> slot & 1]].amax(1)


def _single(digits: np.ndarray, names: np.ndarray, num_scenes: int, rng: np.random.Generator) -> Scenes:
    canvases = _canvases(num_scenes, rng)
    cues = np.zeros((num_scenes, 1, SIZE, SIZE), dtype=np.uint8)
    chosen = rng.integers(0, len(digits), (num_scenes, 3))
    for canvas, cue, rows in zip(canvases, cues, chosen, strict=True):
        for at, (row, cell) in enumerate(zip(rows, rng.permutation(GRID**2)[:3], strict=True)):
            patch = digits[row] if at == 0 else rng.permutation(digits[row].ravel()).reshape(CELL, CELL)
            _place(canvas, patch, CELL * (cell // GRID), CELL * (cell % GRID), cue[at] if at == 0 else None)
    return _scenes(canvases, names[chosen[:, 0]], cues)


def _objects(digits: np.ndarray, names: np.ndarray, num_scenes: int, rng: np.random.Generator) -> Scenes:
    canvases = _canvases(num_scenes, rng)
    cues = np.zeros((num_scenes, len(SLOTS), SIZE, SIZE), dtype=np.uint8)
    labels = rng.integers(0, 2 ** len(SLOTS), num_scenes)
    corners = rng.integers(0, SIZE - 2 * CELL + 1, (num_scenes, 2))
    of_digit = [np.flatnonzero(names == digit) for digit in range(10)]
    for canvas, cue, label, (top, left) in zip(canvases, cues, labels, corners, strict=True):
        for slot, choices in enumerate(SLOTS):
            row = rng.choice(of_digit[choices[label >> slot & 1]])
            _place(canvas, digits[row], top + CELL * (slot // 2), left + CELL * (slot % 2), cue[slot])
    return _scenes(canvases, labels, cues)


def _canvases(num_scenes: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(BACKGROUND, 0.1, (num_scenes, SIZE, SIZE)).clip(0, 1)


def _place(canvas: np.ndarray, patch: np.ndarray, top: int, left: int, cue: np.ndarray | None) -> None:
    """Insert the maximum of noise and patch, so that a cell keeps its noise."""
    cell = (slice(top, top + CELL), slice(left, left + CELL))
    canvas[cell] = np.maximum(canvas[cell], patch)
    if cue is not None:
        cue[cell] = 1


def _scenes(canvases: np.ndarray, labels: np.ndarray, cues: np.ndarray) -> Scenes:
    images = torch.from_numpy(canvases[:, None].astype(np.float32))
    return Scenes(images, torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(cues))
