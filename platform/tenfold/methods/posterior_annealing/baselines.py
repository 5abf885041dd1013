"""Baseline losses for posterior annealing."""

import torch
from torch import Tensor

from tenfold.metrics.regression.elements import Reduction, check_reduction, reduced
from tenfold.metrics.regression.likelihoods import check_finite_inputs, full_precision_triple


def beta_nll_loss(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    beta: float = 0.5,
    reduction: Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    """Return the beta-NLL: the Gaussian NLL, each element weighted by its detached variance to the power beta.

    Seitzer, Tavakoli, Antic and Martius, "On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic
    Neural Networks", ICLR 2022. beta = 0 is the plain NLL; with beta = 1 the mean receives the gradient of the squared
    error.

    Args:
        mean, target: Tensors of one shape.
        log_variance: Log-variance; broadcasts to that shape.
        beta: Exponent of the variance, in [0, 1].
        reduction: Reduction over all elements.
        validate: Reject NaN and infinity in the inputs.

    Returns:
        Shape ``()`` or that of ``mean``, float32 for half precision.

    Raises:
        ValueError: Shapes that do not match, beta outside [0, 1], an unknown reduction, inputs that are not finite.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    check_reduction(reduction)
    mean, log_variance, target = full_precision_triple(mean, log_variance, target)
    score = (target - mean) * torch.exp(-0.5 * log_variance)
    weight = torch.exp(beta * log_variance.detach()).mul(0.5)
    result = reduced(torch.addcmul(log_variance, score, score) * weight, reduction)
    if validate:
        check_finite_inputs(result, mean=mean, log_variance=log_variance, target=target)
    return result
