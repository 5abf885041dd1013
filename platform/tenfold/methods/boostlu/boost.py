"""BoostLU and boosted class activation maps: positive scores are scaled before spatial pooling."""

import math

import torch
from torch import Tensor

from tenfold.models import activation_maps


def boostlu(x: Tensor, alpha: float) -> Tensor:
    """Return ``alpha * x`` where x is positive and x elsewhere; the derivative at exactly 0 is 1.

    Equal to ``max(x, alpha * x)`` only for alpha >= 1: below 1 the maximum would scale the negative scores instead, and
    its derivative at 0, a common score, would be the mean of both slopes.

    Args:
        x: Any shape, any floating dtype.
        alpha: Positive and finite.

    Returns:
        Tensor with the shape and dtype of x.

    Raises:
        ValueError: If alpha is out of range or x is not floating-point.
    """
    check_alpha(alpha)
    if not x.is_floating_point():
        raise ValueError(f"x must be floating-point, got {x.dtype}")
    return torch.where(x > 0, alpha * x, x)


def class_activation_maps(features: Tensor, weight: Tensor, bias: Tensor | None, alpha: float = 1.0) -> Tensor:
    """Compute the boosted class activation maps of a linear head.

    Args:
        features: Last feature map, ``(B, D, H, W)``.
        weight: Weight of the linear head ``(K, D)``, or of the 1x1 convolution ``(K, D, 1, 1)``.
        bias: ``(K,)``, added before the boost; None leaves it out.
        alpha: Positive and finite; 1 gives the raw maps.

    Returns:
        ``(B, K, H, W)``, whose spatial mean gives the logits.

    Raises:
        ValueError: If shapes don't match, the map has no locations, or alpha is out of range.
    """
    check_alpha(alpha)
    maps = activation_maps.class_activation_maps(features, weight, bias)
    return maps if alpha == 1 else boostlu(maps, alpha)


def check_alpha(alpha: float) -> None:
    """Check that the factor is positive and finite.

    Raises:
        ValueError: If it is 0, negative, infinite or NaN.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, got {alpha}; 1 leaves the scores as they are")
