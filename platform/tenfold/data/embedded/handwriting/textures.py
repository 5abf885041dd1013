"""Dark textured backgrounds, rendered from stored parameters in integer arithmetic."""

import numpy as np

from tenfold.data.embedded.handwriting.stream import Stream
from tenfold.data.embedded.handwriting.vocabulary import TEXTURES

_DIRECTIONS = np.array([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)])
_CELL = 8
"""Pixels between two points of the lattice of "clouds"."""


def draw_textures(stream: Stream, num: int) -> dict[str, np.ndarray]:
    """Draw the texture fields of ``num`` scenes (see ``splits.Scenes``); both colours are darker than any stroke."""
    first = stream.integers(6, 66, (num, 3))
    second = np.clip(first + stream.integers(-12, 52, (num, 3)), 0, 108)
    return {
        "textures": stream.integers(0, len(TEXTURES), (num,)).astype(np.uint8),
        "texture_colours": np.stack([first, second], axis=1).astype(np.uint8),
        "texture_parameters": np.concatenate(
            [stream.integers(6, 15, (num, 1)), stream.integers(0, 16, (num, 2)), stream.integers(0, 8, (num, 1))],
            axis=1,
        ).astype(np.uint8),
        "lattices": stream.integers(0, 256, (num, 9, 9)).astype(np.uint8),
    }


def render_textures(
    textures: np.ndarray, colours: np.ndarray, parameters: np.ndarray, lattices: np.ndarray, size: int
) -> np.ndarray:
    """Render backgrounds, uint8 ``(N, size, size, 3)``, from the texture fields of N scenes."""
    share = np.zeros((len(textures), size, size), dtype=np.int32)  # of the second colour, 0..255
    x, y = np.arange(size), np.arange(size)[:, None]
    for index, name in enumerate(TEXTURES):
        rows = np.flatnonzero(textures == index)
        if len(rows) == 0 or name == "plain":
            continue
        period, phase_x, phase_y, direction = (
            parameters[rows, column, None, None].astype(np.int32) for column in range(4)
        )
        along_x, along_y = _DIRECTIONS[direction, 0], _DIRECTIONS[direction, 1]
        if name == "gradient":
            along = along_x * x + along_y * y
            low, high = along.min(axis=(1, 2), keepdims=True), along.max(axis=(1, 2), keepdims=True)
            share[rows] = (along - low) * 255 // (high - low)
        elif name == "stripes":
            share[rows] = 255 * ((along_x * x + along_y * y + phase_x) % period < period // 2)
        elif name == "checks":
            share[rows] = 255 * (((x + phase_x) // period + (y + phase_y) // period) % 2)
        elif name == "dots":
            from_x, from_y = (x + phase_x) % period - period // 2, (y + phase_y) % period - period // 2
            share[rows] = 255 * (from_x**2 + from_y**2 <= (period // 3) ** 2)
        else:
            share[rows] = _clouds(lattices[rows].astype(np.int32), size)
    share = share[..., None]
    first, second = (colours[:, None, None, which].astype(np.int32) for which in range(2))
    return ((first * (255 - share) + second * share + 127) // 255).astype(np.uint8)


def _clouds(lattices: np.ndarray, size: int) -> np.ndarray:
    cell, step = np.divmod(np.arange(size), _CELL)
    rows = lattices[:, cell] * (_CELL - step)[:, None] + lattices[:, cell + 1] * step[:, None]  # (n, size, 9)
    return (rows[:, :, cell] * (_CELL - step) + rows[:, :, cell + 1] * step) // _CELL**2
