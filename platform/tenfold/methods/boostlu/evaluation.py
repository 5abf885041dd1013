"""Evaluation of the treatment of large losses: detected false negatives."""

import torch
from torch import Tensor


def false_negative_detection(mask: Tensor, labels: Tensor, true: Tensor) -> dict[str, int | float]:
    """Compare the treated entries with the true labels.

    A false negative is an entry that is positive but unobserved, and therefore assumed negative.

    Args:
        mask: Treated entries, bool ``(B, K)``, unobserved ones only.
        labels: ``(B, K)`` in {-1, 0, 1}: observed negative, unobserved, observed positive.
        true: ``(B, K)`` in {0, 1}.

    Returns:
        ``rejected_fn`` and ``rejected_tn``: treated entries that are truly positive and truly negative; ``total_fn``:
        all false negatives; ``precision``: rejected_fn over all treated entries; ``recall``: rejected_fn over
        total_fn. Precision is 0 if nothing was treated, recall if there is no false negative.

    Raises:
        ValueError: If shapes differ, the mask is not boolean, values are outside the coding, labels contradict the true
            labels, or a treated entry is observed.
    """
    if mask.ndim != 2 or not mask.shape == labels.shape == true.shape:
        raise ValueError(
            "mask, labels and true must all be (B, K), got "
            f"{tuple(mask.shape)}, {tuple(labels.shape)} and {tuple(true.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, got {mask.dtype}")
    positive, unobserved = true == 1, labels == 0
    if not (positive | (true == 0)).all():
        raise ValueError("true must be 0 or 1")
    if not (unobserved | (labels == 1) | (labels == -1)).all():
        raise ValueError("labels must be -1 (observed negative), 0 (unobserved) or 1 (observed positive)")
    if ((labels == 1) & ~positive).any() or ((labels == -1) & positive).any():
        raise ValueError("labels must agree with true, got an observed label that contradicts it")
    if (mask & ~unobserved).any():
        raise ValueError("mask must select unobserved entries (labels of 0), got an observed one")
    treated, rejected_fn = int(mask.sum()), int((mask & positive).sum())
    total_fn = int((unobserved & positive).sum())
    return {
        "rejected_fn": rejected_fn,
        "rejected_tn": treated - rejected_fn,
        "total_fn": total_fn,
        "precision": rejected_fn / max(treated, 1),
        "recall": rejected_fn / max(total_fn, 1),
    }
