"""Top-k accuracy over all samples, and class by class. Shapes: N samples, C classes."""

import torch
from torch import Tensor


def topk_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Percent of the samples whose class is among the k highest scores; every sample counts the same.

    Args:
        logits: ``(N, C)``.
        labels: Integer ``(N,)`` in 0..C-1.
        k: 1 to C.

    Raises:
        ValueError: If there are no samples, shapes do not fit, a label is out of range, or k is outside 1..C.
    """
    _check(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must lie in 1..{logits.shape[1]}, the number of classes, got {k}")
    hits = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)  # (N,)
    return 100 * int(hits.sum()) / len(hits)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of each class's samples that score it highest.

    Returns:
        ``(C,)`` in the dtype of the logits, NaN for a class without samples.

    Raises:
        ValueError: If there are no samples, shapes do not fit, or a label is out of range.
    """
    _check(logits, labels)
    num_classes = logits.shape[1]
    hits = labels[logits.argmax(dim=1) == labels]
    counts = torch.stack([part.bincount(minlength=num_classes) for part in (hits, labels)]).to(logits.dtype)
    return 100 * counts[0] / counts[1]


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating and (N, C), not empty, got {logits.dtype} {tuple(logits.shape)}")
    if labels.shape != logits.shape[:1] or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integer ({len(logits)},), got {labels.dtype} {tuple(labels.shape)}")
    if ((labels < 0) | (labels >= logits.shape[1])).any():
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, got {labels.min()} to {labels.max()}")
