"""BoostLU, and class activation maps with it: positive scores times a factor, before they are averaged over space."""

import math

import torch
from torch import Tensor

from tenfold.models import activation_maps


def boostlu(x: Tensor, alpha: float) -> Tensor:
    """``alpha * x`` where x is positive, x elsewhere; the slope at exactly 0 is 1.

    Equal to ``max(x, alpha * x)`` for alpha >= 1 alone: below 1 that would scale the negative scores instead, and its
    slope at 0, which many scores are, would be the mean of both.

    Args:
        x: Any shape, any floating dtype.
        alpha: Positive and finite.

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: An alpha out of range, or an x that is not floating.
    """
    check_alpha(alpha)
    if not x.is_floating_point():
        raise ValueError(f"x must have a floating dtype, got {x.dtype}")
    return torch.where(x > 0, alpha * x, x)


def class_activation_maps(features: Tensor, weight: Tensor, bias: Tensor | None, alpha: float = 1.0) -> Tensor:
    """Class activation maps of a linear head, boosted.

    Args:
        features: Last feature map, ``(B, D, H, W)``.
        weight: Of the linear head ``(K, D)``, or of the 1x1 convolution ``(K, D, 1, 1)``.
        bias: ``(K,)``, boosted with the rest; None leaves it out.
        alpha: Positive and finite; 1 gives the raw maps.

    Returns:
        ``(B, K, H, W)``; its mean over space is the logits.

    Raises:
        ValueError: Shapes that don't fit together, a map without places, or an alpha out of range.
    """
    check_alpha(alpha)
    maps = activation_maps.class_activation_maps(features, weight, bias)
    return maps if alpha == 1 else boostlu(maps, alpha)


def check_alpha(alpha: float) -> None:
    """Refuse a factor that is not positive and finite.

    Raises:
        ValueError: It is 0, negative, infinite or NaN.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, got {alpha}; 1 leaves the scores as they are")
