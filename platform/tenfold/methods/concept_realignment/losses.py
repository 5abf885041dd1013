"""Losses of the realigner: over all steps of a rollout, and trained together with the network.

Singhi, Kim, Roth and Akata, ECCV 2024. Shapes: B images, T corrections, K concepts.
"""

from torch import Tensor
from torch.nn import functional


def realignment_loss(
    outputs: Tensor, c_true: Tensor, weight: Tensor | None = None, known: Tensor | None = None
) -> Tensor:
    """Compute the binary cross-entropy of realigned concepts, every step weighing the same.

    Args:
        outputs: Realigned concepts in [0, 1], ``(B, T + 1, K)`` or ``(B, K)``.
        c_true: True concepts ``(B, K)``, or in the shape of ``outputs``; in [0, 1].
        weight: Factor of each concept, on both terms of its cross-entropy, ``(K,)``; None: 1.
        known: 1 for concepts that count, ``(B, K)``, at least one; None: all.

    Returns:
        Mean over images, steps and concepts, nats, shape ``()``; logarithms are clamped at -100.

    Raises:
        ValueError: Shapes that don't fit.
    """
    losses = losses_of(outputs, c_true, weight)
    if known is None:
        return losses.mean()
    counts = (known[:, None] if losses.ndim == 3 else known).expand_as(losses).to(losses.dtype)
    return (losses * counts).sum() / counts.sum()


def joint_realignment_concept_loss(
    base: Tensor, initial: Tensor, final: Tensor, gamma: float, horizon: int, compat: bool = False
) -> Tensor:
    """Combine the concept losses of a network that is trained together with its realigner.

    With g = gamma^horizon, the mean of ``base`` and ``(initial + g final) / (1 + g)``; without corrections
    (``horizon`` 0) that of ``base`` and ``initial``.

    Args:
        base: Concept loss of the predictions, ``()``.
        initial: Of the concepts realigned before any correction.
        final: Of those realigned after ``horizon`` corrections.
        gamma: Growth of the last step's weight with each correction, positive.
        horizon: Number of corrections T, at least 0.
        compat: As in the released code, which leaves ``initial`` undivided:
            ``(base + initial + g final / (1 + g)) / 2``.

    Returns:
        Shape ``()``.

    Raises:
        ValueError: ``gamma`` or ``horizon`` out of range.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    if horizon < 0:
        raise ValueError(f"horizon must be at least 0, got {horizon}")
    if horizon == 0:
        return (base + initial) / 2
    growth = gamma**horizon
    if compat:
        return (base + initial + growth * final / (1 + growth)) / 2
    return (base + (initial + growth * final) / (1 + growth)) / 2


def losses_of(outputs: Tensor, c_true: Tensor, weight: Tensor | None) -> Tensor:
    """Return the cross-entropy of every entry of ``outputs``, in its shape; arguments as in ``realignment_loss``."""
    if outputs.ndim == 3 and c_true.ndim == 2:
        c_true = c_true[:, None].expand(-1, outputs.shape[1], -1)
    if outputs.ndim not in (2, 3) or c_true.shape != outputs.shape:
        raise ValueError(
            f"outputs must be (B, T + 1, K) or (B, K) and c_true (B, K) or alike, "
            f"got {tuple(outputs.shape)} and {tuple(c_true.shape)}"
        )
    if weight is not None and weight.shape != outputs.shape[-1:]:
        raise ValueError(f"weight must be (K,) = ({outputs.shape[-1]},), got {tuple(weight.shape)}")
    losses = functional.binary_cross_entropy(outputs, c_true.to(outputs.dtype), reduction="none")
    return losses if weight is None else losses * weight.to(losses.dtype)
