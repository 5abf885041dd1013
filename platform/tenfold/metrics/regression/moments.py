"""Many answers to one question, as one Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.metrics.regression.elements import in_full_precision


class PredictiveMoments(NamedTuple):
    """Of a mixture of Gaussians with equal weights."""

    mean: Tensor
    """Mean of the means."""
    aleatoric: Tensor
    """Mean of the variances: noise that no amount of data takes away."""
    epistemic: Tensor
    """Variance of the means, divided by K: how far the answers disagree."""
    total: Tensor
    """Variance of the mixture, the sum of the two."""


def predictive_moments(means: Tensor, variances: Tensor) -> PredictiveMoments:
    """Mean and variance of the mixture of K Gaussians (passes with dropout, members of an ensemble, noisy inputs).

    Args:
        means: ``(K, ...)``, any floating dtype.
        variances: Not negative; broadcasts to the shape of ``means``.

    Returns:
        Each of shape ``(...)``, float32 for half precision.

    Raises:
        ValueError: No axis or nothing along it, shapes that don't fit, a negative or NaN variance, no floating dtype.
    """
    means, variances = in_full_precision(means, "means"), in_full_precision(variances, "variances")
    if not means.ndim or not len(means):
        raise ValueError(f"means must be (K, ...) with K at least 1, got {tuple(means.shape)}")
    same_axes = means.ndim == variances.ndim
    if not same_axes or any(own not in (1, wanted) for own, wanted in zip(variances.shape, means.shape, strict=True)):
        raise ValueError(
            f"variances must have the shape of means or 1 in its place, got {tuple(variances.shape)} and "
            f"{tuple(means.shape)}"
        )
    if not bool((variances >= 0).all()):
        raise ValueError("variances must not be negative or NaN")
    aleatoric = variances.expand_as(means).mean(dim=0)
    epistemic, mean = torch.var_mean(means, dim=0, correction=0)
    return PredictiveMoments(mean, aleatoric, epistemic, aleatoric + epistemic)
