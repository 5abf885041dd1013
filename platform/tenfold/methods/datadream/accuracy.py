"""Accuracy of each class. Shapes: N samples, C classes."""

import torch
from torch import Tensor

from tenfold.metrics.classification import check_scored


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of each class's samples whose highest score is that class.

    Returns:
        ``(C,)`` in the dtype of the logits, NaN for a class without samples.

    Raises:
        ValueError: There are no samples, shapes do not fit, or a label is out of range.
    """
    check_scored(logits, labels)
    num_classes = logits.shape[1]
    hits = labels[logits.argmax(dim=1) == labels]
    counts = torch.stack([part.bincount(minlength=num_classes) for part in (hits, labels)]).to(logits.dtype)
    return 100 * counts[0] / counts[1]
