"""Policies: which concept, or group of concepts, to correct next; and the correction itself.

Singhi, Kim, Roth and Akata, "Improving Intervention Efficacy via Concept Realignment in Concept Bottleneck Models",
ECCV 2024; the policies ucp, ectp and coop are surveyed in Shin et al., "A Closer Look at the Intervention Procedure of
Concept Bottleneck Models", ICML 2023, and Chauhan et al., "Interactive Concept Bottleneck Models", AAAI 2023.
Shapes: B images, K concepts, G groups, C classes. Scores are ``(B, K)``, the largest is asked next, and a concept that
is corrected already has the score ``BLOCKED``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.methods.concept_realignment.checks import check_alike, check_concepts, check_groups, check_mask
from tenfold.methods.concept_realignment.divergence import flipped_logits, with_two_classes

BLOCKED = -1e10
"""Score of a concept that is corrected already."""

REDUCTIONS = ("mean", "max")
"""Score of a group from those of its members."""

_LOG_OFFSET = 1e-8  # of coop's entropy


def uncertainty_scores(c: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Score concepts by uncertainty (ucp), ``1 / (|c - 0.5| + eps)``.

    Args:
        c: Current concepts ``(B, K)`` in [0, 1].
        mask: 1 where a concept is corrected already, ``(B, K)``.
        eps: Bounds the score at ``1 / eps``.

    Returns:
        ``(B, K)``.

    Raises:
        ValueError: Shapes that differ, a mask that is not 0 or 1, or concepts that are NaN or outside [0, 1].
    """
    _check(c, mask)
    return blocked(uncertainty(c, eps), mask)


def expected_change_scores(c: Tensor, mask: Tensor, div_on: Tensor, div_off: Tensor) -> Tensor:
    """Score concepts by the expected change of the class (ectp), ``(1 - c) div_off + c div_on``.

    Args:
        c: Current concepts ``(B, K)`` in [0, 1].
        mask: 1 where a concept is corrected already, ``(B, K)``.
        div_on: Change of the class if the concept were 1, ``(B, K)``, from ``concept_flip_divergence``.
        div_off: If it were 0.

    Returns:
        ``(B, K)``, in the unit of the divergences.

    Raises:
        ValueError: As in ``uncertainty_scores``.
    """
    _check(c, mask, div_on=div_on, div_off=div_off)
    return blocked(expected_change(c, div_on, div_off), mask)


