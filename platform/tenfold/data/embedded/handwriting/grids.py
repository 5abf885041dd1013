"""Images of several digits in a grid, with noise: pairs and sums."""

from functools import cache
from statistics import NormalDist

import numpy as np

from tenfold.data.embedded.handwriting.characters import as_rgb, framed
from tenfold.data.embedded.handwriting.concepts import PAIR_CONCEPT_MATRIX
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.splits import IMAGE_SIDE, cell_grid
from tenfold.data.embedded.handwriting.stream import Stream

_UNIT = 1 << 12
"""Resolution of the normal quantiles: steps of 1/4096 of a standard deviation."""
_LEVEL = 1 << 8
"""Resolution of the standard deviation of the noise: steps of 1/256 of a grey level."""

Arrays = dict[str, np.ndarray]


def draw_pairs(
    config: HandwritingConfig, rows: np.ndarray, source_images: np.ndarray, stream: Stream, num: int
) -> Arrays:
    """Draw ``num`` pairs as fields of ``Pairs``; ``rows (10, n)`` are the allowed source digits by class.

    A right digit that repeats the left one's class is a picture of its own (by chance the same). Settings of noise and
    repetition leave the left digits alone.
    """
    digits = stream.integers(0, 10, (num, 2))
    repeats = _repeats(config, stream, num, 2)
    digits = np.where(repeats, digits[:, :1], digits)
    sources = rows[digits, stream.integers(0, rows.shape[1], (num, 2))]
    labels = 10 * digits[:, 0] + digits[:, 1]
    return {
        "images": as_rgb(_in_noise(_in_grid(framed(source_images[sources])), config.noise, stream)),
        "labels": labels,
        "digits": digits.astype(np.int8),
        "concepts": PAIR_CONCEPT_MATRIX[labels],
        "sources": sources.astype(np.int16),
    }


def draw_sums(
    config: HandwritingConfig, rows: np.ndarray, source_images: np.ndarray, stream: Stream, num: int
) -> Arrays:
    """Draw ``num`` sums as fields of ``Sums``; ``rows (10, n)`` are the allowed source digits by class.

    As published, an operand that repeats the one before (the second the first, the fourth the third ...) has its
    picture, too; the noise is its own.
    """
    counts = np.array(config.operands)
    digits = stream.integers(0, counts, (num, len(counts)))
    sources = rows[digits, stream.integers(0, rows.shape[1], (num, len(counts)))]
    repeats = _repeats(config, stream, num, len(counts))
    digits = np.where(repeats, np.roll(digits, 1, axis=1), digits)
    sources = np.where(repeats, np.roll(sources, 1, axis=1), sources)
    one_hot = [digits[:, place, None] == np.arange(count) for place, count in enumerate(config.operands)]
    return {
        "images": as_rgb(_in_noise(_in_grid(framed(source_images[sources])), config.noise, stream)),
        "labels": digits.sum(axis=1),
        "digits": digits.astype(np.int8),
        "concepts": np.concatenate(one_hot, axis=1).astype(np.int8),
        "sources": sources.astype(np.int16),
    }


def noise_levels(std: float) -> np.ndarray:
    """Return Gaussian noise in grey levels for each 16-bit number, int16 ``(65536,)``; exact on every machine.

    A uniform 16-bit number is the index; the extremes are 4.3 standard deviations.

    Args:
        std: Standard deviation as a share of full scale, in [0, 1].
    """
    scaled = _normal_quantiles() * round(std * 255 * _LEVEL)  # at most 2**31 in size
    return ((scaled + _UNIT * _LEVEL // 2) // (_UNIT * _LEVEL)).astype(np.int16)


@cache
def _normal_quantiles() -> np.ndarray:
    """Quantiles of the standard normal at the middles of 65536 equal shares, int64 in steps of 1 / ``_UNIT``.

    The last bit of a quantile may differ between C libraries; none is within 1e-9 of where its rounding turns.
    """
    upper = [round(NormalDist().inv_cdf((share + 0.5) / 65536) * _UNIT) for share in range(32768, 65536)]
    return np.array([-step for step in reversed(upper)] + upper)


def _repeats(config: HandwritingConfig, stream: Stream, num: int, length: int) -> np.ndarray:
    """Draw whether a digit repeats the one before, bool ``(num, length)``; only every second one may."""
    chosen = stream.integers(0, 1 << 30, (num, length)) < round(config.repeat * (1 << 30))
    return chosen & (np.arange(length) % 2 == 1)


def _in_grid(tiles: np.ndarray) -> np.ndarray:
    """Arrange square tiles ``(N, D, S, S)`` row by row in the grid of D cells, ``(N, rows * S, columns * S)``."""
    num, length = tiles.shape[:2]
    rows, columns = cell_grid(length)
    cells = np.pad(tiles, ((0, 0), (0, rows * columns - length), (0, 0), (0, 0)))
    cells = cells.reshape(num, rows, columns, IMAGE_SIDE, IMAGE_SIDE).transpose(0, 1, 3, 2, 4)
    return cells.reshape(num, rows * IMAGE_SIDE, columns * IMAGE_SIDE)


def _in_noise(images: np.ndarray, std: float, stream: Stream) -> np.ndarray:
    """Add Gaussian noise to grey images, uint8 ``(N, H, W)``, cut at black and white."""
    if not std:
        return images
    noisy = noise_levels(std)[stream.shorts(images.shape)]
    noisy += images
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)
