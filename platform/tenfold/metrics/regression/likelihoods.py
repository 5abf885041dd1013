"""Negative log-likelihoods of a prediction that says how sure it is.

The Gaussian with a variance of its own for every element (Nix and Weigend, 1994) and the generalised Gaussian.
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
"""To which the shape of a generalised Gaussian is cut: lgamma(3 / b) overflows below 0.03."""
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
    """1/2 (ell + r^2 exp(-ell)) with r = target - mean and ell the log-variance.

    Args:
        mean: ``(B, ...)``, any floating dtype.
        log_variance: Broadcasts to the shape of ``mean``; taken as it is, nothing is clamped.
        target: The shape of ``mean``.
        full: Add the constant 1/2 log(2 pi), so that the number is a log-density.
        reduction: Over all elements of the shape of ``mean``.
        validate: Refuse NaN and infinity in the inputs. Costs a look at one number.

    Returns:
        Nats, shape ``()`` or that of ``mean`` (reduction ``none``), float32 for half precision.

    Raises:
        ValueError: Shapes that don't fit, no floating dtype, unknown reduction, inputs that are not finite.
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
    """(a |r|)^b - log a - log b + lgamma(1/b) + log 2, with inverse scale a and shape b.

    b = 2 and a = 1 / (sigma sqrt 2) is the Gaussian, b = 1 the Laplace distribution. The shape is cut to
    ``SHAPE_LIMITS``.

    Args:
        mean, target: One shape.
        inv_scale, shape: a and b, positive, each broadcasting to that shape.
        reduction: Over all elements.

    Returns:
        Nats, shape ``()`` or that of ``mean``.

    Raises:
        ValueError: Shapes that don't fit, unknown reduction, a or b not positive, mean or target not finite.
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
    """a^-2 Gamma(3/b) / Gamma(1/b), the shape b cut to ``SHAPE_LIMITS``.

    Args:
        inv_scale, shape: a and b, positive; their shapes broadcast.

    Raises:
        ValueError: Not positive, no floating dtype, shapes that don't broadcast.
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
    """Mean, what tells the spread, and target: shapes checked, half precision as float32.

    Raises:
        ValueError: Shapes that don't fit or no floating dtype.
    """
    check_pair(mean, target, spread, spread_name)
    return (
        in_full_precision(mean, "mean"),
        in_full_precision(spread, spread_name),
        in_full_precision(target, "target"),
    )


def check_finite_inputs(result: Tensor, **inputs: Tensor) -> None:
    """Refuse inputs that hold NaN or infinity, looking at them only where what came out of them is not finite.

    Whatever is computed must let NaN and infinity of every input through to ``result``. Finite inputs that overflow
    are not refused.

    Raises:
        ValueError: Names the input, how many of its values are not finite, and where the first is.
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
