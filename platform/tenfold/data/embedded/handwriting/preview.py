"""Contact sheet of every task."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tenfold.data.embedded.handwriting.build import load
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.fonts import FONTS
from tenfold.data.embedded.handwriting.removal import remove_object
from tenfold.data.embedded.handwriting.splits import Ambiguous, Digits, Glyphs, Letters, Pairs, Scenes, Sums, Warps
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS

_COLUMNS = 8
_SLOT_RGB = np.array(
    [(0, 0, 0), (230, 90, 80), (90, 170, 250), (250, 210, 80), (110, 210, 120)] + [(200, 130, 240)] * 5, dtype=np.uint8
)


def draw_preview(config: HandwritingConfig, path: Path) -> None:
    """Write an image with training examples of every task, in the format of the file name's suffix.

    Raises:
        OSError: If the image or the cache cannot be written.
        ValueError: If the suffix is not that of an image format.
    """
    rows = [
        ("scenes: boxes and captions", 2.6),
        ("scenes", 2.6),
        ("scenes: instance masks", 1.7),
        ("scenes: first object removed", 1.7),
        ("digits (handwritten)", 1.9),
        ("glyphs (printed)", 2.2),
        ("glyphs", 2.2),
        ("letters (out of distribution)", 2.2),
        ("warps: original, warped", 1.9),
        ("ambiguous", 1.9),
        ("pairs", 1.4),
        ("sums", 1.9),
    ]
    figure = Figure(figsize=(2.0 * _COLUMNS, sum(height for _, height in rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), _COLUMNS, height_ratios=[height for _, height in rows])
    for (title, _), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(textwrap.fill(title, 18), fontsize=9)
    _draw_scenes(load(Scenes, config, "train"), config, axes[:4])
    _draw_characters(config, axes[4:10])
    _draw_grids(config, axes[10:])
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=90)


def _draw_scenes(scenes: Scenes, config: HandwritingConfig, lines: np.ndarray) -> None:
    shown = min(2 * _COLUMNS, len(scenes.images))
    for row, axis in enumerate(lines[:2].flat):
        if row < shown:
            _show(axis, scenes.images[row], str(scenes.captions[row]))
            for box in scenes.boxes[row][scenes.digits[row] >= 0].tolist():
                axis.add_patch(_frame(box))
    rows = np.arange(min(_COLUMNS, shown))
    removed = remove_object(scenes, rows, np.zeros_like(rows), config)
    for row in rows.tolist():
        _show(lines[2, row], _SLOT_RGB[scenes.instances[row]], "")
        _show(lines[3, row], removed.images[row], "")


def _frame(box: list[int]) -> Rectangle:
    left, top, right, bottom = box
    return Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white", linewidth=0.8)


def _draw_characters(config: HandwritingConfig, lines: np.ndarray) -> None:
    digits = load(Digits, config, "train")
    glyphs, letters = load(Glyphs, config, "train"), load(Letters, config, "train")
    warps, ambiguous = load(Warps, config, "train"), load(Ambiguous, config, "train")
    for row, axis in _rows(lines[0], len(digits.images)):
        _show(axis, digits.images[row], str(digits.captions[row]))
    for row, axis in _rows(lines[1:3], len(glyphs.images)):
        _show(axis, glyphs.images[row], f"{glyphs.captions[row]} [{FONTS[glyphs.fonts[row]]}]")
    for row, axis in _rows(lines[3], len(letters.images)):
        _show(axis, letters.images[row], f"{letters.captions[row]} [{FONTS[letters.fonts[row]]}]")
    for row, axis in _rows(lines[4], len(warps.images)):
        angle, right, down, scale, shear = warps.parameters[row].tolist()
        text = f"turn {angle:.0f}°, move {right:.1f}, {down:.1f} px, scale {scale:.2f}, shear {shear:.2f}"
        _show(axis, np.concatenate([warps.originals[row], warps.images[row]], axis=1), text)
    for row, axis in _rows(lines[5], len(ambiguous.images)):
        both = zip(ambiguous.labels[row].tolist(), ambiguous.weights[row].tolist(), strict=True)
        _show(axis, ambiguous.images[row], ", ".join(f"{DIGIT_WORDS[label]} {weight:.0%}" for label, weight in both))


def _draw_grids(config: HandwritingConfig, lines: np.ndarray) -> None:
    pairs, sums = load(Pairs, config, "train"), load(Sums, config, "train")
    for row, axis in _rows(lines[0], len(pairs.images)):
        _show(axis, pairs.images[row], f"{pairs.labels[row]:02d}")
    for row, axis in _rows(lines[1], len(sums.images)):
        _show(axis, sums.images[row], f"{' + '.join(map(str, sums.digits[row].tolist()))} = {sums.labels[row]}")


def _rows(axes: np.ndarray, available: int) -> Iterator[tuple[int, Axes]]:
    return ((row, axis) for row, axis in enumerate(axes.flat) if row < available)


def _show(axis: Axes, image: np.ndarray, text: str) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_xlabel(textwrap.fill(text, 30), fontsize=8)
