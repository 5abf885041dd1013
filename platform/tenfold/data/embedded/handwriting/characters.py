"""Images of single characters: digits, glyphs, letters, warps, ambiguous digits."""

import numpy as np

from tenfold.data.embedded.handwriting.affine import inverse_matrices, parameters
from tenfold.data.embedded.handwriting.captions import NUM_WORDINGS, digit_captions, glyph_captions
from tenfold.data.embedded.handwriting.concepts import DIGIT_CONCEPT_MATRIX
from tenfold.data.embedded.handwriting.config import Split
from tenfold.data.embedded.handwriting.fonts import GLYPH_SIZE, SPLIT_FONTS, glyphs
from tenfold.data.embedded.handwriting.raster import warp
from tenfold.data.embedded.handwriting.splits import IMAGE_SIDE
from tenfold.data.embedded.handwriting.stream import Stream

_GLYPH_RANGES = np.array([(-100, 101), (-64, 65), (-64, 65), (205, 283), (-26, 27)])
"""Lowest and highest (exclusive) step: +-10 degrees, +-2 pixels (of 2 samples), scale 0.8..1.1, shear +-0.1."""
_WARP_RANGES = np.array([(-450, 451), (-64, 65), (-64, 65), (179, 308), (-77, 78)])
"""+-45 degrees, +-4 pixels, scale 0.7..1.2, shear +-0.3."""
_CONFUSABLE = np.array(
    [(0, 6), (1, 7), (2, 3), (2, 7), (3, 5), (3, 8), (4, 6), (4, 9), (5, 6), (5, 8), (7, 9), (8, 9)], dtype=np.int64
)
"""Pairs of classes whose blend can be read as either; others look like two superimposed digits."""
_TRIES = 4
"""Candidates of the first class, each matched to its nearest digit of the second; the closest pair is blended."""

Arrays = dict[str, np.ndarray]


