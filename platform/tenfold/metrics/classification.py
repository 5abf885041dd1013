"""Accuracies of a single-label classifier over a split."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from tenfold.types import check_label_range

TOP = 5


def classification_metrics(logits: Tensor, labels: Tensor, prefix: str) -> dict[str, float]:
    """Compute accuracies in percent over all images.

    ``{prefix}/accuracy`` is top-1, ``{prefix}/top5`` top-5 (where there are more than five classes), and
    ``{prefix}/macro_accuracy`` the mean over the classes that occur.

    Args:
        logits: ``(N, K)``, K at least 2.
        labels: Class of each image, int64 ``(N,)``.
        prefix: Name of the split; prefixes the metrics' names.

    Raises:
        ValueError: Mismatched shapes, no images, or a label outside 0..K - 1.
    """
    if logits.ndim != 2 or labels.shape != (len(logits),) or not len(labels):
        raise ValueError(
            f"logits must be (N, K) and labels (N,) with N at least 1, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    num_classes = logits.shape[1]
    check_label_range(labels, num_classes)

    def accuracy(average: Literal["micro", "none"], top: int = 1) -> Tensor:
        return 100 * multiclass_accuracy(logits, labels, num_classes, average=average, top_k=top)

    of_class = accuracy("none")[labels.unique()]
    metrics = {f"{prefix}/accuracy": float(accuracy("micro")), f"{prefix}/macro_accuracy": float(of_class.mean())}
    if num_classes > TOP:
        metrics[f"{prefix}/top5"] = float(accuracy("micro", TOP))
    return metrics


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percentage of images whose class is among the k highest scores; ties go to the lower class index.

    Args:
        scores: Floating ``(N, C)``, logits or similarities.
        labels: Integers ``(N,)`` in 0..C - 1.
        k: Number of classes that count, from 1 to C.

    Raises:
        ValueError: Mismatched shapes or dtypes, no images, a NaN score, or k or a label out of range.
    """
    check_scored(scores, labels)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must lie in 1..{scores.shape[1]}, the number of classes, got {k}")
    if (num_nan := int(scores.isnan().sum())) > 0:
        raise ValueError(
            f"scores must not contain NaN, got NaN in {num_nan} of {scores.numel()} values; check the embeddings"
        )
    labels = labels.long().unsqueeze(1)
    own = scores.gather(1, labels)
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels
    rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return 100 * int((rank < k).sum()) / len(rank)


def check_scored(scores: Tensor, labels: Tensor) -> None:
    """Check that scores and labels belong to the same images.

    Raises:
        ValueError: Not floating ``(N, C)`` and integers ``(N,)`` in 0..C - 1, N and C at least 1.
    """
    if scores.ndim != 2 or scores.numel() == 0 or not scores.is_floating_point():
        raise ValueError(f"scores must be floating and (N, C), not empty, got {scores.dtype} {tuple(scores.shape)}")
    if labels.shape != scores.shape[:1] or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integer ({len(scores)},), got {labels.dtype} {tuple(labels.shape)}")
    check_label_range(labels, scores.shape[1])
