"""Negative log-likelihoods of predictive distributions.

The heteroscedastic Gaussian (Nix and Weigend, 1994) and the generalised Gaussian.
"""

import math

import torch
from torch import Tensor

from tenfold.metrics.regression.elements import (
    Reduction,
    check_broadcast,
    check_pair,
    check_positive,
    check_reduction,
    in_full_precision,
    reduced,
)

SHAPE_LIMITS = (0.1, 10.0)
"""Range that the shape of a generalised Gaussian is clamped to; lgamma(3 / b) overflows below 0.03."""
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def gaussian_nll(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    full: bool = False,
    reduction: Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    """Gaussian negative log-likelihood 1/2 (ell + r^2 exp(-ell)), with r = target - mean and ell the log-variance.

    Args:
        mean: ``(B, ...)``, any floating dtype.
        log_variance: Broadcasts to the shape of ``mean``; not clamped.
        target: Same shape as ``mean``.
        full: Add the constant 1/2 log(2 pi), for a proper log-density.
        reduction: Over all elements of the shape of ``mean``.
        validate: Raise on NaN and infinity in the inputs; checks a single number.

    Returns:
        Nats, shape ``()`` or that of ``mean`` (reduction ``none``), float32 for half precision.

    Raises:
        ValueError: Mismatched shapes, not a floating dtype, unknown reduction, non-finite inputs.
    """
    check_reduction(reduction)
    mean, log_variance, target = full_precision_triple(mean, log_variance, target)
    score = (target - mean) * torch.exp(-0.5 * log_variance)
    nll = torch.addcmul(log_variance, score, score).mul(0.5)
    result = reduced(nll + _HALF_LOG_TWO_PI if full else nll, reduction)
    if validate:
        check_finite_inputs(result, mean=mean, log_variance=log_variance, target=target)
    return result


def generalized_gaussian_nll(
    mean: Tensor, inv_scale: Tensor, shape: Tensor, target: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Generalised Gaussian negative log-likelihood (a |r|)^b - log a - log b + lgamma(1/b) + log 2.

    a is the inverse scale and b the shape: b = 2 and a = 1 / (sigma sqrt 2) is the Gaussian, b = 1 the Laplace
    distribution. The shape is clamped to ``SHAPE_LIMITS``.

    Args:
        mean, target: Same shape.
        inv_scale, shape: a and b, positive, broadcasting to that shape.
        reduction: Over all elements.

    Returns:
        Nats, shape ``()`` or that of ``mean``.

    Raises:
        ValueError: Mismatched shapes, unknown reduction, a or b not positive, mean or target not finite.
    """
    check_reduction(reduction)
    mean, inv_scale, target = full_precision_triple(mean, inv_scale, target, "inv_scale")
    shape = in_full_precision(shape, "shape")
    check_broadcast(shape, mean, f"mean {tuple(mean.shape)}, shape {tuple(shape.shape)}", "shape")
    check_positive(inv_scale, "inv_scale")
    check_positive(shape, "shape")
    b = shape.clamp(*SHAPE_LIMITS)
    distance = inv_scale * (target - mean).abs()
    nll = distance.pow(b) - inv_scale.log() - b.log() + torch.lgamma(1 / b) + math.log(2)
    result = reduced(nll, reduction)
    check_finite_inputs(result, mean=mean, target=target)
    return result


def generalized_gaussian_variance(inv_scale: Tensor, shape: Tensor) -> Tensor:
    """Variance a^-2 Gamma(3/b) / Gamma(1/b) of a generalised Gaussian, b clamped to ``SHAPE_LIMITS``.

    Args:
        inv_scale, shape: a and b, positive; their shapes broadcast.

    Raises:
        ValueError: Values not positive, not a floating dtype, shapes that do not broadcast.
    """
    inv_scale, shape = in_full_precision(inv_scale, "inv_scale"), in_full_precision(shape, "shape")
    check_positive(inv_scale, "inv_scale")
    check_positive(shape, "shape")
    try:
        inv_scale, shape = torch.broadcast_tensors(inv_scale, shape)
    except RuntimeError as error:
        raise ValueError(
            f"inv_scale and shape must broadcast, got {tuple(inv_scale.shape)} and {tuple(shape.shape)}"
        ) from error
    b = shape.clamp(*SHAPE_LIMITS)
    return torch.exp(torch.lgamma(3 / b) - torch.lgamma(1 / b) - 2 * inv_scale.log())


def full_precision_triple(
    mean: Tensor, spread: Tensor, target: Tensor, spread_name: str = "log_variance"
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the shapes of mean, spread and target and convert half precision to float32.

    Raises:
        ValueError: Mismatched shapes or not a floating dtype.
    """
    check_pair(mean, target, spread, spread_name)
    return (
        in_full_precision(mean, "mean"),
        in_full_precision(spread, spread_name),
        in_full_precision(target, "target"),
    )


def check_finite_inputs(result: Tensor, **inputs: Tensor) -> None:
    """Raise on inputs with NaN or infinity; they are inspected only if ``result`` is not finite.

    The computation must propagate NaN and infinity of every input to ``result``. Finite inputs that overflow do not
    raise.

    Raises:
        ValueError: Names the input, the number of its non-finite values, and the position of the first.
    """
    with torch.no_grad():
        if bool(torch.isfinite(result.sum())):
            return
        for name, tensor in inputs.items():
            wrong = ~torch.isfinite(tensor)
            if bool(wrong.any()):
                first = tuple(wrong.nonzero()[0].tolist())
                raise ValueError(
                    f"{name} must be finite, got NaN or infinity in {int(wrong.sum())} of {tensor.numel()} values, "
                    f"first at {first}; drop such targets, or lower the learning rate and clamp the log-variance"
                )
