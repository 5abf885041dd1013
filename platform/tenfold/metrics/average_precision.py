"""Average precision of multi-label scores, all classes at once.

Scores are sorted once per class, descending, and precision is evaluated at the positives only. Tied scores form one
threshold, as in ``sklearn.metrics.average_precision_score``. A class without positives has an average precision of 0
and counts in the mean; a class without observed entries is left out (NaN).
Shapes: N images, K classes, G groups of classes.
"""

import torch
from torch import Tensor

_ENTRIES_AT_ONCE = 1 << 21
"""Scores sorted at a time; bounds working memory to some 100 MB whatever the number of classes."""


def average_precision(scores: Tensor, targets: Tensor, observed: Tensor | None = None) -> Tensor:
    """Compute the area under each class's precision-recall curve, without interpolation.

    Args:
        scores: ``(N, K)``, any real dtype, higher means more confident. Prefer logits to probabilities: in float32 the
            sigmoid saturates to 1 for all logits above 17.
        targets: ``(N, K)`` in {0, 1}; ignored where not observed.
        observed: bool ``(N, K)``, entries to evaluate; None evaluates all.

    Returns:
        float64 ``(K,)`` in [0, 1], on the device of the scores; 0 for a class without positives, NaN for a class
        without observed rows.

    Raises:
        ValueError: If shapes differ, a score is not finite, or an observed target is neither 0 nor 1.
    """
    _check_shapes(scores, targets, observed)
    num_rows, num_classes = scores.shape
    classes_at_once = max(1, _ENTRIES_AT_ONCE // max(num_rows, 1))
    chunks = [
        _average_precision_of_chunk(
            scores[:, start : start + classes_at_once],
            targets[:, start : start + classes_at_once],
            None if observed is None else observed[:, start : start + classes_at_once],
        )
        for start in range(0, num_classes, classes_at_once)
    ]
    return torch.cat(chunks)


def mean_average_precision(scores: Tensor, targets: Tensor, observed: Tensor | None = None) -> float:
    """Mean of ``average_precision`` over the classes with observed rows, in percent.

    Takes the same arguments and raises the same errors; NaN if no class has an observed row.
    """
    return 100 * average_precision(scores, targets, observed).nanmean().item()


def group_mean_ap(ap: Tensor, train_counts: Tensor, num_groups: int = 5) -> Tensor:
    """Mean average precision of groups of classes, from rare to frequent.

    Args:
        ap: Average precision ``(K,)`` in [0, 1]; NaN excludes a class.
        train_counts: Number of training annotations of each class ``(K,)``.
        num_groups: G; the classes, sorted by count (stable), are split into G runs whose lengths differ by at most
            one, longer runs first.

    Returns:
        float64 ``(G,)`` in percent, from the rarest to the most frequent classes; NaN for a group without values.

    Raises:
        ValueError: If the shapes differ, a value of ``ap`` is outside [0, 1], or ``num_groups`` is below 1.
    """
    if ap.ndim != 1 or ap.shape != train_counts.shape:
        raise ValueError(
            f"ap and train_counts must both be (K,), got {tuple(ap.shape)} and {tuple(train_counts.shape)}"
        )
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if ((ap < 0) | (ap > 1)).any():
        low, high = ap.nan_to_num().aminmax()
        raise ValueError(f"ap must lie in [0, 1], got {low} to {high}; divide percentages by 100")
    by_count = train_counts.argsort(stable=True)
    groups = torch.tensor_split(100 * ap.double()[by_count.to(ap.device)], num_groups)
    return torch.stack([group.nanmean() for group in groups])


def _check_shapes(scores: Tensor, targets: Tensor, observed: Tensor | None) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0 or scores.shape != targets.shape:
        raise ValueError(
            f"scores and targets must both be (N, K) with K > 0, got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    if observed is not None and (observed.shape != scores.shape or observed.dtype != torch.bool):
        raise ValueError(
            f"observed must be bool {tuple(scores.shape)}, got {observed.dtype} {tuple(observed.shape)}; "
            "for targets with -1 for unobserved, pass observed = targets >= 0"
        )


def _average_precision_of_chunk(scores: Tensor, targets: Tensor, observed: Tensor | None) -> Tensor:
    """Average precision ``(k,)`` of a chunk of classes, ``scores (N, k)``."""
    positive = targets == 1
    wrong = ~positive & (targets != 0)
    if observed is not None:
        wrong &= observed
        positive &= observed
    if wrong.any():
        raise ValueError(f"targets must be 0 or 1 where observed, got {targets[wrong][0].item()}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores must be finite, got NaN or infinity; check the model's outputs")
    if not scores.is_floating_point():
        scores = scores.double()
    if observed is not None:
        # Ranked behind every finite score, where they add no true positive, so their precision does not matter.
        scores = scores.masked_fill(~observed, -torch.inf)

    num_rows = len(scores)
    ranked, order = scores.T.contiguous().sort(dim=1, descending=True)  # (k, N)
    hits = positive.T.gather(1, order)  # (k, N)
    classes, places = hits.nonzero(as_tuple=True)  # of each positive, by class, best rank first
    counts = hits.sum(1)
    first = (counts.cumsum(0) - counts)[classes]
    found = torch.arange(1, len(classes) + 1, device=scores.device) - first
    last_of_run = torch.ones_like(hits)
    torch.ne(ranked[:, 1:], ranked[:, :-1], out=last_of_run[:, :-1])
    if not last_of_run.all():
        # Tied scores are one threshold: count to the end of the run, which may hold further positives.
        ends = last_of_run.flatten().nonzero().squeeze(1)
        flat = classes * num_rows + places
        end = ends[torch.searchsorted(ends, flat)]
        found = torch.searchsorted(flat, end, right=True) - first
        places = end - classes * num_rows
    precision = found / (places + 1).double()
    # Each positive adds 1 / counts to the recall.
    value = torch.segment_reduce(precision, "sum", lengths=counts) / counts.clamp(min=1)
    looked_at = torch.full_like(counts, num_rows) if observed is None else observed.sum(0)
    return torch.where(looked_at > 0, value, torch.nan)
