"""A realigner in closed form: the concept logits of an image are normal, and corrections condition them.

The mean is the predicted logits, the covariance is one for all images. A correction sets a logit to a high or a low
level, the 95th and 5th percentile of the training logits, as Koh et al., "Concept Bottleneck Models", ICML 2020,
intervene; the other logits move to their conditional mean. With a covariance that is learnt on frozen logits this is
the post-hoc form of Vandenhirtz, Laguna, Marcinkevičs and Vogt, "Stochastic Concept Bottleneck Models", NeurIPS 2024
(there the corrected logits come from a confidence region, and concepts are means over samples).
Shapes: B images, T steps, K concepts, N training images, S samples.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.concept_realignment.checks import check_alike, check_concepts
from tenfold.methods.concept_realignment.realigner import check_call
from tenfold.methods.concept_realignment.rollout import validation_loss

RIDGES = (0.03, 0.3, 1.0, 3.0, 10.0)
"""Ridges that are tried, in units of the mean variance."""

_SURE = 1e-6  # predictions are clamped to [1e-6, 1 - 1e-6] before their logit
_BLOCK_ELEMENTS = 1 << 21
"""Elements of the blocks ``(b, K, K)`` of linear systems."""


class GaussianRealigner(nn.Module):
    """Conditional mean of the concept logits; a ``Realigner``.

    Args:
        covariance: Of the logits, symmetric and positive semidefinite, ``(K, K)``.
        low: Logit of a concept that is corrected to 0, ``(K,)``.
        high: To 1, at least ``low``.
        ridge: Positive variance that is added to corrected logits.

    Raises:
        ValueError: Shapes that differ, or values out of range.
    """

    covariance: Tensor
    low: Tensor
    high: Tensor
    ridge: Tensor
    reads_previous = False

    def __init__(self, covariance: Tensor, low: Tensor, high: Tensor, ridge: float = 1e-3) -> None:
        super().__init__()
        expected = (len(covariance), len(covariance))
        if covariance.shape != expected or low.shape != expected[:1] or high.shape != expected[:1]:
            raise ValueError(
                f"covariance must be (K, K), low and high (K,), "
                f"got {tuple(covariance.shape)}, {tuple(low.shape)} and {tuple(high.shape)}"
            )
        if not (high >= low).all():
            raise ValueError("high must be at least low, for every concept")
        if not ridge > 0:
            raise ValueError(f"ridge must be positive, got {ridge}")
        for name, value in (("covariance", covariance), ("low", low), ("high", high)):
            self.register_buffer(name, value.clone())
        self.register_buffer("ridge", torch.tensor(float(ridge), dtype=covariance.dtype))

    @classmethod
    def empty(cls, n_concepts: int) -> "GaussianRealigner":
        """Build a realigner into which a ``state_dict`` is loaded."""
        return cls(torch.eye(n_concepts), torch.zeros(n_concepts), torch.zeros(n_concepts))

    def forward(self, value: Tensor, mask: Tensor, c_hat: Tensor, state: Any = None) -> tuple[Tensor, None]:
        """Return realigned concepts and no state; arguments as in ``Realigner``.

        A correction strictly inside (0, 1) sets the logit to its own, between the levels. Blocks of images bound the
        memory.

        Raises:
            ValueError: Another K, or shapes that don't fit.
        """
        num_concepts = len(self.low)
        c_hat = check_call(value, mask, c_hat, num_concepts)
        flat = [each.expand(value.shape).reshape(-1, num_concepts) for each in (value, mask, c_hat)]
        step = max(1, _BLOCK_ELEMENTS // num_concepts**2)
        parts = [self._block(*block) for block in zip(*(each.split(step) for each in flat), strict=True)]
        out = torch.cat(parts).view(value.shape) if parts else torch.zeros_like(value)
        return torch.where(mask == 1, value, out), None

    def _block(self, value: Tensor, mask: Tensor, c_hat: Tensor) -> Tensor:
        """Return the conditional mean ``(b, K)`` of a block of images, as probabilities."""
        covariance, ridge = self.covariance.to(value.dtype), self.ridge.to(value.dtype)
        corrected = (mask == 1).to(value.dtype)
        logits = concept_logits(c_hat)
        levels = torch.logit(value).clamp(self.low.to(value.dtype), self.high.to(value.dtype))
        surprise = torch.where(mask == 1, levels - logits, 0.0)
        # Rows and columns of free concepts become those of the identity: one shape of system for every mask.
        system = covariance * corrected[:, :, None] * corrected[:, None]
        system = system + torch.diag_embed(torch.where(mask == 1, ridge, 1.0))
        solved = torch.cholesky_solve(surprise[..., None], torch.linalg.cholesky(system))[..., 0]
        moved = (logits + solved @ covariance).sigmoid()
        # Where nothing is corrected the prediction stays as it is, also beyond the clamp.
        return torch.where((mask == 1).any(1, keepdim=True), moved, c_hat)


def fit_gaussian(
    c_hat: Tensor,
    concepts: Tensor,
    c_hat_val: Tensor,
    concepts_val: Tensor,
    groups: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> GaussianRealigner:
    """Estimate the covariance from training predictions, and choose its kind and the ridge on validation data.

    The kinds are the covariance of the predicted logits, and that of the residuals, the level of the true concept minus
    the predicted logit. The choice is that with the lowest loss of ucp rollouts.

    Args:
        c_hat: Predictions for the training images ``(N, K)`` in [0, 1], N at least 2.
        concepts: Their true concepts ``(N, K)``.
        c_hat_val: Predictions for the validation images ``(M, K)``.
        concepts_val: Their true concepts.
        groups: Questions of the rollouts ``(G, K)``; None: concepts are asked one by one.
        ridges: Ridges to try, positive, in units of the mean variance.

    Raises:
        ValueError: Shapes that differ, values out of range, fewer than two images, or no ridges.
    """
    logits, low, high = _training_logits(c_hat, concepts, c_hat_val, concepts_val)
    residuals = low + concepts.to(c_hat.dtype) * (high - low) - logits
    return _choose([_covariance(logits), _covariance(residuals)], low, high, ridges, c_hat_val, concepts_val, groups)


def fit_stochastic(
    c_hat: Tensor,
    concepts: Tensor,
    c_hat_val: Tensor,
    concepts_val: Tensor,
    groups: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
    *,
    steps: int = 400,
    batch_size: int = 256,
    num_samples: int = 32,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> GaussianRealigner:
    """Learn the covariance on frozen logits by maximum likelihood; the ridge is chosen on validation data.

    The likelihood of the true concepts under logits ``mean + L eps``, eps standard normal, is estimated from samples:
    ``log mean_s prod_k Bernoulli(c_k | sigmoid(mean + L eps_s)_k)``; L is lower triangular, its diagonal positive.

    Args:
        c_hat: Predictions for the training images ``(N, K)`` in [0, 1], N at least 2.
        concepts: Their true concepts ``(N, K)``.
        c_hat_val: Predictions for the validation images ``(M, K)``.
        concepts_val: Their true concepts.
        groups: Questions of the rollouts ``(G, K)``; None: concepts are asked one by one.
        ridges: Ridges to try, positive, in units of the mean variance.
        steps: Steps of Adam.
        batch_size: Images of a step.
        num_samples: S.
        learning_rate: Of Adam.
        seed: Of the samples and the batches.

    Raises:
        ValueError: As in ``fit_gaussian``.
    """
    logits, low, high = _training_logits(c_hat, concepts, c_hat_val, concepts_val)
    truth = concepts.to(c_hat.dtype)
    num_images, num_concepts = logits.shape
    generator = torch.Generator(logits.device).manual_seed(seed)
    with torch.enable_grad():
        raw = torch.zeros(num_concepts, num_concepts, dtype=logits.dtype, device=logits.device).requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=learning_rate)
        for _ in range(steps):
            batch = torch.randint(num_images, (batch_size,), generator=generator, device=logits.device)
            noise = torch.randn(
                num_samples, batch_size, num_concepts, generator=generator, dtype=logits.dtype, device=logits.device
            )
            loss = -log_likelihood(logits[batch], truth[batch], _triangle(raw), noise).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    triangle = _triangle(raw.detach())
    return _choose([triangle @ triangle.T], low, high, ridges, c_hat_val, concepts_val, groups)


def log_likelihood(logits: Tensor, concepts: Tensor, triangle: Tensor, noise: Tensor) -> Tensor:
    """Estimate the log likelihood of concepts under normal logits.

    Args:
        logits: Mean ``(B, K)``.
        concepts: True concepts ``(B, K)``.
        triangle: L, ``(K, K)``: the covariance is L L^T.
        noise: Standard normal ``(S, B, K)``.

    Returns:
        Nats, ``(B,)``.
    """
    drawn = logits + noise @ triangle.T  # (S, B, K)
    target = concepts.expand_as(drawn)
    joint = -functional.binary_cross_entropy_with_logits(drawn, target, reduction="none").sum(-1)  # (S, B)
    return joint.logsumexp(0) - torch.tensor(float(len(noise)), dtype=logits.dtype, device=logits.device).log()


def concept_logits(c: Tensor) -> Tensor:
    """Return the logits of concepts, which are clamped to [1e-6, 1 - 1e-6]."""
    return torch.logit(c, eps=_SURE)


def _triangle(raw: Tensor) -> Tensor:
    return raw.tril(-1) + torch.diag(functional.softplus(raw.diagonal()) + 1e-6)


def _covariance(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred.T @ centred / (len(values) - 1)


def _training_logits(
    c_hat: Tensor, concepts: Tensor, c_hat_val: Tensor, concepts_val: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the data, and return the logits ``(N, K)`` with their 5th and 95th percentiles ``(K,)``."""
    check_alike(c_hat=c_hat, concepts=concepts)
    check_alike(c_hat_val=c_hat_val, concepts_val=concepts_val)
    for name, values in (("c_hat", c_hat), ("concepts", concepts), ("c_hat_val", c_hat_val)):
        check_concepts(name, values)
    if len(c_hat) < 2 or not len(c_hat_val):
        raise ValueError(f"c_hat must hold two images and c_hat_val one, got {len(c_hat)} and {len(c_hat_val)}")
    logits = concept_logits(c_hat)
    ordered = logits.sort(0).values  # torch.quantile refuses large inputs
    at = [min(len(ordered) - 1, round(share * (len(ordered) - 1))) for share in (0.05, 0.95)]
    return logits, ordered[at[0]], ordered[at[1]]


def _choose(
    covariances: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
    ridges: Sequence[float],
    c_hat_val: Tensor,
    concepts_val: Tensor,
    groups: Tensor | None,
) -> GaussianRealigner:
    if not len(ridges):
        raise ValueError("ridges must not be empty")
    candidates = []
    for covariance in covariances:
        unit = max(float(covariance.diagonal().mean()), 1e-6)
        candidates += [GaussianRealigner(covariance, low, high, ridge * unit).eval() for ridge in ridges]
    return min(
        candidates, key=lambda candidate: validation_loss(candidate, c_hat_val, concepts_val, groups, max_images=256)
    )
