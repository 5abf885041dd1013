"""The Large Loss objective: reject or correct the unobserved labels with the largest losses.

Kim, Kim, Akata and Lee, "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR 2022. Unobserved
labels are assumed negative; in mid-training the largest losses among them are mostly false negatives.
Shapes: B images in a batch, N in the training set, K classes. Labels: +1 observed positive, 0 unobserved, -1 observed
negative.

``large_loss_bce`` is the complete loss. A training loop that also records the losses composes the same three functions:
``assume_negative_losses``, ``large_loss_mask``, ``treated_mean``.
"""

import math
import operator

import torch
from torch import Tensor
from torch.nn import functional

SCHEMES = ("LL-R", "LL-Ct", "LL-Cp")
"""Schemes: reject, correct temporarily (for one step), correct permanently."""

_ROUNDING = 1e-9
"""Tolerance of the ceiling: a product that is an integer up to rounding is not rounded up."""


def large_loss_bce(
    logits: Tensor, labels: Tensor, scheme: str | None, rate: float, *, validate: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute assume-negative binary cross-entropy with the largest unobserved losses rejected or flipped.

    Args:
        logits: ``(B, K)``, any floating dtype.
        labels: ``(B, K)`` in {-1, 0, 1}.
        scheme: One of ``SCHEMES``; None is the plain assume-negative loss. "LL-Cp" equals "LL-Ct" within a step; the
            caller then stores the flips with ``apply_permanent_correction``.
        rate: Fraction of the B*K entries to treat, in [0, 1], from ``large_loss_rate``.
        validate: Check the values of labels and losses. This synchronises with the device in every step, so a training
            loop that has checked its label matrix once passes False; shapes are always checked.

    Returns:
        The mean over all B*K entries (rejected ones count as 0), shape ``()`` and dtype of the logits; and the treated
        entries, bool ``(B, K)``. No gradient flows through the selection.

    Raises:
        ValueError: If logits and labels are not matrices of one shape or empty, a label is outside {-1, 0, 1}, the
            scheme is unknown, the rate outside [0, 1], or a loss is not finite.
    """
    if scheme is not None:
        _check_scheme(scheme)
    _check_shapes(logits, labels)
    if validate:
        _check_labels(labels)
    count = num_large_losses(logits.numel(), rate)
    if scheme is None or count == 0:
        loss = functional.binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype))
        return loss, torch.zeros_like(labels, dtype=torch.bool)
    losses = assume_negative_losses(logits, labels)
    mask = large_loss_mask(losses, labels == 0, count, validate=validate)
    return treated_mean(logits, losses, mask, scheme), mask


def assume_negative_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the binary cross-entropy of every entry ``(B, K)``, all but observed positives assumed negative."""
    _check_shapes(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype), reduction="none")


def large_loss_mask(losses: Tensor, unobserved: Tensor, k: int, *, validate: bool = True) -> Tensor:
    """Select the k largest losses among the unobserved entries, jointly over images and classes.

    Args:
        losses: ``(B, K)``; gradients are ignored.
        unobserved: bool ``(B, K)``.
        k: Number of entries to select, 0 to B*K, from ``num_large_losses``.
        validate: Check that losses are finite, which synchronises with the device.

    Returns:
        bool ``(B, K)``, a subset of ``unobserved``. All losses equal to the k-th largest are selected, so there may
        be more than k; with fewer than k unobserved entries, all of them are.

    Raises:
        ValueError: If the shapes differ, ``k`` is outside 0..B*K, or a loss is not finite.
        TypeError: If ``unobserved`` is not boolean or ``k`` not an integer.
    """
    if losses.shape != unobserved.shape:
        raise ValueError(
            f"losses and unobserved must be alike, got {tuple(losses.shape)} and {tuple(unobserved.shape)}"
        )
    if unobserved.dtype != torch.bool:
        raise TypeError(f"unobserved must be boolean (labels == 0), got {unobserved.dtype}")
    k = operator.index(k)
    if not 0 <= k <= losses.numel():
        raise ValueError(f"k must lie in 0..{losses.numel()}, the number of losses, got {k}")
    losses = losses.detach()
    if validate and not torch.isfinite(losses).all():
        raise ValueError("losses must be finite, but the logits hold NaN or infinity; try a lower learning rate")
    if k == 0:
        return torch.zeros_like(unobserved)
    candidates = torch.where(unobserved, losses, 0)
    threshold = candidates.flatten().topk(k, sorted=False).values.min()
    # The threshold is 0 if fewer than k entries are unobserved; without the mask, observed entries would pass it.
    return unobserved & (losses >= threshold)


