"""The likelihood losses that posterior annealing is compared with."""

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
    """Gaussian likelihood, each element weighted with its variance to the power beta, through which nothing is learnt.

    Seitzer, Tavakoli, Antic and Martius, "On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic
    Neural Networks", ICLR 2022. beta = 0 is the plain likelihood; beta = 1 gives the mean the gradient of the squared
    error.

    Args:
        mean, target: One shape.
        log_variance: Broadcasts to it.
        beta: In [0, 1].
        reduction: Over all elements.
        validate: Refuse NaN and infinity in the inputs.

    Returns:
        Shape ``()`` or that of ``mean``, float32 for half precision.

    Raises:
        ValueError: Shapes that don't fit, beta outside [0, 1], unknown reduction, inputs that are not finite.
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
