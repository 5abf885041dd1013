"""Concepts of a digit, fixed by its class, and of a scene, fixed by its objects."""

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
