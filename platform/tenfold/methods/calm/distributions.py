"""Distributions of the probabilistic head over classes y and cue locations z.

Computed in log space: products of float32 probabilities underflow for a thousand classes. Shapes: B images, C classes,
H x W locations z; f: class scores, a: attention scores before phi.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.methods.calm.checks import at_least_float32, check_scores

Prior = Literal["softplus", "relu"]
_FAR_BELOW_ZERO = -20.0


class CalmDistributions(NamedTuple):
    """Distributions over classes y and locations z."""

    prior: Tensor
    """p(z|x) ``(B, 1, H, W)``; sums to 1 over the locations."""
    conditional: Tensor
    """p(y|x,z) ``(B, C, H, W)``; sums to 1 over the classes at each location."""
    joint: Tensor
    """p(y,z|x) ``(B, C, H, W)``; sums to 1 over classes and locations."""
    likelihood: Tensor
    """p(y|x) ``(B, C)``: the class probabilities."""
    posterior: Tensor
    """p(z|x,y) ``(B, C, H, W)``; sums to p(y|x) / (p(y|x) + eps) over the locations."""


def calm_distributions(f: Tensor, a: Tensor, prior: Prior = "softplus", eps: float = 1e-10) -> CalmDistributions:
    """Compute all distributions of the head.

    Args:
        f: Class scores ``(B, C, H, W)``, C at least 2.
        a: Attention scores before phi, ``(B, 1, H, W)``.
        prior: phi, which maps scores to positive potentials: ``softplus`` (the paper) or ``relu`` (the released code; a
            map without any positive score gives the uniform prior).
        eps: Added to p(y|x) in the denominator of the posterior, as published; 0 for a posterior that sums to 1.

    Returns:
        Five tensors in the dtype of f.

    Raises:
        ValueError: If shapes don't match, scores are not finite, the prior is unknown, there are fewer than two
            classes, or ``eps`` is negative.
    """
    check_scores(f, a)
    check_prior(prior)
    if f.shape[1] < 2:
        raise ValueError(f"f must have at least 2 classes, got {f.shape[1]}")
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    for name, scores in (("f", f), ("a", a)):
        if not torch.isfinite(scores).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity from the network")
    log_prior = log_location_prior(a, prior)
    log_conditional = functional.log_softmax(at_least_float32(f), dim=1)
    log_joint = log_conditional + log_prior
    log_likelihood = log_joint.logsumexp((2, 3))
    posterior = (log_joint - log_likelihood[..., None, None]).exp()
    likelihood = log_likelihood.exp()
    if eps > 0:
        posterior = posterior * (likelihood / (likelihood + eps))[..., None, None]
    parts = (log_prior.exp(), log_conditional.exp(), log_joint.exp(), likelihood, posterior)
    return CalmDistributions(*(part.to(f.dtype) for part in parts))


def log_class_likelihood(f: Tensor, a: Tensor, prior: Prior = "softplus") -> Tensor:
    """Compute log p(y|x) ``(B, C)``, at least float32: the logits of a CALM network, whose softmax is p(y|x)."""
    f = at_least_float32(f)
    # Class-independent terms first: saves one tensor of the size of f.
    return (f + (log_location_prior(a, prior) - f.logsumexp(1, keepdim=True))).logsumexp((2, 3))


def log_joint_at(
    f: Tensor, a: Tensor, labels: Tensor, prior: Prior = "softplus", detach_normalizer: bool = False
) -> Tensor:
    """Compute log p(y,z|x) of one class per image, ``(B, H, W)``, at least float32, with 1/C of the memory of all.

    -inf where the prior is 0. Arguments as in ``calm_em_loss``, unchecked.
    """
    f = at_least_float32(f)
    log_conditional = class_map(f, labels) - f.logsumexp(1)
    return log_conditional + log_location_prior(a, prior, detach_normalizer).squeeze(1)


def class_map(f: Tensor, labels: Tensor) -> Tensor:
    """Select the scores of one class per image, ``(B, H, W)`` out of ``(B, C, H, W)``."""
    return f[torch.arange(len(f), device=f.device), labels]


def log_location_prior(a: Tensor, prior: Prior = "softplus", detach_normalizer: bool = False) -> Tensor:
    """Compute log p(z|x) = log phi(a) - log sum over z of phi(a), at least float32, ``(B, 1, H, W)``.

    Args:
        a: Attention scores before phi, ``(B, 1, H, W)``.
        prior: phi.
        detach_normalizer: Exclude the sum from the gradient, as the released code does: locations then don't compete,
            the prior flattens and localisation is lost. For comparison only.
    """
    a = at_least_float32(a)
    log_potential = _log_softplus(a) if prior == "softplus" else _log_relu(a)
    log_sum = log_potential.logsumexp((2, 3), keepdim=True)
    return log_potential - (log_sum.detach() if detach_normalizer else log_sum)


def check_prior(prior: str) -> None:
    """Raise ValueError for an unknown phi."""
    if prior not in get_args(Prior):
        raise ValueError(f"prior must be one of {', '.join(get_args(Prior))}, got {prior!r}")


def _log_softplus(a: Tensor) -> Tensor:
    # Far below zero softplus(a) = exp(a) - exp(2a)/2 underflows, its logarithm a - exp(a)/2 does not. The default
    # threshold of softplus, 20, would cost digits in float64.
    is_far = a < _FAR_BELOW_ZERO
    near = functional.softplus(torch.where(is_far, 0.0, a), threshold=40).log()
    far = a - torch.where(is_far, a, 0.0).exp() / 2
    return torch.where(is_far, far, near)


def _log_relu(a: Tensor) -> Tensor:
    alive = a > 0
    log_potential = torch.where(alive, torch.where(alive, a, 1).log(), -torch.inf)
    # Without any positive score the published form is 0 / 0; equal potentials make the prior uniform.
    return torch.where(alive.any(dim=3, keepdim=True).any(dim=2, keepdim=True), log_potential, 0.0)
