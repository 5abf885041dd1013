"""Integer rasterisation: resizing, affine warps and filled outlines with the same bytes on every machine."""

from functools import lru_cache

import numpy as np

FIXED = 1 << 16
"""One pixel in the fixed-point format of an affine matrix."""
_WEIGHT = 64  # Resizing weights are 64ths: 255 * 64 * 64 < 2**24 stays exact in float32.
_SUBPIXEL = 256  # Outline coordinates are 256ths of a sample.


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize square images by a triangle filter (widened when shrinking, so thin strokes survive).

    Args:
        images: uint8 ``(N, S, S)``.
        size: New side in pixels.

    Returns:
        uint8 ``(N, size, size)``.
    """
    weights = _resize_weights(images.shape[-1], size)
    # Every value and partial sum is an integer below 2**24, so float32 BLAS is exact in any order of summation.
    total = weights @ images.astype(np.float32) @ weights.T
    return ((total.astype(np.int32) + _WEIGHT * _WEIGHT // 2) // (_WEIGHT * _WEIGHT)).astype(np.uint8)


@lru_cache(maxsize=64)
def _resize_weights(source: int, target: int) -> np.ndarray:
    # Distances between pixel centres in units of 1 / (2 target) source pixels: integers.
    distance = np.abs((2 * np.arange(source) + 1) * target - (2 * np.arange(target)[:, None] + 1) * source)
    raw = np.maximum(0, 2 * max(source, target) - distance)  # (target, source)
    total = raw.sum(axis=1, keepdims=True)
    weights, rest = np.divmod(raw * _WEIGHT, total)
    rank = np.argsort(np.argsort(-rest, axis=1, kind="stable"), axis=1, kind="stable")
    weights += rank < _WEIGHT - weights.sum(axis=1, keepdims=True)  # largest remainders: rows sum to 64
    return weights.astype(np.float32)


def warp(images: np.ndarray, matrices: np.ndarray, size: int) -> np.ndarray:
    """Warp images by affine maps, with bilinear interpolation and black outside.

    Args:
        images: uint8 ``(N, S, S)``.
        matrices: Maps from the indices ``(x, y, 1)`` of an output pixel to source indices ``(x, y)``, in 1/65536 of a
            pixel, integer ``(N, 2, 3)``.
        size: Side of the output in pixels.

    Returns:
        uint8 ``(N, size, size)``.
    """
    side = images.shape[-1]
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))  # two black pixels: an index clipped to -2 or S reads only those
    stride = side + 4
    x, y = np.arange(size, dtype=np.int64), np.arange(size, dtype=np.int64)[:, None]
    matrices = matrices.astype(np.int64)[:, :, :, None, None]
    u = matrices[:, 0, 0] * x + matrices[:, 0, 1] * y + matrices[:, 0, 2]  # (N, size, size)
    v = matrices[:, 1, 0] * x + matrices[:, 1, 1] * y + matrices[:, 1, 2]
    column = np.clip(u >> 16, -2, side) + 2
    row = np.clip(v >> 16, -2, side) + 2
    right, lower = (u >> 8 & 255).astype(np.int32), (v >> 8 & 255).astype(np.int32)
    flat = padded.reshape(-1)
    corner = (np.arange(len(images)) * stride * stride)[:, None, None] + row * stride + column
    top = flat[corner] * (256 - right) + flat[corner + 1] * right
    bottom = flat[corner + stride] * (256 - right) + flat[corner + stride + 1] * right
    return ((top * (256 - lower) + bottom * lower + 32768) >> 16).astype(np.uint8)


def fill_outline(edges: np.ndarray, size: int, samples: int) -> np.ndarray:
    """Compute the coverage of the inside of a closed outline (non-zero winding rule).

    Args:
        edges: Straight edges ``x0, y0, x1, y1`` in 256ths of a sample, y down, integer ``(E, 4)``; inside the image.
        size: Side of the image in pixels.
        samples: Samples along the side of one pixel.

    Returns:
        uint8 ``(size, size)``, 255 where all samples of a pixel are inside.
    """
    side = size * samples
    x0, y0, x1, y1 = (edges[:, column, None].astype(np.int64) for column in range(4))
    centres = np.arange(side) * _SUBPIXEL + _SUBPIXEL // 2
    crosses = (np.minimum(y0, y1) <= centres) & (centres < np.maximum(y0, y1))  # (E, side)
    crossing = x0 + (centres - y0) * (x1 - x0) // np.where(y1 == y0, 1, y1 - y0)
    first = (crossing + _SUBPIXEL // 2 - 1) // _SUBPIXEL  # the first sample whose centre is not left of the edge
    edge, row = np.nonzero(crosses)
    winding = np.zeros((side, side + 1), dtype=np.int32)
    np.add.at(winding, (row, np.clip(first[edge, row], 0, side)), np.sign(y1 - y0)[edge, 0])
    inside = np.cumsum(winding, axis=1)[:, :side] != 0
    covered = inside.reshape(size, samples, size, samples).sum(axis=(1, 3))
    return (covered * 255 // (samples * samples)).astype(np.uint8)
