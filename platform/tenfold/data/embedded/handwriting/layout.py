"""Where the objects of a scene go: a random place with little overlap, else a cell of a grid."""

import numpy as np

from tenfold.data.embedded.handwriting.stream import Stream

_ATTEMPTS = 24
_OVERLAP = 12
"""Boxes may share at most 1/12 of the smaller one's area."""


def grid_side(max_objects: int) -> int:
    """Cells along the side of the smallest square grid with room for the objects."""
    return next(side for side in range(1, max_objects + 1) if side * side >= max_objects)


def tile_range(canvas: int, max_objects: int) -> tuple[int, int]:
    """Smallest and largest tile in pixels: the largest fits a cell of the grid, and two cells at least are assumed so
    that a single digit does not fill the image."""
    largest = canvas // max(2, grid_side(max_objects))
    return largest * 5 // 8 + 1, largest


def place_objects(stream: Stream, present: np.ndarray, boxes: np.ndarray, canvas: int) -> np.ndarray:
    """Positions of the objects of many scenes at once.

    Each object in turn tries random places inside the canvas; a scene in which one finds none is laid out on the grid,
    a random cell each, where boxes cannot meet.

    Args:
        stream: Drawn from alike however many objects there are.
        present: Which slots hold an object, bool ``(N, K)``.
        boxes: Box of the ink inside its tile, ``x0, y0, x1, y1``, ``(N, K, 4)``; no larger than a cell of the grid.
        canvas: Side of the canvas in pixels.

    Returns:
        Upper left corner of each tile, int64 ``(N, K, 2)``; any value in an empty slot.
    """
    num_scenes, num_slots = present.shape
    extent = boxes[..., 2:] - boxes[..., :2]  # (N, K, 2)
    corners = np.zeros((num_scenes, num_slots, 2), dtype=np.int64)  # of the ink
    stuck = np.zeros(num_scenes, dtype=bool)
    for slot in range(num_slots):
        waiting = present[:, slot].copy()
        for _ in range(_ATTEMPTS):
            place = stream.integers(np.ones(2, dtype=np.int64), canvas - extent[:, slot], (num_scenes, 2))
            free = waiting & ~_too_close(place, extent[:, slot], corners[:, :slot], extent[:, :slot], present[:, :slot])
            corners[free, slot] = place[free]
            waiting &= ~free
        stuck |= waiting
    grid = _grid_places(stream, extent, canvas)
    return np.where(stuck[:, None, None], grid, corners) - boxes[..., :2]


def _too_close(
    place: np.ndarray, extent: np.ndarray, others: np.ndarray, other_extents: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """Whether a box shares too much with any box placed before, bool ``(N,)``."""
    low = np.maximum(place[:, None], others)
    high = np.minimum((place + extent)[:, None], others + other_extents)
    shared = np.prod(np.maximum(high - low, 0), axis=-1)  # (N, slots before)
    smaller = np.minimum(np.prod(extent, axis=-1)[:, None], np.prod(other_extents, axis=-1))
    return (present & (shared * _OVERLAP > smaller)).any(axis=1)


def _grid_places(stream: Stream, extent: np.ndarray, canvas: int) -> np.ndarray:
    num_scenes, num_slots = extent.shape[:2]
    side = max(2, grid_side(num_slots))
    cell = canvas // side
    cells = stream.orders(num_scenes, side * side)[:, :num_slots]
    origin = np.stack([cells % side, cells // side], axis=-1) * cell
    return origin + stream.integers(0, cell + 1 - extent, extent.shape)
