"""Accuracy of all repetitions of all prompt sets at once, from one matrix of stacked class prototypes.

Shapes: N images, D embedding width, C classes, R repetitions, T distinct prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.methods.waffleclip.prompt_sets import distinct_prompts
from tenfold.methods.waffleclip.scoring import class_scores, prototypes
from tenfold.methods.waffleclip.settings import Aggregate

TOP = 5
SCORES_AT_ONCE = 2**25
"""Scores held at a time, 128 MB in float32."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of every class in one repetition, as rows of the table of distinct prompts."""

    rows: np.ndarray
    """int64 ``(sum of counts,)``, class by class."""
    counts: np.ndarray
    """Number of prompts of each class, int64 ``(C,)``, each at least 1."""


@dataclass(frozen=True)
class Hits:
    """Hits of every repetition."""

    top1: Tensor
    """Whether the true class is first, bool ``(R, N)``."""
    top5: Tensor | None
    """Whether the true class is among the first five, bool ``(R, N)``; None with five classes or fewer."""


def index_prompts(sets: Sequence[Mapping[str, Sequence[str]]]) -> tuple[list[str], list[PromptSet]]:
    """Deduplicate the prompts of some prompt sets; return the distinct prompts, and each set as rows of them."""
    texts, rows, counts = distinct_prompts(sets)
    of_class = np.array(counts, dtype=np.int64).reshape(len(sets), -1)
    parts = np.split(np.array(rows, dtype=np.int64), np.cumsum(of_class.sum(axis=1))[:-1])
    return texts, [PromptSet(part, own) for part, own in zip(parts, of_class, strict=True)]


def pooled(sets: Sequence[PromptSet]) -> PromptSet:
    """Merge repetitions into one prompt set in which every class has its prompts of all of them."""
    parts = [np.split(each.rows, np.cumsum(each.counts)[:-1]) for each in sets]
    rows = [each[at] for at in range(len(parts[0])) for each in parts]
    return PromptSet(np.concatenate(rows), np.sum([each.counts for each in sets], axis=0))


def class_matrix(texts: Tensor, prompts: PromptSet, aggregate: Aggregate) -> Tensor:
    """Prototypes ``(C, D)`` whose inner products with images are the class scores.

    ``sum`` is divided by the mean number of prompts of a class, which preserves the order of the scores and keeps them
    on the scale of cosines.

    Raises:
        ValueError: The aggregate is ``max``, which is not an inner product with one vector.
    """
    if aggregate == "max":
        raise ValueError("aggregate must be mean, sum or merged, got 'max'; keep prompt embeddings instead")
    embeddings = texts[torch.from_numpy(prompts.rows)]
    means = prototypes(embeddings, prompts.counts.tolist(), "merged" if aggregate == "merged" else "mean")
    if aggregate == "sum":
        counts = torch.from_numpy(prompts.counts).to(means)
        return means * (counts / counts.mean())[:, None]
    return means


def score_repetitions(
    images: Tensor, labels: Tensor, texts: Tensor, sets: Sequence[PromptSet], aggregate: Aggregate
) -> Hits:
    """Find for each image whether its true class is first, and whether it is among the first five.

    Args:
        images: Unit rows ``(N, D)``.
        labels: int64 ``(N,)``.
        texts: Unit rows of the distinct prompts ``(T, D)``, on the same device.
        sets: R prompt sets over the same classes.
        aggregate: Aggregation of the scores of a class's prompts.
    """
    num_classes = len(sets[0].counts)
    stacked = PromptSet(np.concatenate([each.rows for each in sets]), np.concatenate([each.counts for each in sets]))
    if aggregate == "max":
        vectors = texts[torch.from_numpy(stacked.rows)]
    else:  # (R C, D): one product scores all repetitions
        vectors = torch.cat([class_matrix(texts, each, aggregate) for each in sets])
    ranks = []
    step = max(1, SCORES_AT_ONCE // len(vectors))
    for at in range(0, len(images), step):
        part = images[at : at + step]
        if aggregate == "max":
            scores = class_scores(part, vectors, stacked.counts.tolist(), aggregate)
        else:
            scores = part @ vectors.T
        ranks.append(_ranks(scores.view(len(part), len(sets), num_classes), labels[at : at + step]))
    rank = torch.cat(ranks).T.cpu()  # (R, N)
    return Hits(rank == 0, rank < TOP if num_classes > TOP else None)


def _ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of classes ranked before the true one ``(B, R)``; ties go to the lower class index."""
    place = labels[:, None, None]
    own = scores.gather(2, place.expand(-1, scores.shape[1], 1))
    earlier = torch.arange(scores.shape[2], device=scores.device) < place
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=2)


def accuracy_summary(hits: Hits) -> dict[str, float]:
    """Mean, population standard deviation, minimum and maximum accuracy in percent over the repetitions."""
    accuracies = percent(hits.top1)
    summary = {
        "accuracy_mean": float(accuracies.mean()),
        "accuracy_std": _deviation(accuracies),
        "accuracy_min": float(accuracies.min()),
        "accuracy_max": float(accuracies.max()),
    }
    if hits.top5 is not None:
        top5 = percent(hits.top5)
        summary.update(top5_mean=float(top5.mean()), top5_std=_deviation(top5))
    return summary


def _deviation(values: Tensor) -> float:
    """Population standard deviation; exactly 0 for equal values, in spite of rounding of the mean."""
    return float((values - values[0]).std(correction=0))


def percent(hits: Tensor) -> Tensor:
    """Percentage of hits, float64 ``(R,)``, of bool ``(R, N)``."""
    return 100 * hits.double().mean(dim=1)


def class_accuracies(hits: Hits, labels: Tensor, num_classes: int) -> Tensor:
    """Accuracy of each class in percent, float64 ``(R, C)``; NaN for a class without images."""
    counts = torch.bincount(labels, minlength=num_classes).double()
    right = torch.zeros(len(hits.top1), num_classes, dtype=torch.float64)
    right.index_add_(1, labels, hits.top1.double())
    return 100 * right / counts
