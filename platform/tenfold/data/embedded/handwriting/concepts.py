"""Concepts of a digit, a pair and a sum, fixed by the digits, and of a scene, fixed by its objects; their groups."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from tenfold.data.embedded.handwriting.vocabulary import COLOURS, TEXTURES

_ROWS = {
    # Segments of a seven-segment display of the digit (six, seven and nine in their common forms).
    "segment_top": (0, 2, 3, 5, 6, 7, 8, 9),
    "segment_upper_right": (0, 1, 2, 3, 4, 7, 8, 9),
    "segment_lower_right": (0, 1, 3, 4, 5, 6, 7, 8, 9),
    "segment_bottom": (0, 2, 3, 5, 6, 8, 9),
    "segment_lower_left": (0, 2, 6, 8),
    "segment_upper_left": (0, 4, 5, 6, 8, 9),
    "segment_middle": (2, 3, 4, 5, 6, 8, 9),
    "loop": (0, 6, 8, 9),
    "two_loops": (8,),
    "straight": (1, 4, 7),
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "above_four": (5, 6, 7, 8, 9),
}

DIGIT_CONCEPTS = tuple(_ROWS)
"""Concepts of a class: seven segments, closed loops, only straight strokes, parity, primality, size."""

DIGIT_CONCEPT_MATRIX = np.array(
    [[digit in members for members in _ROWS.values()] for digit in range(10)], dtype=np.int8
)
"""int8 ``(10, 13)`` in {0, 1}: row = class, column = ``DIGIT_CONCEPTS``; the ten rows are distinct."""
DIGIT_CONCEPT_MATRIX.flags.writeable = False

DIGIT_CONCEPT_GROUPS = {
    "segments": DIGIT_CONCEPTS[:7],
    "loops": ("loop", "two_loops"),
    "straight": ("straight",),
    "parity": ("even",),
    "prime": ("prime",),
    "size": ("above_four",),
}
"""Kinds of a digit's concepts, each asked as one question."""

PAIR_CONCEPTS = tuple(f"{place}_{name}" for place in ("first", "second") for name in DIGIT_CONCEPTS)
"""Concepts of the left digit, then of the right one."""

PAIR_CONCEPT_MATRIX = np.concatenate(
    [np.repeat(DIGIT_CONCEPT_MATRIX, 10, axis=0), np.tile(DIGIT_CONCEPT_MATRIX, (10, 1))], axis=1
)
"""int8 ``(100, 26)`` in {0, 1}: row = 10 * left + right, column = ``PAIR_CONCEPTS``."""
PAIR_CONCEPT_MATRIX.flags.writeable = False

SCENE_CONCEPTS = (
    *(f"any_{name}" for name in DIGIT_CONCEPTS),
    *(f"colour_{name}" for name in COLOURS),
    *(f"background_{name}" for name in TEXTURES),
    "count_1",
    "count_2",
    "count_3",
    "count_4_or_more",
    "any_large",
    "any_small",
    "any_in_left_half",
    "any_in_right_half",
    "any_in_upper_half",
    "any_in_lower_half",
)
"""Concepts of a scene, in the order of the columns of ``Scenes.concepts``. ``any_*`` and ``colour_*``: at least one
object has it; large: tile of ``LARGE_TILE`` pixels or more; halves: by the centre of the box."""

LARGE_TILE = 26


def _columns(concepts: Sequence[str], prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the columns of the kinds of a digit's concepts, whose names begin with ``prefix``."""
    return {
        f"{prefix}_{group}": tuple(concepts.index(f"{prefix}_{name}") for name in names)
        for group, names in DIGIT_CONCEPT_GROUPS.items()
    }


PAIR_CONCEPT_GROUPS = _columns(PAIR_CONCEPTS, "first") | _columns(PAIR_CONCEPTS, "second")
"""Columns of ``PAIR_CONCEPTS`` by group."""

SCENE_CONCEPT_GROUPS = _columns(SCENE_CONCEPTS, "any") | {
    "colours": tuple(SCENE_CONCEPTS.index(f"colour_{name}") for name in COLOURS),
    "background": tuple(SCENE_CONCEPTS.index(f"background_{name}") for name in TEXTURES),
    "count": tuple(column for column, name in enumerate(SCENE_CONCEPTS) if name.startswith("count_")),
    "size": tuple(SCENE_CONCEPTS.index(f"any_{name}") for name in ("large", "small")),
    "place": tuple(column for column, name in enumerate(SCENE_CONCEPTS) if name.endswith("_half")),
}
"""Columns of ``SCENE_CONCEPTS`` by group; of "background" and of "count" exactly one is true."""


def sum_concepts(operands: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the one-hot concepts of a sum, by operand; ``operands`` are their numbers of classes."""
    return tuple(f"operand_{place}_is_{digit}" for place, num in enumerate(operands, 1) for digit in range(num))


def sum_concept_groups(operands: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the columns of ``sum_concepts`` by group: one for each operand, of which exactly one is true."""
    stops = list(accumulate(operands))
    return {
        f"operand_{place}": tuple(range(stop - num, stop))
        for place, (num, stop) in enumerate(zip(operands, stops, strict=True), 1)
    }


def scene_concepts(
    digits: np.ndarray, colours: np.ndarray, sizes: np.ndarray, boxes: np.ndarray, textures: np.ndarray, canvas: int
) -> np.ndarray:
    """Compute the concepts of scenes from their objects; -1 in ``digits`` marks an empty slot.

    Args:
        digits: Class in each slot, ``(N, K)``.
        colours: Index into ``COLOURS``, ``(N, K)``.
        sizes: Tile size in pixels, ``(N, K)``.
        boxes: ``x0, y0, x1, y1`` in pixels, ``(N, K, 4)``.
        textures: Index into ``TEXTURES``, ``(N,)``.
        canvas: Side of the image in pixels.

    Returns:
        int8 ``(N, len(SCENE_CONCEPTS))`` in {0, 1}.
    """
    present = digits >= 0  # (N, K)
    of_class = DIGIT_CONCEPT_MATRIX[digits].astype(bool) & present[..., None]
    of_colour = (colours[..., None] == np.arange(len(COLOURS))) & present[..., None]
    count = present.sum(axis=1)
    centre_x = boxes[..., 0].astype(np.int32) + boxes[..., 2]  # twice the centre
    centre_y = boxes[..., 1].astype(np.int32) + boxes[..., 3]
    of_place = np.stack(
        [
            present & (sizes >= LARGE_TILE),
            present & (sizes < LARGE_TILE),
            present & (centre_x < canvas),
            present & (centre_x >= canvas),
            present & (centre_y < canvas),
            present & (centre_y >= canvas),
        ],
        axis=-1,
    )
    columns = [
        of_class.any(axis=1),
        of_colour.any(axis=1),
        textures[:, None] == np.arange(len(TEXTURES)),
        np.stack([count == 1, count == 2, count == 3, count >= 4], axis=-1),
        of_place.any(axis=1),
    ]
    return np.concatenate(columns, axis=1).astype(np.int8)
