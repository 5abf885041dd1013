"""Single-cue scenes: one handwritten digit among distractors on a textured 64x64 canvas, with its location.

Distractors have the digit's strokes, sizes and colours: digits of the same split with their squares shuffled, and
printed letters. So only the digit tells the class, and an attribution map that responds to ink as such fails.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tenfold.data.embedded.handwriting.build import BLOCK, BUILDER_VERSION, source_digits
from tenfold.data.embedded.handwriting.config import SPLITS, HandwritingConfig, Split
from tenfold.data.embedded.handwriting.fonts import CHARACTERS, SPLIT_FONTS, glyphs
from tenfold.data.embedded.handwriting.layout import place_objects
from tenfold.data.embedded.handwriting.raster import resize
from tenfold.data.embedded.handwriting.scenes import MASK_ALPHA
from tenfold.data.embedded.handwriting.sources import SOURCE_SIZE, split_rows
from tenfold.data.embedded.handwriting.splits import CANVAS
from tenfold.data.embedded.handwriting.store import StoredFolder, cache_root, create_array, stored
from tenfold.data.embedded.handwriting.stream import Stream
from tenfold.data.embedded.handwriting.textures import draw_textures, render_textures
from tenfold.data.embedded.handwriting.vocabulary import COLOUR_RGB, DIGIT_WORDS
from tenfold.data.images import ArrayImages, ResizedImages
from tenfold.data.localisation import (
    ArrayMasks,
    LocalisationData,
    LocalisationSplit,
    MaskSource,
    ResizedMasks,
    scale_boxes,
)
from tenfold.types import ImageSource, Preprocessing

VERSION = 1
"""Incremented with every change that alters bytes: old caches are then ignored and new ones built."""
REACH = 2
"""Pixels, across and down, by which the mask is dilated: strokes are thinner than a map can resolve."""
DISTRACTORS = (3, 6)
"""Smallest and largest number of distractors."""
SIZES = (18, 26)
"""Smallest and largest side in pixels to which a 28x28 source is resized; its ink takes up five sevenths of it."""
LETTERS = "ACEFHJ"
"""Printed letters that do not resemble a digit (B, D, G and I are close to 8, 0, 6 and 1)."""

_SQUARE, _SQUARES = 4, 5
"""Side in pixels of the squares that a digit is cut into, and their number across and down."""
_WINDOW = _SQUARE * _SQUARES
_PALETTE = np.array(list(COLOUR_RGB.values()), dtype=np.int32)
_COLUMNS: dict[str, np.dtype] = {
    "images": np.dtype(("|u1", (CANVAS, CANVAS, 3))),
    "labels": np.dtype("<i8"),
    "boxes": np.dtype(("<i8", (4,))),
    "masks": np.dtype(("|u1", (CANVAS, CANVAS))),
    "sources": np.dtype("<i2"),
    "sizes": np.dtype("|i1"),
    "offsets": np.dtype(("<i2", (2,))),
}

Arrays = dict[str, np.ndarray]


def load_cue_scenes(
    config: HandwritingConfig, preprocessing: Preprocessing, train_size: int | None = None
) -> LocalisationData:
    """Load the scenes with the mask and the box of the digit, building them if the cache lacks them.

    The mask holds the digit's ink and all within ``REACH`` pixels of it; the box is the mask's. Of the settings only
    the numbers of images, ``seed`` and ``cache`` matter. At a size other than 64 images are resized on every read,
    masks by nearest neighbour.

    Args:
        config: Settings of the data.
        preprocessing: The network's; its size is that of val and test.
        train_size: Side of the training images; None: the network's size.

    Raises:
        ValueError: ``num_train`` below 10 (every class needs an image); ``train_size`` below 1.
        OSError: The cache folder cannot be written.
    """
    if config.num_train < len(DIGIT_WORDS):
        raise ValueError(f"num_train must be at least {len(DIGIT_WORDS)}, one for each digit, got {config.num_train}")
    folder = build_cue_scenes(config)
    size = preprocessing.image_size
    return LocalisationData(
        name=config.name,
        classes=DIGIT_WORDS,
        train=_split(folder, "train", preprocessing, size if train_size is None else train_size),
        val=_split(folder, "val", preprocessing, size),
        test=_split(folder, "test", preprocessing, size),
        image_size=size,
        fingerprint=folder.fingerprint,
    )


def build_cue_scenes(config: HandwritingConfig, *, workers: int | None = None, progress: bool = True) -> StoredFolder:
    """Return the arrays of all splits, building them if the cache lacks them.

    ``images`` uint8 ``(N, 64, 64, 3)``; ``labels`` int64 ``(N,)``; ``boxes`` int64 ``(N, 4)``, ends included;
    ``masks`` uint8 0/1 ``(N, 64, 64)``; and the parameters of the digit: ``sources`` (row), ``sizes`` (side in pixels)
    and ``offsets`` (x, y of the upper left corner of the resized source).

    Args:
        config: Settings of the data.
        workers: Threads; None: the number of cores.
        progress: Whether a build of more than a second shows a progress bar (on a terminal).

    Raises:
        OSError: If the cache folder cannot be written.
    """
    root = cache_root(config.cache)
    settings: dict[str, Any] = {"task": "cues", "version": [BUILDER_VERSION, VERSION], "seed": config.seed}
    settings |= {f"num_{split}": config.num(split) for split in SPLITS}

    def fill(folder: Path) -> None:
        source_images, labels = source_digits(root)
        glyphs()  # fills the cache, so that not every thread draws them
        rows = {split: split_rows(labels, split, config.seed) for split in SPLITS}
        arrays = {
            (split, name): create_array(folder, split, name, config.num(split), row)
            for split in SPLITS
            for name, row in _COLUMNS.items()
        }

        def draw_block(block: tuple[Split, int]) -> None:
            split, start = block
            stream = Stream("cues", config.seed, split, start)
            drawn = draw_cue_scenes(split, rows[split], np.asarray(source_images), stream, BLOCK)
            stop = min(start + BLOCK, config.num(split))
            for name in _COLUMNS:
                arrays[split, name][start:stop] = drawn[name][: stop - start]

        blocks = [(split, start) for split in SPLITS for start in range(0, config.num(split), BLOCK)]
        bar = tqdm(
            total=len(blocks), desc="handwriting cues", unit="block", delay=1.0, disable=None if progress else True
        )
        with bar, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for _ in pool.map(draw_block, blocks):
                bar.update()
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]  # a memmap

    return stored(root, "handwriting-cues", settings, fill)


def draw_cue_scenes(split: Split, rows: np.ndarray, source_images: np.ndarray, stream: Stream, num: int) -> Arrays:
    """Draw ``num`` scenes as the arrays of ``build_cue_scenes``.

    Args:
        split: Split whose fonts the letters use.
        rows: Allowed source digits by class, ``(10, n)``.
        source_images: All source digits, uint8 ``(5000, 28, 28)``.
        stream: Random integers.
        num: Number of scenes.
    """
    slots = DISTRACTORS[1] + 1
    # Every ten scenes hold all ten digits, so even a small part has every class.
    labels = stream.orders(-(-num // 10), 10).reshape(-1)[:num]
    sources = rows[labels, stream.integers(0, rows.shape[1], (num,))]
    sizes = stream.integers(SIZES[0], SIZES[1] + 1, (num, slots))
    tiles = np.zeros((num, slots, SIZES[1], SIZES[1]), dtype=np.uint8)
    _resize_into(tiles, source_images[sources], sizes, 0)
    for slot in range(1, slots):
        _draw_distractors(tiles, split, rows, source_images, stream, sizes, slot)
    present = np.arange(slots) <= stream.integers(DISTRACTORS[0], DISTRACTORS[1] + 1, (num,))[:, None]
    extents = _tight_boxes(tiles > 0)
    offsets = place_objects(stream, present, extents + np.array([0, 0, 1, 1]), CANVAS)
    colours = _PALETTE[stream.integers(0, len(_PALETTE), (num, slots))]
    texture = draw_textures(stream, num)
    background = render_textures(
        texture["textures"], texture["texture_colours"], texture["texture_parameters"], texture["lattices"], CANVAS
    )
    images, ink = _render(background, tiles, present, offsets, colours)
    masks = _spread(ink)
    return {
        "images": images,
        "labels": labels.astype(np.int64),
        "boxes": _tight_boxes(masks).astype(np.int64),
        "masks": masks.astype(np.uint8),
        "sources": sources.astype(np.int16),
        "sizes": sizes[:, 0].astype(np.int8),
        "offsets": offsets[:, 0].astype(np.int16),
    }


def shuffled_digits(digits: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Cut digits into squares and shuffle them.

    Args:
        digits: uint8 ``(N, 28, 28)``, ink within 20 x 20 pixels.
        orders: Index of the square at each position, row by row, ``(N, 25)``.

    Returns:
        uint8 ``(N, 28, 28)``, the 20 x 20 pixels centred.
    """
    boxes = _tight_boxes(digits > 0)
    # The window is centred on the ink, so that it cuts nothing off.
    corners = np.clip((boxes[:, :2] + boxes[:, 2:] + 1 - _WINDOW) // 2, 0, SOURCE_SIZE - _WINDOW)
    y = corners[:, 1, None, None] + np.arange(_WINDOW)[:, None]
    x = corners[:, 0, None, None] + np.arange(_WINDOW)
    windows = digits[np.arange(len(digits))[:, None, None], y, x]
    squares = windows.reshape(-1, _SQUARES, _SQUARE, _SQUARES, _SQUARE).swapaxes(2, 3)
    squares = squares.reshape(-1, _SQUARES**2, _SQUARE, _SQUARE)
    mixed = squares[np.arange(len(digits))[:, None], orders].reshape(-1, _SQUARES, _SQUARES, _SQUARE, _SQUARE)
    border = (SOURCE_SIZE - _WINDOW) // 2
    whole = mixed.swapaxes(2, 3).reshape(-1, _WINDOW, _WINDOW)
    return np.pad(whole, ((0, 0), (border, border), (border, border)))


def _draw_distractors(
    tiles: np.ndarray,
    split: Split,
    rows: np.ndarray,
    source_images: np.ndarray,
    stream: Stream,
    sizes: np.ndarray,
    slot: int,
) -> None:
    num = len(tiles)
    choice = SPLIT_FONTS[split]
    characters = np.array([CHARACTERS.index(letter) for letter in LETTERS])
    letters = glyphs()[
        stream.integers(choice.start, choice.stop, (num,)), characters[stream.integers(0, len(LETTERS), (num,))]
    ]
    cut = rows.reshape(-1)[stream.integers(0, rows.size, (num,))]
    shuffled = shuffled_digits(source_images[cut], stream.orders(num, _SQUARES**2))
    printed = stream.integers(0, 2, (num,)) == 1
    _resize_into(tiles, letters, sizes, slot, printed)
    _resize_into(tiles, shuffled, sizes, slot, ~printed)


def _resize_into(
    tiles: np.ndarray, images: np.ndarray, sizes: np.ndarray, slot: int, chosen: np.ndarray | None = None
) -> None:
    """Write resized ink coverage into the upper left of the tiles ``(N, K, T, T)`` of a slot."""
    for size in range(SIZES[0], SIZES[1] + 1):
        here = sizes[:, slot] == size if chosen is None else (sizes[:, slot] == size) & chosen
        if here.any():
            tiles[here, slot, :size, :size] = resize(images[here], size)


def _render(
    background: np.ndarray, tiles: np.ndarray, present: np.ndarray, offsets: np.ndarray, colours: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 ``(N, 64, 64, 3)`` and the mask of the digit's ink, bool ``(N, 64, 64)``."""
    side = tiles.shape[-1]
    # A margin around the canvas receives what a tile has outside: never ink, only its empty border.
    images = np.pad(background, ((0, 0), (side, side), (side, side), (0, 0)))
    ink = np.zeros(images.shape[:3], dtype=bool)
    # The digit, slot 0, comes last: nothing covers it.
    for slot in reversed(range(tiles.shape[1])):
        scenes = np.flatnonzero(present[:, slot])
        y = (offsets[scenes, slot, 1, None] + np.arange(side) + side)[:, :, None]
        x = (offsets[scenes, slot, 0, None] + np.arange(side) + side)[:, None, :]
        where = (scenes[:, None, None], y, x)
        alpha = tiles[scenes, slot].astype(np.int32)[..., None]
        below = images[where].astype(np.int32)
        images[where] = (below * (255 - alpha) + colours[scenes, slot][:, None, None] * alpha + 127) // 255
        if slot == 0:
            ink[where] = alpha[..., 0] >= MASK_ALPHA
    inside = slice(side, side + CANVAS)
    return np.ascontiguousarray(images[:, inside, inside]), ink[:, inside, inside]


def _spread(ink: np.ndarray) -> np.ndarray:
    """Dilate a mask by ``REACH`` pixels across and down, bool ``(N, S, S)``."""
    side = ink.shape[-1]
    padded = np.pad(ink, ((0, 0), (REACH, REACH), (REACH, REACH)))
    spread = np.zeros_like(ink)
    for down in range(2 * REACH + 1):
        for across in range(2 * REACH + 1):
            spread |= padded[:, down : down + side, across : across + side]
    return spread


def _tight_boxes(masks: np.ndarray) -> np.ndarray:
    """Return ``x0, y0, x1, y1`` (ends included) around the True pixels, int64 ``(..., 4)``; no mask may be empty."""
    columns, rows = np.logical_or.reduce(masks, axis=-2), np.logical_or.reduce(masks, axis=-1)
    last = masks.shape[-1] - 1
    ends = [
        np.argmax(columns, axis=-1),
        np.argmax(rows, axis=-1),
        last - np.argmax(columns[..., ::-1], axis=-1),
        last - np.argmax(rows[..., ::-1], axis=-1),
    ]
    return np.stack(ends, axis=-1)


def _split(folder: StoredFolder, split: Split, preprocessing: Preprocessing, size: int) -> LocalisationSplit:
    images: ImageSource = ArrayImages(folder.array(split, "images"))
    stored_masks, boxes = folder.array(split, "masks"), np.array(folder.array(split, "boxes"))
    masks: np.ndarray | MaskSource = stored_masks
    if size != CANVAS:
        images = ResizedImages(images, size, resize=preprocessing.resize, interpolation=preprocessing.interpolation)
        masks = ResizedMasks(ArrayMasks(stored_masks), size)
        boxes = scale_boxes(boxes, (CANVAS, CANVAS), size)
    return LocalisationSplit(
        images=images,
        labels=np.array(folder.array(split, "labels")),
        boxes=tuple(boxes[:, None]),
        masks=masks,
    )