def draw_digits(rows: np.ndarray, source_images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Return the source digits of ``rows (N,)`` as fields of ``Digits``."""
    return {
        "images": as_rgb(framed(source_images[rows])),
        "labels": labels[rows],
        "sources": rows.astype(np.int16),
        "concepts": DIGIT_CONCEPT_MATRIX[labels[rows]],
        "captions": np.array(digit_captions(labels[rows])),
    }


def draw_glyphs(split: Split, stream: Stream, num: int, letters: bool) -> Arrays:
    """Draw ``num`` printed characters as fields of ``Glyphs`` (or ``Letters``)."""
    labels = stream.integers(0, 10, (num,))
    choice = SPLIT_FONTS[split]
    fonts = stream.integers(choice.start, choice.stop, (num,))
    steps = _draw_steps(stream, num, _GLYPH_RANGES)
    source = glyphs()[fonts, labels + (10 if letters else 0)]
    # Warped at twice the size of the image and then averaged 2x2, which keeps edges smooth.
    fine = warp(source, inverse_matrices(steps, GLYPH_SIZE, GLYPH_SIZE), GLYPH_SIZE).astype(np.int32)
    images = (fine.reshape(num, IMAGE_SIDE, 2, IMAGE_SIDE, 2).sum(axis=(2, 4)) + 2) // 4
    wordings = stream.integers(0, NUM_WORDINGS, (num,))
    values = parameters(steps)
    values[:, 1:3] /= GLYPH_SIZE // IMAGE_SIDE  # to pixels of the image
    fields = {
        "images": as_rgb(images.astype(np.uint8)),
        "labels": labels,
        "fonts": fonts.astype(np.uint8),
        "parameters": values,
        "captions": np.array(glyph_captions(labels, fonts, wordings, letters)),
    }
    return fields if letters else {**fields, "concepts": DIGIT_CONCEPT_MATRIX[labels]}


def draw_warps(rows: np.ndarray, source_images: np.ndarray, stream: Stream, num: int) -> Arrays:
    """Draw ``num`` warped digits as fields of ``Warps``; ``rows (10, n)`` are the allowed source digits by class."""
    labels = stream.integers(0, 10, (num,))
    sources = rows[labels, stream.integers(0, rows.shape[1], (num,))]
    steps = _draw_steps(stream, num, _WARP_RANGES)
    matrices = inverse_matrices(steps, IMAGE_SIDE, IMAGE_SIDE)
    originals = framed(source_images[sources])
    return {
        "images": as_rgb(warp(originals, matrices, IMAGE_SIDE)),
        "originals": as_rgb(originals),
        "labels": labels,
        "sources": sources.astype(np.int16),
        "parameters": parameters(steps),
        "matrices": matrices.astype(np.int32),
    }


def draw_ambiguous(rows: np.ndarray, source_images: np.ndarray, stream: Stream, num: int) -> Arrays:
    """Draw ``num`` blends as fields of ``Ambiguous``; ``rows (10, n)`` are the allowed source digits by class."""
    pairs = _CONFUSABLE[stream.integers(0, len(_CONFUSABLE), (num,))]
    labels = np.take_along_axis(pairs, stream.orders(num, 2), axis=1)
    tries = rows[labels[:, 0, None], stream.integers(0, rows.shape[1], (num, _TRIES))]  # (N, tries)
    first, second = _closest_couples(tries, labels[:, 1], rows, source_images)
    share = stream.integers(96, 161, (num,))[:, None, None]  # of 256
    ink, other = source_images[first].astype(np.int32), source_images[second].astype(np.int32)
    # Brightened by 5/4, since a stroke of only one of the digits is dim.
    blend = np.minimum(((ink * share + other * (256 - share)) * 5 // 4) >> 8, 255)
    weights = (np.stack([share[:, 0, 0], 256 - share[:, 0, 0]], axis=1) / 256).astype(np.float32)
    targets = np.zeros((num, 10), dtype=np.float32)
    np.put_along_axis(targets, labels, weights, axis=1)
    return {
        "images": as_rgb(framed(blend.astype(np.uint8))),
        "labels": labels,
        "weights": weights,
        "targets": targets,
        "sources": np.stack([first, second], axis=1).astype(np.int16),
    }


def _closest_couples(
    tries: np.ndarray, others: np.ndarray, rows: np.ndarray, source_images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pair each row's best candidate of ``tries (N, T)`` with its nearest digit of class ``others (N,)``."""
    wide = source_images.astype(np.uint16)
    coarse = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    coarse = coarse.reshape(len(source_images), -1).astype(np.int32)  # 14x14 sums up to 1020: products fit
    closest, distances = np.empty_like(tries), np.empty_like(tries)
    for digit in range(10):
        here = others == digit
        mine, theirs = coarse[tries[here].reshape(-1)], coarse[rows[digit]]
        distance = (mine**2).sum(axis=1, keepdims=True) + (theirs**2).sum(axis=1) - 2 * (mine @ theirs.T)
        closest[here] = rows[digit][np.argmin(distance, axis=1)].reshape(tries[here].shape)
        distances[here] = np.min(distance, axis=1).reshape(tries[here].shape)
    best = np.argmin(distances, axis=1)[:, None]
    return np.take_along_axis(tries, best, axis=1)[:, 0], np.take_along_axis(closest, best, axis=1)[:, 0]


def _draw_steps(stream: Stream, num: int, ranges: np.ndarray) -> np.ndarray:
    return stream.integers(ranges[:, 0], ranges[:, 1], (num, len(ranges)))


def framed(digits: np.ndarray) -> np.ndarray:
    """Pad digits ``(..., 28, 28)`` to ``(..., 32, 32)``, the digit in the middle."""
    border = (IMAGE_SIDE - digits.shape[-1]) // 2
    return np.pad(digits, (*[(0, 0)] * (digits.ndim - 2), (border, border), (border, border)))


def as_rgb(grey: np.ndarray) -> np.ndarray:
    """Repeat grey images ``(N, H, W)`` as ``(N, H, W, 3)``."""
    return np.repeat(grey[..., None], 3, axis=-1)
