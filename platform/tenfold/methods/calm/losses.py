"""Objectives of CALM, EM and ML, and of the CAM baseline.

As the E step is recomputed at every step, the gradient of the EM loss is exactly that of the ML loss (Fisher's
identity); the values differ by the entropy of the posterior.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.methods.calm.checks import at_least_float32, check_labels, check_scores
from tenfold.methods.calm.distributions import Prior, check_prior, log_joint_at


def calm_em_loss(
    f: Tensor, a: Tensor, labels: Tensor, prior: Prior = "softplus", detach_normalizer: bool = False
) -> Tensor:
    """Compute the expected negative log joint under the current posterior, which has no gradient.

    -(1/B) sum over b and z of q(z) [log p(y_b|x_b,z) + log p(z|x_b)], q(z) = p(z|x_b,y_b).

    Args:
        f: Class scores ``(B, C, H, W)``.
        a: Attention scores before phi, ``(B, 1, H, W)``.
        labels: int64 ``(B,)`` in 0..C - 1.
        prior: phi, ``softplus`` or ``relu``.
        detach_normalizer: Exclude the prior's normaliser from the gradient, as in the released code.

    Returns:
        Scalar in nats, in the dtype of f (float32 for half precision, whose range is too small to scale a loss).

    Raises:
        ValueError: If shapes don't match, labels are not int64 or out of range, or the prior is unknown.
    """
    _check(f, a, labels, prior)
    return em_loss(log_joint_at(f, a, labels, prior, detach_normalizer))


def calm_ml_loss(
    f: Tensor, a: Tensor, labels: Tensor, prior: Prior = "softplus", detach_normalizer: bool = False
) -> Tensor:
    """Compute the negative log-likelihood with the location marginalised: -(1/B) sum over b of log p(y_b|x_b).

    Arguments, result and errors as in ``calm_em_loss``.
    """
    _check(f, a, labels, prior)
    return ml_loss(log_joint_at(f, a, labels, prior, detach_normalizer))


def cam_loss(f: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of the spatial mean of the scores: the CAM baseline, whose class maps are f.

    Args:
        f: Class scores ``(B, C, H, W)``.
        labels: int64 ``(B,)`` in 0..C - 1.

    Returns:
        Scalar in nats; dtype as in ``calm_em_loss``.

    Raises:
        ValueError: If f is not 4-D, or labels are not int64 or out of range.
    """
    check_scores(f)
    check_labels(labels, f.shape[0], f.shape[1])
    return functional.cross_entropy(at_least_float32(f).mean((2, 3)), labels)


def em_loss(log_joint: Tensor) -> Tensor:
    """Compute ``calm_em_loss`` from log p(y_b,z|x_b) ``(B, H, W)``."""
    with torch.no_grad():
        posterior = log_joint.flatten(1).softmax(1).view_as(log_joint)
    # Where the prior is 0 the logarithm is -inf, and the limit of q log q is 0.
    return -(posterior * log_joint.masked_fill(posterior == 0, 0.0)).sum((1, 2)).mean()


def ml_loss(log_joint: Tensor) -> Tensor:
    """Compute ``calm_ml_loss`` from log p(y_b,z|x_b) ``(B, H, W)``."""
    return -log_joint.logsumexp((1, 2)).mean()


def _check(f: Tensor, a: Tensor, labels: Tensor, prior: str) -> None:
    check_scores(f, a)
    check_labels(labels, f.shape[0], f.shape[1])
    check_prior(prior)
