"""How many wrong negatives a treatment of large losses finds."""

import torch
from torch import Tensor


def false_negative_detection(mask: Tensor, labels: Tensor, true: Tensor) -> dict[str, int | float]:
    """What was treated, held against the truth.

    A false negative is an entry that is positive but unobserved, hence taken as negative.

    Args:
        mask: Treated entries, bool ``(B, K)``, unobserved ones only.
        labels: ``(B, K)`` in {-1, 0, 1}: observed negative, unobserved, observed positive.
        true: ``(B, K)`` in {0, 1}.

    Returns:
        ``rejected_fn`` and ``rejected_tn``: treated entries that are positive and negative in truth; ``total_fn``:
        false negatives; ``precision``: rejected_fn of all treated; ``recall``: rejected_fn of all false negatives.
        Precision and recall are 0 where nothing was treated, or nothing was to be found.

    Raises:
        ValueError: Shapes that differ, a mask that is not boolean, values outside the coding, labels that contradict
            the truth, or a treated entry that is observed.
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
        raise ValueError("labels contradict true: an observed positive is negative there, or the other way round")
    if (mask & ~unobserved).any():
        raise ValueError("mask has an observed entry: only labels of 0 are treated")
    treated, rejected_fn = int(mask.sum()), int((mask & positive).sum())
    total_fn = int((unobserved & positive).sum())
    return {
        "rejected_fn": rejected_fn,
        "rejected_tn": treated - rejected_fn,
        "total_fn": total_fn,
        "precision": rejected_fn / max(treated, 1),
        "recall": rejected_fn / max(total_fn, 1),
    }
