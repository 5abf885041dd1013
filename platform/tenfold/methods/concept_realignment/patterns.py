"""A realigner that needs no training: which concept row of the training set is it?

Every distinct row r of the training concepts is a hypothesis, with its frequency as the prior. The predictions are
evidence through their ratio to the base rates, as if concepts were independent given the row, which is why an exponent
alpha, fitted on validation data, discounts them; a correction cuts the rows that disagree:

    log w_r = log prior_r + alpha sum_k [r_k log(c_k / p_k) + (1 - r_k) log((1 - c_k) / (1 - p_k))]
              + sum over corrected concepts of log v_k where r_k = 1, log(1 - v_k) where r_k = 0

with the first sum over concepts that are not corrected. One more hypothesis is a row that was never seen: its prior is
the Good-Turing estimate (I. J. Good, Biometrika 40, 1953), its evidence that of independent concepts with the base
rates, and its concepts come from another realigner.
Shapes: B images, T steps, K concepts, R distinct rows, N training images.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.methods.concept_realignment.checks import check_alike, check_concepts
from tenfold.methods.concept_realignment.realigner import Realigner, check_call
from tenfold.methods.concept_realignment.rollout import validation_loss

EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Values of alpha that are tried."""

_SURE = 1e-6
"""Predictions are clamped to [1e-6, 1 - 1e-6], so that no single one excludes a row."""
_IMPOSSIBLE = -1e30
"""Stands for the logarithm of 0 in a matrix product, where 0 times minus infinity would be NaN."""
_BLOCK_ELEMENTS = 1 << 22
"""Elements of the blocks ``(b, R)`` of the posterior."""