def random_scores(c: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Score concepts by chance, uniform in [0, 1).

    Args:
        c: Current concepts ``(B, K)``; only shape, dtype and device are read.
        mask: 1 where a concept is corrected already, ``(B, K)``.
        generator: Source of the random numbers; None: torch's global one.

    Returns:
        ``(B, K)``.

    Raises:
        ValueError: As in ``uncertainty_scores``.
    """
    _check(c, mask)
    return blocked(torch.rand(c.shape, generator=generator, dtype=c.dtype, device=c.device), mask)


def skyline_scores(c: Tensor, c_true: Tensor, mask: Tensor) -> Tensor:
    """Score concepts by their true error ``|c - c_true|``: a bound for policies, since it needs the truth.

    Args:
        c: Current concepts ``(B, K)`` in [0, 1].
        c_true: True concepts ``(B, K)``.
        mask: 1 where a concept is corrected already, ``(B, K)``.

    Returns:
        ``(B, K)``.

    Raises:
        ValueError: As in ``uncertainty_scores``.
    """
    _check(c, mask, c_true=c_true)
    return blocked((c - c_true).abs(), mask)


def order_scores(order: Tensor, groups: Tensor | None = None) -> Tensor:
    """Score concepts so that they, or their groups, are asked in a given order.

    Args:
        order: The groups, or the concepts if there are no groups, first to last, int64 ``(G,)``.
        groups: ``(G, K)``; None: every concept is its own group.

    Returns:
        ``(K,)``: 0 for the first, -1 for the second and so on; a policy of ``intervention_rollout``.

    Raises:
        ValueError: ``order`` does not hold every group once.
    """
    num_questions = len(order) if groups is None else len(groups)
    if order.ndim != 1 or order.sort().values.tolist() != list(range(num_questions)):
        raise ValueError(f"order must hold each of 0..{num_questions - 1} once, got {order.tolist()}")
    dtype = torch.get_default_dtype() if groups is None else groups.dtype
    scores = -order.argsort().to(dtype)
    return scores if groups is None else scores @ groups


def coop_scores(
    c_hat: Tensor, head: Callable[[Tensor], Tensor], pos: Tensor | None = None, neg: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Score concepts by uncertainty and by importance for the predicted class (coop), whose sum is the policy's score.

    Args:
        c_hat: Predicted concepts ``(B, K)`` in [0, 1].
        head: As in ``concept_flip_divergence``; linear ones are fast.
        pos: Embeddings of present concepts ``(B, K, E)``; None for a head that reads concepts.
        neg: Embeddings of absent concepts.

    Returns:
        The entropy of each concept in bits; and by how much the probability of the predicted class is expected to
        change, ``|c_hat p(y | 1) + (1 - c_hat) p(y | 0) - p(y)|``; ``(B, K)`` each. Nothing is blocked.

    Raises:
        ValueError: Concepts that are NaN or outside [0, 1].
    """
    check_concepts("c_hat", c_hat)
    inverse = 1 - c_hat
    entropy = -(c_hat * (c_hat + _LOG_OFFSET).log() + inverse * (inverse + _LOG_OFFSET).log()) / math.log(2)
    base, blocks = flipped_logits(head, c_hat, pos, neg)
    probs = with_two_classes(base).softmax(-1)
    top, predicted = probs.max(-1, keepdim=True)  # (B, 1)
    changes = []
    for columns, on, off in blocks:
        expected: Tensor | float = 0.0
        for weight, logits in ((c_hat[:, columns], on), (inverse[:, columns], off)):
            logits = with_two_classes(logits)
            chosen = logits.gather(-1, predicted[:, None].expand(-1, logits.shape[1], 1))[..., 0]
            expected = expected + weight * (chosen - logits.logsumexp(-1)).exp()
        changes.append((expected - top).abs())
    return entropy, torch.cat(changes, 1)


def information_scores(
    value: Tensor,
    mask: Tensor,
    c_hat: Tensor,
    realign: Callable[[Tensor, Tensor, Tensor], Tensor],
    class_probs: Callable[[Tensor, Tensor], Tensor],
    chunk: int = 4096,
    skip: Tensor | None = None,
) -> Tensor:
    """Score concepts by the drop of the class's entropy that is expected of correcting each, under the realigner.

    The answer is taken to be 1 with the probability ``value`` that the concept has now.

    Args:
        value: Current concepts ``(B, K)`` in [0, 1].
        mask: 1 where a concept is corrected already, ``(B, K)``.
        c_hat: Predicted concepts ``(B, K)``.
        realign: ``(value, mask, c_hat)``, ``(B', K)`` each, to concepts ``(B', K)``.
        class_probs: Concepts ``(B', K)`` and the image of each row, int64 ``(B',)`` in 0..B - 1, to class
            probabilities ``(B', C)``.
        chunk: Concept vectors that are evaluated at once, which bounds the memory.
        skip: 1 for further concepts that need no score, ``(B, K)``; they are not taken to be corrected. None: none.

    Returns:
        ``(B, K)``, nats.

    Raises:
        ValueError: As in ``uncertainty_scores``.
    """
    _check(value, mask, c_hat=c_hat)
    free = mask == 0
    if skip is not None:
        check_alike(mask=mask, skip=skip)
        free = free & (skip == 0)
    scores = torch.full_like(value, BLOCKED)
    pairs = free.nonzero()  # (P, 2)
    every_row = torch.arange(len(value), device=value.device)
    before = torch.cat(
        [_entropy(class_probs(value[rows], rows)) for rows in every_row.split(chunk)] or [value.new_empty(0)]
    )
    for block in pairs.split(max(1, chunk // 2)):
        rows, columns = block.T
        at = torch.arange(len(rows), device=value.device)
        masks = mask[rows].index_put((at, columns), mask.new_ones(()))
        after = []
        for answer in (1.0, 0.0):
            values = value[rows].index_put((at, columns), value.new_tensor(answer))
            after.append(_entropy(class_probs(realign(values, masks, c_hat[rows]), rows)))
        yes = value[rows, columns]
        gain = before[rows] - (yes * after[0] + (1 - yes) * after[1])
        scores = scores.index_put((rows, columns), gain.to(scores.dtype))
    return scores


def group_scores(scores: Tensor, G: Tensor, reduce: str = "mean") -> Tensor:  # noqa: N803 - the specification's name
    """Return the score of each group from those of its members.

    Args:
        scores: ``(B, K)``.
        G: Concepts of each group, ``(G, K)`` in {0, 1}.
        reduce: ``mean`` or ``max``.

    Returns:
        ``(B, G)``.

    Raises:
        ValueError: An unknown reduction, or groups that are not a partition of the K concepts.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    if scores.ndim != 2:
        raise ValueError(f"scores must be (B, K), got {tuple(scores.shape)}")
    check_groups(G, scores.shape[1])
    return reduce_scores(scores, G.to(scores), reduce)


def intervene(
    c: Tensor,
    c_true: Tensor,
    mask: Tensor,
    scores: Tensor,
    groups: Tensor | None = None,
    reduce: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Correct the concept, or the group of concepts, with the highest score; of equal ones the first.

    Args:
        c: Current concepts ``(B, K)``.
        c_true: True concepts ``(B, K)``.
        mask: 1 where a concept is corrected already, ``(B, K)``.
        scores: ``(B, K)``; those of corrected concepts don't count.
        groups: ``(G, K)``; None: concepts are corrected one by one.
        reduce: Score of a group from those of its members, ``mean`` or ``max``.

    Returns:
        Concepts after the correction ``(B, K)``; their mask ``(B, K)``; and the group, or the concept, int64 ``(B,)``.

    Raises:
        ValueError: Shapes that differ, values out of range, scores that are not finite, a row with nothing left, or a
            mask that is not the same for all members of a group.
    """
    _check(c, mask, c_true=c_true, scores=scores)
    scores = torch.where(mask == 1, BLOCKED, scores)
    if not scores.isfinite().all():
        raise ValueError("scores must be finite for concepts that are not corrected yet, got NaN or infinity")
    if groups is None:
        spent = mask == 1
    else:
        scores = group_scores(scores, groups, reduce)
        groups = groups.to(mask)
        masked = mask @ groups.T  # (B, G), members that are corrected
        spent = masked > 0
        if (spent & (masked != groups.sum(1))).any():
            raise ValueError("mask must be the same for all concepts of a group, got a group that is partly corrected")
    full = spent.all(1)
    if full.any():
        row = int(full.nonzero()[0, 0])
        raise ValueError(
            f"mask must leave something to correct in every row, got none in row {row}; stop after G steps"
        )
    selected = scores.masked_fill(spent, -math.inf).argmax(1)
    if groups is None:
        chosen = selected[:, None] == torch.arange(mask.shape[1], device=mask.device)
    else:
        chosen = groups[selected] == 1
    return torch.where(chosen, c_true, c), mask.masked_fill(chosen, 1.0), selected


def uncertainty(c: Tensor, eps: float = 1e-8) -> Tensor:
    """Return ``1 / (|c - 0.5| + eps)``, without checks or blocking."""
    return ((c - 0.5).abs() + eps).reciprocal()


def expected_change(c: Tensor, div_on: Tensor, div_off: Tensor) -> Tensor:
    """Return ``(1 - c) div_off + c div_on``, without checks or blocking."""
    return (1 - c) * div_off + c * div_on


def blocked(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the scores, ``BLOCKED`` where ``mask`` is 1."""
    return scores.masked_fill(mask == 1, BLOCKED)


def reduce_scores(scores: Tensor, groups: Tensor, reduce: str) -> Tensor:
    """Return the scores of groups ``(B, G)``, as ``group_scores`` but without checks."""
    if reduce == "mean":
        return scores @ (groups / groups.sum(1, keepdim=True)).T
    owner = groups.argmax(0).expand(len(scores), -1)  # (B, K)
    lowest = scores.new_full((len(scores), len(groups)), -math.inf)
    return lowest.scatter_reduce(1, owner, scores, "amax")


def per_cost(scores: Tensor, costs: Tensor | None) -> Tensor:
    """Return the scores ``(B, G)``, the positive ones divided by the costs ``(G,)``."""
    return scores if costs is None else torch.where(scores > 0, scores / costs, scores)


def _entropy(probs: Tensor) -> Tensor:
    """Return the entropy in nats of ``(B, C)``, ``(B,)``."""
    return torch.special.entr(probs).sum(-1)


def _check(c: Tensor, mask: Tensor, **others: Tensor) -> None:
    check_alike(c=c, mask=mask, **others)
    check_concepts("c", c)
    check_mask(mask)
