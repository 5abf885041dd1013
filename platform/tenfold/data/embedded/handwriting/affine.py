"""Rotation, shear, scale and translation about the centre, as exact fixed-point matrices."""

import math

import numpy as np

from tenfold.data.embedded.handwriting.raster import FIXED

WARP_PARAMETERS = ("rotation_deg", "translate_x_px", "translate_y_px", "scale", "shear")
"""Columns of ``Warps.parameters``. A point p of the original, relative to the centre with y down, maps to
``R(rotation) @ [[1, shear], [0, 1]] @ (scale * p) + translate``; a positive rotation appears counter-clockwise."""

DEGREES, PIXELS, RATIO = 10, 16, 256
"""Resolution of the drawn parameters: tenths of a degree, 16ths of a pixel, 256ths of scale and shear."""

# A sine may differ in its last bit between C libraries; rounded to 30 bits it does not.
_TRIG = 1 << 30


def inverse_matrices(steps: np.ndarray, source_size: int, target_size: int) -> np.ndarray:
    """Compute the maps from output pixels back to source pixels, for ``raster.warp``.

    Args:
        steps: Rotation, translation x and y, scale and shear in the resolution above, int64 ``(N, 5)``;
            translation in output pixels.
        source_size: Side of the source image.
        target_size: Side of the output; without translation its centre maps to the centre of the source.

    Returns:
        int64 ``(N, 2, 3)`` in 1/65536 of a source pixel.
    """
    angles = [math.radians(step / DEGREES) for step in steps[:, 0].tolist()]
    cos = np.array([round(math.cos(angle) * _TRIG) for angle in angles]) / _TRIG
    sin = np.array([round(math.sin(angle) * _TRIG) for angle in angles]) / _TRIG
    scale, shear = steps[:, 3] / RATIO, steps[:, 4] / RATIO
    # Inverse of R @ [[1, k], [0, 1]] * s with R = [[cos, sin], [-sin, cos]] (y points down).
    linear = np.stack([cos - shear * sin, -sin - shear * cos, sin, cos], axis=1).reshape(-1, 2, 2)
    linear /= scale[:, None, None]
    offset = np.array([(target_size - 1) / 2, (target_size - 1) / 2]) + steps[:, 1:3] / PIXELS  # (N, 2)
    origin = (source_size - 1) / 2 - (linear[:, :, 0] * offset[:, None, 0] + linear[:, :, 1] * offset[:, None, 1])
    return np.rint(np.concatenate([linear, origin[:, :, None]], axis=2) * FIXED).astype(np.int64)


def parameters(steps: np.ndarray) -> np.ndarray:
    """Convert drawn steps to the units of ``WARP_PARAMETERS``, float32 ``(N, 5)``."""
    return (steps / np.array([DEGREES, PIXELS, PIXELS, RATIO, RATIO])).astype(np.float32)