def treated_mean(logits: Tensor, losses: Tensor, mask: Tensor, scheme: str) -> Tensor:
    """Average ``losses (B, K)`` over all entries, those of ``mask (B, K)`` rejected (0) or flipped to positive.

    Args:
        logits: ``(B, K)`` that ``losses`` were computed from.
        losses: Output of ``assume_negative_losses``, attached to the graph.
        mask: bool ``(B, K)`` from ``large_loss_mask``: unobserved entries only.
        scheme: One of ``SCHEMES``.

    Raises:
        ValueError: If the scheme is unknown.
    """
    _check_scheme(scheme)
    if scheme == "LL-R":
        return losses.masked_fill(mask, 0).mean()
    # -log p, not the loss minus z, which would cancel for confident logits.
    return torch.where(mask, -functional.logsigmoid(logits), losses).mean()


def large_loss_rate(epoch: int, delta_rel: float, scheme: str, warmup_epochs: int = 1) -> float:
    """Return the fraction of a batch's entries to treat: 0 during warm-up, then growing (LL-R, LL-Ct) or constant.

    Args:
        epoch: Epoch, from 1.
        delta_rel: Increase per epoch, a fraction in [0, 1) (papers and command lines state it in percent).
        scheme: One of ``SCHEMES``. LL-Cp keeps its corrections, so its rate is constant.
        warmup_epochs: Number of initial epochs with the plain assume-negative loss.

    Returns:
        Rate in [0, 1].

    Raises:
        ValueError: If an argument is out of its range or the scheme is unknown.
    """
    _check_scheme(scheme)
    if epoch < 1:
        raise ValueError(f"epoch must be at least 1, got {epoch}")
    if not 0 <= delta_rel < 1:
        raise ValueError(f"delta_rel must be a fraction in [0, 1), got {delta_rel}; divide percent by 100")
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs must be at least 0, got {warmup_epochs}")
    if epoch <= warmup_epochs:
        return 0.0
    steps = 1 if scheme == "LL-Cp" else epoch - warmup_epochs
    return min(1.0, steps * float(delta_rel))


def num_large_losses(num_entries: int, rate: float) -> int:
    """Return the number of entries that a fraction ``rate`` of ``num_entries`` (B*K of this batch) is, rounded up.

    Raises:
        ValueError: If ``num_entries`` is below 1 or ``rate`` outside [0, 1] or NaN.
    """
    if num_entries < 1:
        raise ValueError(f"num_entries must be at least 1, got {num_entries}")
    if not 0 <= rate <= 1:  # also false for NaN
        raise ValueError(f"rate must lie in [0, 1], got {rate}")
    return 0 if rate == 0 else min(num_entries, max(0, math.ceil(num_entries * rate - _ROUNDING)))


def apply_permanent_correction(labels: Tensor, sample_index: Tensor, mask: Tensor) -> int:
    """Store the corrections of an LL-Cp step: entries of ``mask`` become observed positives, in place.

    Args:
        labels: The stored training labels ``(N, K)`` in {-1, 0, 1}; changed. May be on another device than the rest.
        sample_index: Rows of ``labels`` in the batch, integer ``(B,)``, unique.
        mask: bool ``(B, K)`` from ``large_loss_bce``.

    Returns:
        Number of entries changed.

    Raises:
        ValueError: Before anything is changed, if shapes do not match, an index is outside 0..N-1 or repeated, or
            ``mask`` has an entry whose label is not 0.
        TypeError: If ``sample_index`` is not integer or ``mask`` not boolean.
    """
    if labels.ndim != 2 or sample_index.ndim != 1 or mask.shape != (len(sample_index), labels.shape[1]):
        raise ValueError(
            "labels must be (N, K), sample_index (B,) and mask (B, K), got "
            f"{tuple(labels.shape)}, {tuple(sample_index.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if sample_index.is_floating_point() or sample_index.is_complex() or sample_index.dtype == torch.bool:
        raise TypeError(f"sample_index must be integer, got {sample_index.dtype}")
    index, mask = sample_index.to(labels.device, torch.int64), mask.to(labels.device)
    if ((index < 0) | (index >= len(labels))).any():
        raise ValueError(f"sample_index must lie in 0..{len(labels) - 1}, got {index.min()} to {index.max()}")
    if len(index.unique()) != len(index):
        raise ValueError("sample_index must be unique, got a repeated sample")
    rows = labels[index]  # (B, K), a copy
    if (mask & (rows != 0)).any():
        raise ValueError("mask must select unobserved entries (labels of 0), got one that is already observed")
    labels[index] = rows.masked_fill(mask, 1)
    return int(mask.sum())


def _check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(f"logits and labels must both be (B, K), got {tuple(logits.shape)} and {tuple(labels.shape)}")


def _check_labels(labels: Tensor) -> None:
    if not ((labels == 0) | (labels == 1) | (labels == -1)).all():
        raise ValueError("labels must be -1 (observed negative), 0 (unobserved) or 1 (observed positive)")
