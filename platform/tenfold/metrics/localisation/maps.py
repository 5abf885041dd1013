"""Post-processing of raw score maps to maps in [0, 1] of the image's size, as in CALM (ICCV 2021)."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tenfold.metrics.localisation.arrays import AnyArray, like, to_tensor

Normalization = Literal["max", "minmax", "clipping"]
Spacing = Literal["even", "log"]
LOG_DECADES = 7
"""Logarithmic thresholds go down to 1e-7."""


def resize_score_map(s: AnyArray, size: int | tuple[int, int]) -> AnyArray:
    """Resize maps bilinearly, with half-pixel centres and no antialiasing.

    Args:
        s: One map ``(h, w)``, or ``(B, h, w)``.
        size: Side of a square, or (height, width).

    Returns:
        ``(H, W)`` or ``(B, H, W)`` in the dtype of s.

    Raises:
        ValueError: Wrong shape, or a size below 1.
    """
    maps = _check(to_tensor(s))
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    resized = functional.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return like(resized if s.ndim == 3 else resized[0], s)


def normalize_score_map(s: AnyArray, kind: Normalization = "minmax") -> AnyArray:
    """Normalise each map to [0, 1].

    ``max``: s / max s; ``minmax``: (s - min s) / (max s - min s); ``clipping``: s itself, for probabilities. All are
    then clipped to [0, 1]. A map that is constant or contains a non-finite value becomes 0.

    Args:
        s: One map ``(H, W)``, or ``(B, H, W)``.
        kind: Normalisation to apply.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: Unknown kind, or wrong shape.
    """
    if kind not in get_args(Normalization):
        raise ValueError(f"kind must be one of {', '.join(get_args(Normalization))}, got {kind!r}")
    maps = _check(to_tensor(s))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    if kind == "max":
        result = maps / high
    elif kind == "minmax":
        result = (maps - low) / (high - low)
    else:
        result = maps
    usable = torch.isfinite(low) & torch.isfinite(high) & (low < high)
    # 0 / 0 where the maximum of a map is 0: nothing stands out there.
    result = torch.where(usable, result.nan_to_num(nan=0.0), 0.0).clamp(0, 1)
    return like(result if s.ndim == 3 else result[0], s)


def score_thresholds(interval: float, kind: Spacing = "even") -> Tensor:
    """Return thresholds for a map in [0, 1].

    ``even``: 0, i, 2i ... below 1. ``log``: 10^-(0, 7i, 14i ... below 7), for probabilities of single locations, which
    are tiny. Average precisions with different spacings are not comparable.

    Args:
        interval: i, in (0, 1).
        kind: Spacing of the thresholds.

    Returns:
        Ascending float64, 1-D.

    Raises:
        ValueError: Unknown kind, or an interval outside (0, 1).
    """
    if kind not in get_args(Spacing):
        raise ValueError(f"kind must be one of {', '.join(get_args(Spacing))}, got {kind!r}")
    if not 0 < interval < 1:
        raise ValueError(f"interval must lie in (0, 1), got {interval}")
    if kind == "even":
        return torch.from_numpy(np.arange(0, 1, interval))
    exponents = np.arange(0, LOG_DECADES, LOG_DECADES * interval)
    return torch.from_numpy(np.power(10.0, -exponents)[::-1].copy())


def _check(maps: Tensor) -> Tensor:
    """Check maps and return them as floating ``(B, H, W)``."""
    if maps.ndim not in (2, 3) or not maps.numel():
        raise ValueError(f"a score map must be (H, W) or (B, H, W) and not empty, got {tuple(maps.shape)}")
    maps = maps if maps.is_floating_point() else maps.to(torch.get_default_dtype())
    return maps if maps.ndim == 3 else maps[None]