class PatternRealigner(nn.Module):
    """Posterior mean of the concepts over the rows of the training set; a ``Realigner``.

    Args:
        rows: Distinct concept rows ``(R, K)`` in {0, 1}.
        log_prior: Logarithms of their frequencies, nats, ``(R,)``.
        base_rate: Frequency of each concept, inside (0, 1), ``(K,)``.
        exponent: alpha, at least 0.
        unseen: Prior of a row that was never seen, inside (0, 1).
        fallback: Concepts of such a row; None: the predictions to the power of alpha.

    Raises:
        ValueError: Shapes that differ, or values out of range.
    """

    rows: Tensor
    log_prior: Tensor
    base_rate: Tensor
    exponent: Tensor
    unseen: Tensor

    def __init__(
        self,
        rows: Tensor,
        log_prior: Tensor,
        base_rate: Tensor,
        exponent: float = 1.0,
        unseen: float = 0.01,
        fallback: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if rows.ndim != 2 or log_prior.shape != rows.shape[:1] or base_rate.shape != rows.shape[1:]:
            raise ValueError(
                f"rows must be (R, K), log_prior (R,) and base_rate (K,), "
                f"got {tuple(rows.shape)}, {tuple(log_prior.shape)} and {tuple(base_rate.shape)}"
            )
        if not ((base_rate > 0) & (base_rate < 1)).all():
            raise ValueError("base_rate must lie inside (0, 1)")
        if not exponent >= 0:
            raise ValueError(f"exponent must be at least 0, got {exponent}")
        if not 0 < unseen < 1:
            raise ValueError(f"unseen must lie inside (0, 1), got {unseen}")
        dtype = base_rate.dtype
        for name, value in (("rows", rows.to(dtype)), ("log_prior", log_prior), ("base_rate", base_rate)):
            self.register_buffer(name, value.clone())
        self.register_buffer("exponent", torch.tensor(float(exponent), dtype=dtype))
        self.register_buffer("unseen", torch.tensor(float(unseen), dtype=dtype))
        self.fallback = fallback

    @classmethod
    def empty(cls, num_rows: int, n_concepts: int, fallback: nn.Module | None = None) -> "PatternRealigner":
        """Build a realigner of ``num_rows`` rows into which a ``state_dict`` is loaded."""
        return cls(
            torch.zeros(num_rows, n_concepts),
            torch.zeros(num_rows),
            torch.full((n_concepts,), 0.5),
            fallback=fallback,
        )

    @property
    def reads_previous(self) -> bool:
        """Whether the output depends on concepts that are not corrected: only if that of the fallback does."""
        return self.fallback is not None and bool(getattr(self.fallback, "reads_previous", True))

    def forward(self, value: Tensor, mask: Tensor, c_hat: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return realigned concepts, and the state of the fallback (None without one); arguments as in ``Realigner``.

        Corrections strictly inside (0, 1) weigh the rows instead of cutting them. Blocks of images bound the memory.

        Raises:
            ValueError: Another K, or shapes that don't fit.
        """
        num_concepts = self.rows.shape[1]
        c_hat = check_call(value, mask, c_hat, num_concepts)
        other, state = (
            (None, None) if self.fallback is None else cast(Realigner, self.fallback)(value, mask, c_hat, state)
        )
        flat = [each.expand(value.shape).reshape(-1, num_concepts) for each in (value, mask, c_hat)]
        step = max(1, _BLOCK_ELEMENTS // (len(self.rows) + 2 * num_concepts))
        features = torch.cat([self.rows, 1 - self.rows], 1).to(value.dtype)  # (R, 2 K)
        parts = []
        for start in range(0, len(flat[0]), step):
            known, corrected, predicted = (each[start : start + step] for each in flat)
            unseen = None if other is None else other.reshape(-1, num_concepts)[start : start + step]
            parts.append(self._block(features, known, corrected == 1, predicted, unseen))
        out = torch.cat(parts).view(value.shape) if parts else torch.zeros_like(value)
        return torch.where(mask == 1, value, out), state

    def _block(self, features: Tensor, value: Tensor, corrected: Tensor, c_hat: Tensor, other: Tensor | None) -> Tensor:
        """Return the posterior mean ``(b, K)`` of a block of images."""
        base, log_prior = self.base_rate.to(value.dtype), self.log_prior.to(value.dtype)
        exponent, unseen = self.exponent.to(value.dtype), self.unseen.to(value.dtype)
        clamped = c_hat.clamp(_SURE, 1 - _SURE)
        # In the order present, absent, as the features: (b, K) each.
        ratios = [exponent * (clamped / base).log(), exponent * ((1 - clamped) / (1 - base)).log()]
        answers = [value.log().clamp_min(_IMPOSSIBLE), (1 - value).log().clamp_min(_IMPOSSIBLE)]
        evidence = [torch.where(corrected, answer, ratio) for answer, ratio in zip(answers, ratios, strict=True)]
        # Both halves of the features, so that a row which agrees adds zeros and no large number has to cancel.
        seen = log_prior + (-unseen).log1p() + torch.cat(evidence, 1) @ features.T  # (b, R)
        seen = seen.masked_fill(seen < _IMPOSSIBLE / 2, -math.inf)
        independent = torch.logaddexp(base.log() + evidence[0], (-base).log1p() + evidence[1])  # (b, K)
        new = unseen.log() + independent.sum(1, keepdim=True)  # (b, 1)
        weights = torch.cat([seen, new], 1).softmax(1)
        if other is None:
            other = (
                base.log() + ratios[0] - torch.logaddexp(base.log() + ratios[0], (-base).log1p() + ratios[1])
            ).exp()
        num_concepts = value.shape[1]
        mean = weights[:, :-1] @ features[:, :num_concepts] + weights[:, -1:] * other
        return mean.clamp(0, 1)


def fit_patterns(
    concepts: Tensor,
    c_hat_val: Tensor,
    concepts_val: Tensor,
    groups: Tensor | None = None,
    fallback: nn.Module | None = None,
    exponents: Sequence[float] = EXPONENTS,
) -> PatternRealigner:
    """Collect the rows of the training set, and choose the exponent by the loss of ucp rollouts on validation data.

    The prior of a row that was never seen is the number of rows seen once over N, at least 1 / (N + 1) and at most
    N / (N + 1). Base rates are clamped to [1 / 2N, 1 - 1 / 2N].

    Args:
        concepts: True training concepts ``(N, K)`` in {0, 1}.
        c_hat_val: Predictions for the validation images ``(M, K)`` in [0, 1].
        concepts_val: Their true concepts ``(M, K)``.
        groups: Questions of the rollouts ``(G, K)``; None: concepts are asked one by one.
        fallback: Realigner, in evaluation mode, for rows that were never seen; None: the tempered predictions.
        exponents: Values of alpha to try.

    Raises:
        ValueError: Concepts that are not binary, shapes that differ, values out of range, or no exponents.
    """
    if concepts.ndim != 2 or not len(concepts) or not ((concepts == 0) | (concepts == 1)).all():
        raise ValueError(
            f"concepts must be a binary matrix (N, K) with at least one row, got {tuple(concepts.shape)}; "
            f"round soft values"
        )
    check_alike(c_hat_val=c_hat_val, concepts_val=concepts_val)
    check_concepts("c_hat_val", c_hat_val)
    if not len(exponents) or not len(c_hat_val):
        raise ValueError("exponents and the validation data must not be empty")
    num_images = len(concepts)
    rows, counts = torch.unique(concepts.to(c_hat_val.dtype), dim=0, return_counts=True)
    base_rate = concepts.to(c_hat_val.dtype).mean(0).clamp(0.5 / num_images, 1 - 0.5 / num_images)
    once = int((counts == 1).sum()) / num_images
    unseen = min(max(once, 1 / (num_images + 1)), num_images / (num_images + 1))
    log_prior = (counts.to(base_rate.dtype) / num_images).log()

    def build(exponent: float) -> PatternRealigner:
        return PatternRealigner(rows, log_prior, base_rate, exponent, unseen, fallback).eval()

    losses = {exponent: validation_loss(build(exponent), c_hat_val, concepts_val, groups) for exponent in exponents}
    return build(min(losses, key=lambda exponent: losses[exponent]))
