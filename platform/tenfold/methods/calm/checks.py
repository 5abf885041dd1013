"""Shared argument checks."""

import torch
from torch import Tensor

from tenfold.types import check_label_range

HALF = (torch.float16, torch.bfloat16)


def check_scores(f: Tensor, a: Tensor | None = None) -> None:
    """Check class scores ``(B, C, H, W)`` and, if given, attention scores ``(B, 1, H, W)``.

    Raises:
        ValueError: If a shape is wrong, there is no location, or scores are integers.
    """
    if f.ndim != 4 or not f.numel() or not f.is_floating_point():
        raise ValueError(
            f"f must be non-empty floating-point class scores (B, C, H, W), got {f.dtype} {tuple(f.shape)}"
        )
    expected = (f.shape[0], 1, *f.shape[2:])
    if a is not None and (a.shape != expected or not a.is_floating_point()):
        raise ValueError(f"a must be floating-point (B, 1, H, W) = {expected}, got {a.dtype} {tuple(a.shape)}")


def check_labels(labels: Tensor, num_images: int, num_classes: int, name: str = "labels") -> None:
    """Check labels, one class per image.

    Raises:
        ValueError: If not int64 ``(B,)``, or outside 0..C - 1.
    """
    check_label_shape(labels, num_images, name)
    check_label_range(labels, num_classes, name)


def check_label_shape(labels: Tensor, num_images: int, name: str = "labels") -> None:
    """Check dtype and shape only, which does not synchronise with the device."""
    if labels.dtype != torch.int64 or labels.shape != (num_images,):
        raise ValueError(f"{name} must be int64 ({num_images},), got {labels.dtype} {tuple(labels.shape)}")


def at_least_float32(scores: Tensor) -> Tensor:
    """Cast half precision, too coarse for log-probabilities, to float32; keep other dtypes."""
    return scores.float() if scores.dtype in HALF else scores
