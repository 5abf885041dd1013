"""Moment matching: the predictions of an ensemble as one Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.metrics.regression.elements import in_full_precision


class PredictiveMoments(NamedTuple):
    """Moments of a mixture of Gaussians with equal weights."""

    mean: Tensor
    """Mean of the means."""
    aleatoric: Tensor
    """Mean of the variances: irreducible noise."""
    epistemic: Tensor
    """Biased variance (1/K) of the means: disagreement of the members."""
    total: Tensor
    """Variance of the mixture, the sum of both."""


def predictive_moments(means: Tensor, variances: Tensor) -> PredictiveMoments:
    """Compute mean and variance of a mixture of K Gaussians (MC dropout, deep ensemble, test-time augmentation).

    Args:
        means: ``(K, ...)``, any floating dtype.
        variances: Non-negative; broadcasts to the shape of ``means``.

    Returns:
        Moments of shape ``(...)`` each, float32 for half precision.

    Raises:
        ValueError: No member axis or no members, mismatched shapes, a negative or NaN variance, not a floating dtype.
    """
    means, variances = in_full_precision(means, "means"), in_full_precision(variances, "variances")
    if not means.ndim or not len(means):
        raise ValueError(f"means must be (K, ...) with K at least 1, got {tuple(means.shape)}")
    same_axes = means.ndim == variances.ndim
    if not same_axes or any(own not in (1, wanted) for own, wanted in zip(variances.shape, means.shape, strict=True)):
        raise ValueError(
            f"variances must have the shape of means or 1 along an axis, got {tuple(variances.shape)} and "
            f"{tuple(means.shape)}"
        )
    if not bool((variances >= 0).all()):
        raise ValueError(f"variances must not be negative, got {variances.min().item()}")
    aleatoric = variances.expand_as(means).mean(dim=0)
    epistemic, mean = torch.var_mean(means, dim=0, correction=0)
    return PredictiveMoments(mean, aleatoric, epistemic, aleatoric + epistemic)
