"""Scenes of handwritten digits: random specification, rendering and ground truth."""

import numpy as np

from tenfold.data.embedded.handwriting.captions import scene_captions
from tenfold.data.embedded.handwriting.concepts import scene_concepts
from tenfold.data.embedded.handwriting.config import HandwritingConfig, Split
from tenfold.data.embedded.handwriting.layout import place_objects, tile_range
from tenfold.data.embedded.handwriting.raster import resize
from tenfold.data.embedded.handwriting.splits import CANVAS
from tenfold.data.embedded.handwriting.stream import Stream
from tenfold.data.embedded.handwriting.textures import draw_textures, render_textures
from tenfold.data.embedded.handwriting.vocabulary import COLOUR_RGB, PARTNERS

MASK_ALPHA = 64
"""Smallest ink coverage (of 255) of a pixel of an object's mask."""
_PALETTE = np.array(list(COLOUR_RGB.values()), dtype=np.int32)
_PARTNERS = np.array(PARTNERS)

Arrays = dict[str, np.ndarray]


def draw_scenes(
    config: HandwritingConfig, split: Split, rows: np.ndarray, source_images: np.ndarray, stream: Stream, num: int
) -> Arrays:
    """Draw the specification of ``num`` scenes: the fields ``counts``, ``digits`` and ``sources`` .. ``lattices``.

    Args:
        config: Settings of the data.
        split: Split, which determines the co-occurrence.
        rows: Allowed source digits by class, ``(10, n)``.
        source_images: All source digits, uint8 ``(5000, 28, 28)``.
        stream: Random integers.
        num: Number of scenes.
    """
    slots = config.max_digits
    counts = stream.integers(1, slots + 1, (num,))
    present = np.arange(slots) < counts[:, None]  # (N, K)
    digits = draw_classes(stream, num, slots, config.strength(split), config.distinct)
    sources = rows[digits, stream.integers(0, rows.shape[1], (num, slots))]
    smallest, largest = tile_range(CANVAS, slots)
    sizes = stream.integers(smallest, largest + 1, (num, slots))
    ink = _tight_boxes(_tiles(source_images, sources, sizes) > 0)
    offsets = place_objects(stream, present, ink, CANVAS)
    colours = stream.integers(0, len(_PALETTE), (num, slots))

    def of_objects(values: np.ndarray, dtype: type) -> np.ndarray:
        mask = present if values.ndim == 2 else present[..., None]
        return np.where(mask, values, -1).astype(dtype)

    return {
        "counts": counts.astype(np.uint8),
        "digits": of_objects(digits, np.int8),
        "colours": of_objects(colours, np.int8),
        "sources": of_objects(sources, np.int16),
        "sizes": of_objects(sizes, np.int8),
        "offsets": of_objects(offsets, np.int16),
        **draw_textures(stream, num),
    }


def draw_classes(stream: Stream, num: int, slots: int, strength: float, distinct: bool) -> np.ndarray:
    """Draw the classes of the slots of each scene, int64 ``(num, slots)``.

    Slots are filled from a random order of the ten classes. In every second slot, with probability ``strength``, the
    partner of the previous digit is moved to the front if it has not been used: of two digits, the second is the
    partner of the first with probability ``strength + (1 - strength) / 9``.
    """
    if not distinct:
        return stream.integers(0, 10, (num, slots))
    order = stream.orders(num, 10)
    tilted = stream.integers(0, 1 << 30, (num, 10)) < round(strength * (1 << 30))
    for slot in range(1, slots, 2):
        partner = _PARTNERS[order[:, slot - 1]]
        place = np.argmax(order == partner[:, None], axis=1)
        scenes = np.flatnonzero(tilted[:, slot] & (place > slot))
        order[scenes, place[scenes]] = order[scenes, slot]
        order[scenes, slot] = partner[scenes]
    return order[:, :slots]


def render_scenes(spec: Arrays, source_images: np.ndarray) -> Arrays:
    """Render scenes and compute their ground truth.

    Args:
        spec: Fields that ``draw_scenes`` returns; a slot whose digit is -1 is not rendered.
        source_images: All source digits, uint8 ``(5000, 28, 28)``.

    Returns:
        The fields ``images``, ``instances``, ``labels``, ``boxes``, ``concepts`` and ``captions``.
    """
    digits, colours, offsets = spec["digits"], spec["colours"], spec["offsets"].astype(np.int64)
    slots = digits.shape[1]
    tiles = _tiles(source_images, spec["sources"], spec["sizes"])  # (N, K, T, T)
    background = render_textures(
        spec["textures"], spec["texture_colours"], spec["texture_parameters"], spec["lattices"], CANVAS
    )
    side = tiles.shape[-1]
    # A margin around the canvas receives what a tile has outside: never ink, only its empty border.
    images = np.pad(background, ((0, 0), (side, side), (side, side), (0, 0)))
    instances = np.zeros(images.shape[:3], dtype=np.uint8)
    for slot in range(slots):
        scenes = np.flatnonzero(digits[:, slot] >= 0)
        y = (offsets[scenes, slot, 1, None] + np.arange(side) + side)[:, :, None]
        x = (offsets[scenes, slot, 0, None] + np.arange(side) + side)[:, None, :]
        where = (scenes[:, None, None], y, x)
        alpha = tiles[scenes, slot].astype(np.int32)  # (n, T, T)
        ink = _PALETTE[colours[scenes, slot]][:, None, None]
        below = images[where].astype(np.int32)
        images[where] = (below * (255 - alpha[..., None]) + ink * alpha[..., None] + 127) // 255
        instances[where] = np.where(alpha >= MASK_ALPHA, slot + 1, instances[where])
    inside = slice(side, side + CANVAS)
    instances = np.ascontiguousarray(instances[:, inside, inside])
    visible = instances[:, None] == np.arange(1, slots + 1, dtype=np.uint8)[:, None, None]  # (N, K, 64, 64)
    boxes = np.where(digits[..., None] >= 0, _tight_boxes(visible), -1).astype(np.int16)
    labels = (digits[..., None] == np.arange(10)).any(axis=1).astype(np.int8)
    return {
        "images": np.ascontiguousarray(images[:, inside, inside]),
        "instances": instances,
        "labels": labels,
        "boxes": boxes,
        "concepts": scene_concepts(digits, colours, spec["sizes"], boxes, spec["textures"], CANVAS),
        "captions": np.array(scene_captions(digits, colours, boxes)),
    }


def _tiles(source_images: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return every object's ink coverage, in the upper left of tiles of the largest size, uint8 ``(N, K, T, T)``."""
    largest = max(1, int(sizes.max()))
    tiles = np.zeros((*sources.shape, largest, largest), dtype=np.uint8)
    for size in np.unique(sizes[sizes > 0]).tolist():
        scenes, slots = np.nonzero(sizes == size)
        tiles[scenes, slots, :size, :size] = resize(source_images[sources[scenes, slots]], size)
    return tiles


def _tight_boxes(masks: np.ndarray) -> np.ndarray:
    """Return ``x0, y0, x1, y1`` (end exclusive) around the True pixels, int64 ``(..., 4)``; zeros for an empty mask."""
    columns = np.logical_or.reduce(masks, axis=-2)
    rows = np.logical_or.reduce(masks, axis=-1)
    some = columns.any(axis=-1)
    ends = [
        np.argmax(columns, axis=-1),
        np.argmax(rows, axis=-1),
        columns.shape[-1] - np.argmax(columns[..., ::-1], axis=-1),
        rows.shape[-1] - np.argmax(rows[..., ::-1], axis=-1),
    ]
    return np.stack([np.where(some, end, 0) for end in ends], axis=-1)
