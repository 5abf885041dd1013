"""Agreement of two models' class activation maps of an image, and their strength: the analysis of BoostLU (CVPR 2023).

Rank correlation tells whether two maps highlight the same locations, extreme means with which scores.
Shapes: M maps of H x W locations. All results are float64.
"""

import math

import torch
from torch import Tensor


def cam_rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman correlation over the locations of each pair of maps; tied scores share their mean rank.

    Args:
        a: ``(M, H, W)``.
        b: ``(M, H, W)``, or a single map ``(H, W)`` to compare with every map of ``a``.

    Returns:
        ``(M,)`` in [-1, 1]; NaN where a map is constant.

    Raises:
        ValueError: Mismatched shapes, empty maps, or non-finite values.
    """
    if a.ndim != 3 or 0 in a.shape[1:] or b.shape not in (a.shape, a.shape[1:]):
        raise ValueError(
            f"maps must be (M, H, W) against (M, H, W) or (H, W) and not empty, "
            f"got {tuple(a.shape)} against {tuple(b.shape)}"
        )
    for name, maps in (("a", a), ("b", b)):
        if not torch.isfinite(maps).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    first, second = _centred_ranks(a), _centred_ranks(b if b.ndim == 3 else b[None])
    norms = first.square().sum(1) * second.square().sum(1)
    return (first * second).sum(1) / norms.sqrt()  # 0 / 0 = NaN for a constant map


def centre_gaussian(h: int, w: int) -> Tensor:
    """Return a centred Gaussian map, the centre-bias baseline for ``cam_rank_correlation``.

    Standard deviations are a quarter of the height and of the width. Values are rounded to 12 decimals, so that
    locations at equal distance from the centre tie.

    Returns:
        float64 ``(h, w)``.

    Raises:
        ValueError: A size below 1.
    """
    if h < 1 or w < 1:
        raise ValueError(f"sizes must be at least 1, got {h} and {w}")

    def exponent(size: int) -> Tensor:
        places = torch.arange(size, dtype=torch.float64)
        return ((places - (size - 1) / 2) / (size / 4)).square() / 2

    return (-(exponent(h)[:, None] + exponent(w))).exp().round(decimals=12)


def cam_extreme_means(cam: Tensor, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
    """Mean of the highest and of the lowest scores of each map.

    Args:
        cam: ``(M, H, W)``.
        fraction: Share of the locations that counts as highest, and as lowest, in (0, 1]; at least one location.

    Returns:
        Means of the highest and of the lowest scores, each ``(M,)``.

    Raises:
        ValueError: Fraction out of range, wrong shape, or empty maps.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if cam.ndim != 3 or 0 in cam.shape[1:]:
        raise ValueError(f"cam must be (M, H, W) and not empty, got {tuple(cam.shape)}")
    places = cam.flatten(1).double()
    # The tolerance absorbs rounding: 0.05 * 20 locations is one location.
    count = max(1, math.ceil(fraction * places.shape[1] - 1e-9))
    top = places.topk(count, 1, sorted=False).values
    bottom = places.topk(count, 1, largest=False, sorted=False).values
    return top.mean(1), bottom.mean(1)


def _centred_ranks(maps: Tensor) -> Tensor:
    """Ranks minus their mean, ``(M, H * W)``; half-integers, hence exact."""
    values = maps.flatten(1).double().contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - values.shape[1]).double() / 2
