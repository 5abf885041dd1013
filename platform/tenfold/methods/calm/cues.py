"""Cues of CUB: the parts in which two classes differ, and the pixels of these parts.

Parts are numbered 1 head, 2 back, 3 belly, 4 breast, 5 tail, 6 leg, 7 wing. Shapes: A attributes, C classes, V visible
annotated parts of an image, P merged points.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
TRIGGERS: tuple[tuple[str, ...], ...] = (
    ("bill", "crown", "eye", "forehead", "head", "nape", "throat"),
    ("back",),
    ("belly",),
    ("breast",),
    ("tail",),
    ("leg",),
    ("wing",),
)
"""Substrings that assign an attribute to a part, by part."""
CUB_PARTS: tuple[frozenset[int], ...] = (
    frozenset({2, 5, 6, 7, 10, 11, 15}),
    frozenset({1}),
    frozenset({3}),
    frozenset({4}),
    frozenset({14}),
    frozenset({8, 12}),
    frozenset({9, 13}),
)
"""CUB's ids of the annotated points, by part."""
NUM_CUB_POINTS = 15
HEAD = 1
PRESENT_PERCENT = 50.0


def attribute_parts(names: Sequence[str]) -> Tensor:
    """Return the parts of every attribute, int64 0/1 ``(A, 7)``.

    Matched by substring, as published: "has_shape::long-legged-like" counts as leg, and an attribute without a trigger
    (size) has no part.
    """
    rows = [[int(any(trigger in name for trigger in triggers)) for triggers in TRIGGERS] for name in names]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(names), len(TRIGGERS))


def differing_parts(percent: Array, names: Sequence[str], i: int, j: int) -> set[int]:
    """Return the parts in which two classes differ: those of all attributes that only one of them has.

    Args:
        percent: Share of annotators who saw each attribute, ``(C, A)`` in percent; present from 50 on.
        names: A attribute names.
        i: First class, 0..C - 1.
        j: Second class.

    Returns:
        Part numbers, 1 to 7.

    Raises:
        ValueError: If names and percentages don't match, or a class is out of range.
    """
    table = _numpy(percent)
    if table.ndim != 2 or table.shape[1] != len(names):
        raise ValueError(f"percent must be (C, A) with A = {len(names)} names, got {table.shape}")
    if not (0 <= i < len(table) and 0 <= j < len(table)):
        raise ValueError(f"i and j must lie in 0..{len(table) - 1}, got {i} and {j}")
    differ = (table[i] >= PRESENT_PERCENT) != (table[j] >= PRESENT_PERCENT)
    parts = attribute_parts([names[k] for k in differ.nonzero()[0]]).any(0)
    return {int(part) + 1 for part in parts.nonzero()}


def merge_parts(part_ids: Array, part_xy: Array, image_wh: Array | Sequence[float], size: int = 224) -> tuple[Any, Any]:
    """Merge annotated points to those of the seven parts, in an image resized to a square.

    The head is the mean of its visible points; legs and wings stay separate points with the same number. Order: head,
    back, belly, breast, tail, legs, wings.

    Args:
        part_ids: CUB's ids of the visible points, ascending, ``(V,)`` in 1..15.
        part_xy: Coordinates in the original image, ``(V, 2)`` in pixels.
        image_wh: Width and height of the original image.
        size: Side of the square.

    Returns:
        Coordinates int64 ``(P, 2)`` (x, y), truncated after averaging, and part numbers 1..7 ``(P,)``; tensors if
        ``part_xy`` is one.

    Raises:
        ValueError: If shapes don't match, ids are outside 1..15 or not ascending, or a size is not positive.
    """
    ids, points = _numpy(part_ids), _numpy(part_xy).astype(np.float64)
    width, height = (float(side) for side in image_wh)
    if ids.ndim != 1 or points.shape != (len(ids), 2):
        raise ValueError(f"part_ids must be (V,) and part_xy (V, 2), got {ids.shape} and {points.shape}")
    if len(ids) and (ids.min() < 1 or ids.max() > NUM_CUB_POINTS or (np.diff(ids) <= 0).any()):
        raise ValueError(f"part_ids must ascend within 1..{NUM_CUB_POINTS}, got {ids.tolist()}")
    if width <= 0 or height <= 0 or size < 1:
        raise ValueError(f"image_wh must be positive and size at least 1, got {width} x {height} and {size}")
    points = points * size / np.array([width, height])
    merged: list[np.ndarray] = []
    numbers: list[int] = []
    for number, members in enumerate(CUB_PARTS, start=1):
        visible = points[[int(part) in members for part in ids]]
        if number == HEAD and len(visible):
            visible = visible.mean(0, keepdims=True)
        merged.append(visible)
        numbers += [number] * len(visible)
    xy = np.concatenate(merged).astype(np.int64)
    return _like(xy, part_xy), _like(np.array(numbers, dtype=np.int64), part_xy)


def nearest_parts(xy: Array, ids: Array, shape: tuple[int, int]) -> np.ndarray:
    """Return the part with the nearest point for every pixel, ``(H, W)``; the first point wins a tie.

    It depends only on the image: cache it for an image that is in several pairs of classes.

    Args:
        xy: Points ``(P, 2)``, P at least 1.
        ids: Their parts ``(P,)``.
        shape: H and W.

    Raises:
        ValueError: If there is no point or shapes don't match.
    """
    points, numbers = _numpy(xy), _numpy(ids)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or numbers.shape != (len(points),):
        raise ValueError(f"xy must be (P, 2) and ids (P,) with P at least 1, got {points.shape} and {numbers.shape}")
    across = np.square(np.arange(shape[1]) - points[:, :1])  # (P, W)
    down = np.square(np.arange(shape[0]) - points[:, 1:])  # (P, H)
    return numbers[(down[:, :, None] + across[:, None, :]).argmin(0)]


def cue_mask(xy: Array, ids: Array, parts: Collection[int] | Array, foreground: Array) -> Any | None:
    """Return the foreground pixels whose nearest point belongs to a differing part.

    Args:
        xy: Points ``(P, 2)`` of ``merge_parts``.
        ids: Their parts ``(P,)``.
        parts: The differing parts, 1..7.
        foreground: Bool or 0/1 ``(H, W)``, in the coordinates of the points.

    Returns:
        uint8 0/1 ``(H, W)``, a tensor if ``foreground`` is one; None if none of these parts is visible.

    Raises:
        ValueError: If shapes don't match.
    """
    inside = _numpy(foreground)
    if inside.ndim != 2:
        raise ValueError(f"foreground must be (H, W), got {inside.shape}")
    wanted = [int(part) for part in parts]
    if not np.isin(_numpy(ids), wanted).any():
        return None
    nearest = nearest_parts(xy, ids, (inside.shape[0], inside.shape[1]))
    return _like((np.isin(nearest, wanted) & (inside > 0)).astype(np.uint8), foreground)


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _like(result: np.ndarray, given: Array) -> Array:
    return torch.from_numpy(result).to(given.device) if isinstance(given, Tensor) else result
