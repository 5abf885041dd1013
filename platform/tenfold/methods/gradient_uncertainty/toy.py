"""A two-dimensional posterior with two modes: the locations of a mixture of two normals.

theta_1 ~ N(0, 10), theta_2 ~ N(0, 1) (variances); x ~ 1/2 N(theta_1, s^2) + 1/2 N(theta_1 + theta_2, s^2). The data do
not identify the components: (m, d) and (m + d, -d) have the same likelihood.
"""

import math

import torch
from torch import Tensor

from tenfold.methods.gradient_uncertainty.steps import check_positive

PRIOR_VARIANCES = (10.0, 1.0)


def toy_potential(
    theta: Tensor, x: Tensor, *, dataset_size: int | None = None, likelihood_variance: float = 2.0
) -> Tensor:
    """Return the potential of each example, ``-log prior - n log p(x_i | theta)``, with all constants.

    Its mean over a batch is the minibatch estimate of the potential; its mean over all data is the potential itself.

    Args:
        theta: ``(..., 2)``.
        x: ``(B,)``.
        dataset_size: n; None: B.
        likelihood_variance: s^2.

    Returns:
        ``(..., B)``, differentiable in theta.

    Raises:
        ValueError: Shapes that do not match, no example, or a size or variance that is not positive.
    """
    if theta.ndim < 1 or theta.shape[-1] != 2 or x.ndim != 1 or not len(x):
        raise ValueError(
            f"theta must be (..., 2) and x (B,) with B at least 1, got {tuple(theta.shape)} and {tuple(x.shape)}"
        )
    check_positive("likelihood_variance", likelihood_variance)
    if dataset_size is not None and dataset_size < 1:
        raise ValueError(f"dataset_size must be at least 1, got {dataset_size}")
    size = len(x) if dataset_size is None else dataset_size
    first, second = theta[..., :1], theta[..., 1:]
    negative_log_prior = sum(
        0.5 * (value.square() / variance + math.log(2 * math.pi * variance))
        for value, variance in zip((first, second), PRIOR_VARIANCES, strict=True)
    )
    exponents = [-residual.square() / (2 * likelihood_variance) for residual in (x - first, x - first - second)]
    log_likelihood = torch.logaddexp(*exponents) - math.log(2) - 0.5 * math.log(2 * math.pi * likelihood_variance)
    return negative_log_prior - size * log_likelihood
