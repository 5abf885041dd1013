"""Printed digits and letters from the TrueType fonts that matplotlib ships."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font, LoadFlags

from tenfold.data.embedded.handwriting.config import Split
from tenfold.data.embedded.handwriting.raster import fill_outline
from tenfold.data.embedded.handwriting.vocabulary import LETTERS

# Excluded of the forty: symbol fonts (STIXSiz*, STIXNonUni*, *Display, cmex10, cmsy10, LastResort), and cmmi10, whose
# old-style 0 and 1 read as the letters o and i.
FONT_STYLES = {
    "DejaVuSans": "sans serif",
    "DejaVuSans-Bold": "bold sans serif",
    "DejaVuSans-Oblique": "slanted sans serif",
    "DejaVuSans-BoldOblique": "bold slanted sans serif",
    "DejaVuSansMono": "typewriter",
    "DejaVuSansMono-Bold": "bold typewriter",
    "DejaVuSansMono-Oblique": "slanted typewriter",
    "DejaVuSansMono-BoldOblique": "bold slanted typewriter",
    "DejaVuSerif": "serif",
    "DejaVuSerif-Bold": "bold serif",
    "DejaVuSerif-Italic": "slanted serif",
    "DejaVuSerif-BoldItalic": "bold slanted serif",
    "cmr10": "serif",
    "cmb10": "bold serif",
    "cmti10": "slanted serif",
    "cmss10": "sans serif",
    "cmtt10": "typewriter",
    "STIXGeneral": "serif",
    "STIXGeneralBol": "bold serif",
    "STIXGeneralItalic": "slanted serif",
    "STIXGeneralBolIta": "bold slanted serif",
}
FONTS = tuple(FONT_STYLES)

SPLIT_FONTS: dict[Split, range] = {"train": range(15), "val": range(15, 17), "test": range(17, 21)}
"""Indices into ``FONTS``: splits share neither a font nor a slanted or bold cut of one design."""

CHARACTERS = (*"0123456789", *LETTERS)
GLYPH_SIZE = 64
INK_SIZE = 44
"""Longer side of the ink of every glyph in pixels."""
_SAMPLES = 4
_CURVE_PIECES = 8


@lru_cache(maxsize=1)
def glyphs() -> np.ndarray:
    """Return all glyphs, white on black, each scaled to the same longer side and centred.

    Outlines are read in font units (no hinting) and filled in integer arithmetic, so the bytes do not depend on
    FreeType's rasteriser.

    Returns:
        uint8 ``(len(FONTS), len(CHARACTERS), 64, 64)``, read-only.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images = np.stack([_font_glyphs(folder / f"{name}.ttf") for name in FONTS])
    images.flags.writeable = False
    return images


def _font_glyphs(path: Path) -> np.ndarray:
    font = FT2Font(str(path))
    return np.stack([fill_outline(_fit(_outline(font, character)), GLYPH_SIZE, _SAMPLES) for character in CHARACTERS])


def _outline(font: FT2Font, character: str) -> np.ndarray:
    """Return edges ``x0, y0, x1, y1`` in 64ths of a font unit, y up, int64 ``(E, 4)``."""
    font.load_char(ord(character), flags=LoadFlags.NO_SCALE | LoadFlags.NO_HINTING)
    vertices, codes = font.get_path()
    points = np.rint(vertices * 64 * 64).astype(np.int64)
    move, line, quadratic = 1, 2, 3
    contours: list[list[np.ndarray]] = []
    position = 0
    while position < len(codes):
        code = codes[position]
        if code == move:
            contours.append([points[position]])
        elif code == line:
            contours[-1].append(points[position])
        elif code == quadratic:
            contours[-1].extend(_curve(contours[-1][-1], points[position], points[position + 1]))
            position += 1
        position += 1  # the code that closes a polygon carries no point: np.roll below closes it
    closed = [np.stack(contour) for contour in contours]
    return np.concatenate([np.concatenate([contour, np.roll(contour, -1, axis=0)], axis=1) for contour in closed])


def _curve(start: np.ndarray, control: np.ndarray, end: np.ndarray) -> np.ndarray:
    t = np.arange(1, _CURVE_PIECES + 1)[:, None]
    rest = _CURVE_PIECES - t
    return (rest * rest * start + 2 * t * rest * control + t * t * end) // _CURVE_PIECES**2


def _fit(edges: np.ndarray) -> np.ndarray:
    """Scale edges to the ink size and centre them, in 256ths of a sample, y down."""
    points = edges.reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    unit = _SAMPLES * 256
    scaled = (2 * points - low - high) * (INK_SIZE * unit) // (2 * int((high - low).max()))  # from the centre
    return (scaled * np.array([1, -1]) + GLYPH_SIZE * unit // 2).reshape(-1, 4)
