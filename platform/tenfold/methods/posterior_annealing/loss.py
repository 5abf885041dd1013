"""The annealed heteroscedastic likelihood.

Upadhyay, Kim, Schmid, Schoelkopf and Akata, "Likelihood Annealing: Fast Calibrated Uncertainty for Regression", 2023.
The energy of a target is its Gaussian negative log-likelihood plus T times a prior: residuals are small, and sigma
matches them. T is annealed to 0 during training. At large residuals the gradient of the prior dominates.
Symbols: r = target - mean, ell the log-variance, sigma = exp(ell / 2), tau = T / (1 + T).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from tenfold.metrics.regression.elements import Reduction, check_positive, check_reduction, in_full_precision, reduced
from tenfold.metrics.regression.likelihoods import check_finite_inputs, full_precision_triple

Form = Literal["convex", "sum"]


def annealed_likelihood_loss(
    mean: Tensor,
    log_variance: Tensor,
    target: Tensor,
    *,
    tau: float,
    residual_weight: float = 1.0,
    coupling_weight: float = 1.0,
    residual_power: float = 2.0,
    detach_residual: bool = False,
    form: Form = "convex",
    reduction: Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    """Return (1 - tau) NLL + tau (l1 |r|^p + l2 (|r| - sigma)^2), with NLL = 1/2 (ell + r^2 exp(-ell)).

    Args:
        mean: ``(B, ...)``, any floating dtype; standardised, so that 1 is a typical magnitude.
        log_variance: ell; broadcasts to the shape of ``mean``; it is not clamped.
        target: Same shape as ``mean``.
        tau: Weight of the prior in [0, 1], from ``annealing_weight``. At 0 the loss is the plain likelihood.
        residual_weight: l1, at least 0.
        coupling_weight: l2, at least 0.
        residual_power: p, at least 1.
        detach_residual: Treat |r| in the coupling term as a constant, so that the term trains sigma only.
        form: ``sum`` keeps the full weight of the likelihood: NLL + T (...), T = tau / (1 - tau). Its scale falls with
            T, and Adam's second moment lags behind.
        reduction: Reduction over all elements of the shape of ``mean``.
        validate: Reject NaN and infinity in the inputs; costs one scalar check.

    Returns:
        Shape ``()`` or that of ``mean`` (reduction ``none``), float32 for half precision.

    Raises:
        ValueError: Shapes that do not match, a dtype that is not floating point, tau outside [0, 1] or 1 in the sum
            form, a negative weight, a power below 1, an unknown form or reduction, inputs that are not finite.
    """
    tau = _check_weight(tau)
    _check_settings(tau, residual_weight, coupling_weight, residual_power, form)
    check_reduction(reduction)
    mean, log_variance, target = full_precision_triple(mean, log_variance, target)
    strength = tau / (1 - tau) if form == "sum" else tau
    likelihood = 1.0 if form == "sum" else 1 - tau
    residual_weight, coupling_weight = strength * residual_weight, strength * coupling_weight

    residual = target - mean
    # One exponential serves both terms: sigma is its reciprocal. It has the (possibly smaller) shape of log_variance.
    inverse_std = torch.exp(-0.5 * log_variance)
    distance = residual.abs() if coupling_weight or residual_power != 2 else residual
    losses: Tensor | None = None
    if likelihood:
        score = residual * inverse_std
        losses = torch.addcmul(log_variance, score, score).mul(0.5 * likelihood)
    if residual_weight:
        if residual_power == 2:
            power = residual.square()
        else:
            power = distance if residual_power == 1 else distance.pow(residual_power)
        losses = power * residual_weight if losses is None else losses.add(power, alpha=residual_weight)
    if coupling_weight:
        gap = (distance.detach() if detach_residual else distance) - inverse_std.reciprocal()
        losses = gap.square() * coupling_weight if losses is None else losses.addcmul(gap, gap, value=coupling_weight)
    if losses is None:
        losses = torch.zeros_like(residual)
    if not likelihood:
        # Inputs without weight keep a gradient, 0, and still propagate NaN; sigma hides a log-variance of -infinity.
        losses = losses + 0.0 * log_variance
        if not residual_weight and (detach_residual or not coupling_weight):
            losses = losses + 0.0 * residual
    result = reduced(losses, reduction)
    if validate:
        check_finite_inputs(result, mean=mean, log_variance=log_variance, target=target)
    return result


def annealed_likelihood_modes(
    sigma: Tensor | float, tau: float, residual_weight: float, coupling_weight: float
) -> Tensor | float:
    """Return the distance r* of the two modes of the improper likelihood from the mean, for p = 2.

    r* = 2 T l2 sigma / (1 / sigma^2 + 2 T (l1 + l2)); it tends to sigma l2 / (l1 + l2) as T goes to infinity.

    Args:
        sigma: Predicted std, positive.
        tau: Weight of the prior in [0, 1]; 1 is the limit of infinite T.
        residual_weight: l1, at least 0.
        coupling_weight: l2, at least 0.

    Returns:
        r*, at least 0, a tensor if sigma is a tensor; 0 (a single mode) where tau or l2 is 0.

    Raises:
        ValueError: A sigma that is not positive, tau outside [0, 1], or a negative weight.
    """
    tau = _check_weight(tau)
    _check_settings(tau, residual_weight, coupling_weight, 2.0, "convex")
    if isinstance(sigma, Tensor):
        sigma = in_full_precision(sigma, "sigma")
        check_positive(sigma, "sigma")
    elif not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if not tau * coupling_weight:
        return torch.zeros_like(sigma) if isinstance(sigma, Tensor) else 0.0
    # Numerator and denominator are multiplied by 1 - tau, so that tau = 1 is no special case.
    return 2 * tau * coupling_weight * sigma / ((1 - tau) / sigma**2 + 2 * tau * (residual_weight + coupling_weight))


def _check_weight(tau: float) -> float:
    tau = float(tau)
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must lie in [0, 1], got {tau}")
    return tau


def _check_settings(
    tau: float, residual_weight: float, coupling_weight: float, residual_power: float, form: str
) -> None:
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
    if form == "sum" and tau == 1:
        raise ValueError("tau must be below 1 in the sum form, got 1; the weight of the prior is tau / (1 - tau)")
    for name, weight in (("residual_weight", residual_weight), ("coupling_weight", coupling_weight)):
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {weight}")
    if not 1 <= residual_power < math.inf:
        raise ValueError(f"residual_power must be at least 1, got {residual_power}")
