"""A posterior with two modes that can be looked at: the location of a mixture of two normals.

theta_1 ~ N(0, 10), theta_2 ~ N(0, 1) (variances); x ~ 1/2 N(theta_1, s^2) + 1/2 N(theta_1 + theta_2, s^2). What the
data cannot tell is which component is which: (m, d) and (m + d, -d) have the same likelihood.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold.methods.gradient_uncertainty.steps import check_positive

PRIOR_VARIANCES = (10.0, 1.0)
_DATA_SEED = 1016


class GridPosterior(NamedTuple):
    """The posterior on a grid of G x H points."""

    first: Tensor
    """Values of theta_1, ``(G,)``."""
    second: Tensor
    """Values of theta_2, ``(H,)``."""
    probs: Tensor
    """``(G, H)``, sums to 1."""


def toy_potential(
    theta: Tensor, x: Tensor, *, dataset_size: int | None = None, likelihood_variance: float = 2.0
) -> Tensor:
    """Potential of each example, ``-log prior - n log p(x_i | theta)``, with all constants.

    The mean over a batch is the batch's estimate of the potential, and over all data the potential itself.

    Args:
        theta: ``(..., 2)``.
        x: ``(B,)``.
        dataset_size: n; None: B.
        likelihood_variance: s^2.

    Returns:
        ``(..., B)``, differentiable in theta.

    Raises:
        ValueError: Shapes that don't fit, no example, or a size or variance that is not above 0.
    """
    size = _checked_size(theta, x, dataset_size, likelihood_variance)
    first, second = theta[..., 0], theta[..., 1]
    negative_log_prior = sum(
        0.5 * (value.square() / variance + math.log(2 * math.pi * variance))
        for value, variance in zip((first, second), PRIOR_VARIANCES, strict=True)
    )
    log_likelihood = (
        torch.logaddexp(*_exponents(theta, x, likelihood_variance))
        - math.log(2)
        - 0.5 * math.log(2 * math.pi * likelihood_variance)
    )
    return negative_log_prior[..., None] - size * log_likelihood  # type: ignore[index]


def toy_gradients(
    theta: Tensor, x: Tensor, *, dataset_size: int | None = None, likelihood_variance: float = 2.0
) -> Tensor:
    """Gradient of ``toy_potential`` in theta, ``(..., B, 2)``, in closed form (arguments and errors are the same)."""
    size = _checked_size(theta, x, dataset_size, likelihood_variance)
    near, far = _exponents(theta, x, likelihood_variance)
    of_second = torch.sigmoid(far - near)  # (..., B): probability that x comes from the second component
    first, second = theta[..., :1], theta[..., 1:]
    pull_near, pull_far = (x - first) / likelihood_variance, (x - first - second) / likelihood_variance
    return torch.stack(
        [
            first / PRIOR_VARIANCES[0] - size * ((1 - of_second) * pull_near + of_second * pull_far),
            second / PRIOR_VARIANCES[1] - size * of_second * pull_far,
        ],
        dim=-1,
    )


def toy_data(
    num_examples: int = 100, *, offset: float = 2.0, likelihood_variance: float = 2.0, seed: int = _DATA_SEED
) -> Tensor:
    """Draws ``(n,)``, float64, half of them around 0 and half around ``offset`` by chance."""
    random = np.random.RandomState(seed)
    component = random.randint(0, 2, num_examples)
    return torch.from_numpy(random.normal(offset * component, math.sqrt(likelihood_variance)))


def toy_grid_posterior(
    x: Tensor,
    *,
    likelihood_variance: float = 2.0,
    first: tuple[float, float] = (-3.0, 5.0),
    second: tuple[float, float] = (-5.0, 5.0),
    resolution: int = 200,
) -> GridPosterior:
    """The posterior of all data on an even grid over the two ranges."""
    across, up = (torch.linspace(*span, resolution, dtype=torch.float64) for span in (first, second))
    theta = torch.stack(torch.meshgrid(across, up, indexing="ij"), dim=-1)  # (G, H, 2)
    # Row by row: the potential of every example on the whole grid is n times as large.
    potential = torch.stack(
        [toy_potential(row, x.double(), likelihood_variance=likelihood_variance).mean(-1) for row in theta]
    )
    return GridPosterior(across, up, torch.softmax(-potential.flatten(), 0).view_as(potential))


def _exponents(theta: Tensor, x: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Of the two components' densities, each ``(..., B)``."""
    first, second = theta[..., :1], theta[..., 1:]
    return -(x - first).square() / (2 * variance), -(x - first - second).square() / (2 * variance)


def _checked_size(theta: Tensor, x: Tensor, dataset_size: int | None, variance: float) -> int:
    if theta.ndim < 1 or theta.shape[-1] != 2 or x.ndim != 1 or not len(x):
        raise ValueError(
            f"theta must be (..., 2) and x (B,) with B at least 1, got {tuple(theta.shape)} and {tuple(x.shape)}"
        )
    check_positive("likelihood_variance", variance)
    if dataset_size is None:
        return len(x)
    if dataset_size < 1:
        raise ValueError(f"dataset_size must be at least 1, got {dataset_size}")
    return dataset_size
