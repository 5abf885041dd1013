"""Layout of scenes: random positions with little overlap, else cells of a grid."""

import numpy as np

from tenfold.data.embedded.handwriting.stream import Stream

_ATTEMPTS = 24
_OVERLAP = 12
"""Two boxes may overlap by at most 1/12 of the smaller one's area."""


def grid_side(max_objects: int) -> int:
    """Return the side, in cells, of the smallest square grid that holds the objects."""
    return next(side for side in range(1, max_objects + 1) if side * side >= max_objects)


def tile_range(canvas: int, max_objects: int) -> tuple[int, int]:
    """Return the smallest and largest tile in pixels.

    The largest fits a cell of the grid; the grid has at least two cells a side, so a single digit does not fill the
    image.
    """
    largest = canvas // max(2, grid_side(max_objects))
    return largest * 5 // 8 + 1, largest


def place_objects(stream: Stream, present: np.ndarray, boxes: np.ndarray, canvas: int) -> np.ndarray:
    """Place the objects of many scenes at once.

    Each object in turn tries random positions on the canvas; a scene in which one of them finds none is laid out on the
    grid, one random cell each, where boxes cannot overlap.

    Args:
        stream: Random integers; the number of draws does not depend on the number of objects.
        present: Slots that hold an object, bool ``(N, K)``.
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
    """Return bool ``(N,)``: True where a box overlaps too much with a box placed before."""
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
