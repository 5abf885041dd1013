"""Curves over corrections: losses, accuracies, areas, targets, and the rule when to stop asking.

Singhi, Kim, Roth and Akata, ECCV 2024, section 4. Shapes: B images, T corrections, K concepts, C classes, S thresholds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold.methods.concept_realignment.divergence import with_two_classes
from tenfold.methods.concept_realignment.losses import losses_of


def intervention_curves(
    outputs: Tensor, c_true: Tensor, logits: Tensor, y: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute the curves over 0..T corrections.

    Args:
        outputs: Concepts after each correction, ``(B, T + 1, K)`` in [0, 1].
        c_true: True concepts ``(B, K)``.
        logits: Class logits after each correction, ``(B, T + 1, C)``; one logit is that of class 1 of two.
        y: Classes ``(B,)``.
        weight: Factor of each concept in the loss, ``(K,)``; None: 1.

    Returns:
        ``concept_loss``, the binary cross-entropy in nats, its logarithms clamped at -100; ``concept_accuracy``, the
        fraction of concepts on the right side of 0.5; ``class_accuracy``, a fraction; ``(T + 1,)`` each.

    Raises:
        ValueError: Shapes that don't fit, or no image.
    """
    if outputs.ndim != 3 or not len(outputs):
        raise ValueError(f"outputs must be (B, T + 1, K) with at least one image, got {tuple(outputs.shape)}")
    _check_logits(logits, y)
    if logits.shape[:2] != outputs.shape[:2]:
        raise ValueError(f"logits must be {(*outputs.shape[:2], 'C')}, got {tuple(logits.shape)}")
    losses = losses_of(outputs, c_true, weight)
    right = (outputs >= 0.5) == (c_true >= 0.5)[:, None]
    return {
        "concept_loss": losses.mean((0, 2)),
        "concept_accuracy": right.to(outputs.dtype).mean((0, 2)),
        "class_accuracy": (_predicted(logits) == y[:, None]).to(outputs.dtype).mean(0),
    }


def curve_auc(curve: Tensor) -> float:
    """Return the area under a curve of at least one point, by trapezoids of width 1."""
    if curve.ndim != 1 or not len(curve):
        raise ValueError(f"curve must be (T + 1,), got {tuple(curve.shape)}")
    return float(torch.trapezoid(curve.double()))


def interventions_to_target(curve: Tensor, target: float, direction: str = "below") -> int | None:
    """Return the first point of a curve ``(T + 1,)`` at or beyond a target; None if there is none.

    Args:
        curve: Values after 0..T corrections.
        target: In the unit of the curve.
        direction: ``below`` (at most the target) or ``above`` (at least).

    Raises:
        ValueError: An unknown direction.
    """
    if direction not in ("below", "above"):
        raise ValueError(f"direction must be below or above, got {direction!r}")
    reached = (curve <= target if direction == "below" else curve >= target).nonzero()
    return int(reached[0]) if len(reached) else None


def stopping_curve(logits: Tensor, y: Tensor, thresholds: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Ask until the probability of the most probable class reaches a threshold.

    Args:
        logits: Class logits after 0..T corrections, ``(B, T + 1, C)``.
        y: Classes ``(B,)``.
        thresholds: Probabilities, ``(S,)``.

    Returns:
        Mean number of questions, T for images that are never sure, and the accuracy when asking stops, ``(S,)`` each.

    Raises:
        ValueError: Shapes that don't fit, or no image.
    """
    _check_logits(logits, y)
    wide = with_two_classes(logits)
    sureness = (wide.amax(-1) - wide.logsumexp(-1)).exp()  # (B, T + 1)
    right = _predicted(logits) == y[:, None]
    limits = torch.as_tensor(thresholds, dtype=logits.dtype, device=logits.device).flatten()
    last = logits.shape[1] - 1
    sure = sureness[None, :, :-1] >= limits[:, None, None]  # (S, B, T)
    sure = torch.cat([sure, sure.new_ones(*sure.shape[:2], 1)], -1)
    stop = sure.to(torch.uint8).argmax(-1)  # (S, B), the first
    assert int(stop.max()) <= last
    accuracy = right.expand(len(limits), -1, -1).gather(2, stop[..., None])[..., 0]
    return stop.to(logits.dtype).mean(1), accuracy.to(logits.dtype).mean(1)


def cumulative_costs(selected: Tensor, costs: Tensor) -> Tensor:
    """Return the mean cost of all questions so far, ``(T + 1,)``.

    Args:
        selected: Question of each step, int64 ``(B, T)``.
        costs: Cost of each question, ``(G,)``.
    """
    if selected.ndim != 2 or not len(selected):
        raise ValueError(f"selected must be (B, T) with at least one image, got {tuple(selected.shape)}")
    spent = costs[selected].mean(0).cumsum(0)
    return torch.cat([spent.new_zeros(1), spent])


def _predicted(logits: Tensor) -> Tensor:
    """Return the most probable class, int64 ``(B, T + 1)``; of one logit, class 1 from a probability of 0.5."""
    return (logits[..., 0] >= 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)


def _check_logits(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 3 or not len(logits) or y.shape != (len(logits),):
        raise ValueError(
            f"logits must be (B, T + 1, C) with at least one image and y (B,), "
            f"got {tuple(logits.shape)} and {tuple(y.shape)}"
        )
