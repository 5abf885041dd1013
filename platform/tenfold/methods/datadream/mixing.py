"""MixUp and CutMix of an image with the previous one, within the real and within the synthetic images only.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019; separated by
domain as in Kim et al., "DataDream", ECCV 2024. Shapes: B images, C classes.
"""

import math

import numpy as np
import torch
from torch import Tensor


def mix_by_domain(
    images: Tensor, targets: Tensor, is_real: Tensor, p: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix the real rows among themselves and the synthetic rows among themselves, with probability ``p``.

    Each domain draws CutMix or MixUp with equal probability, and its own ratio from Beta(1, 1); the partner of a row is
    the previous row of its domain, cyclic. A row alone in its domain is not changed.

    Args:
        images: Floating ``(B, 3, H, W)``.
        targets: Class probabilities ``(B, C)``.
        is_real: bool ``(B,)``.
        p: Probability in [0, 1] of mixing the batch.
        rng: Source of randomness; the number of draws depends on the trial only, not on the content of the batch.

    Returns:
        Images and targets, new tensors.

    Raises:
        ValueError: Shapes or dtypes do not fit, or ``p`` is outside [0, 1].
    """
    _check(images, targets, axes=4)
    if is_real.shape != images.shape[:1] or is_real.dtype != torch.bool:
        raise ValueError(f"is_real must be bool ({len(images)},), got {is_real.dtype} {tuple(is_real.shape)}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")
    images, targets = images.clone(), targets.clone()
    if rng.random() >= p:
        return images, targets
    height, width = images.shape[-2:]
    for mask in (is_real, ~is_real):
        # All numbers are drawn, used or not, so that the random stream does not depend on the batch.
        take_cutmix, share = rng.random() < 0.5, rng.beta(1.0, 1.0)
        centre = int(rng.integers(width)), int(rng.integers(height))
        rows = mask.nonzero().flatten()
        if len(rows) < 2:
            continue  # its partner would be itself
        if take_cutmix:
            mixed = cutmix(images[rows], targets[rows], cutmix_box(width, height, share, centre))
        else:
            mixed = mixup(images[rows], targets[rows], share)
        images[rows], targets[rows] = mixed
    return images, targets


def mixup(images: Tensor, targets: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Blend each row with the previous one (cyclic), with weights ``lam`` and 1 - ``lam``.

    Args:
        images: Floating ``(B, ...)``.
        targets: Class probabilities ``(B, C)``.
        lam: In [0, 1].

    Returns:
        Images and targets, new tensors.

    Raises:
        ValueError: Shapes or dtypes do not fit, or ``lam`` is outside [0, 1].
    """
    _check(images, targets)
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    lam = float(lam)
    return lam * images + (1 - lam) * images.roll(1, 0), lam * targets + (1 - lam) * targets.roll(1, 0)


def cutmix(images: Tensor, targets: Tensor, box_xyxy: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Paste a box of the previous row (cyclic) into each row; targets are mixed in proportion to the areas.

    Args:
        images: Floating ``(B, 3, H, W)``.
        targets: Class probabilities ``(B, C)``.
        box_xyxy: x1, y1, x2, y2 in pixels, ends exclusive, within the image; an empty box changes nothing.

    Returns:
        Images and targets, new tensors.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the box exceeds the image.
    """
    _check(images, targets, axes=4)
    height, width = images.shape[-2:]
    if len(box_xyxy) != 4:
        raise ValueError(f"box_xyxy must be x1, y1, x2, y2, got {box_xyxy}")
    x1, y1, x2, y2 = (int(side) for side in box_xyxy)
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        raise ValueError(f"box_xyxy must lie within {width}x{height} pixels, got {(x1, y1, x2, y2)}")
    mixed = images.clone()
    mixed[..., y1:y2, x1:x2] = images.roll(1, 0)[..., y1:y2, x1:x2]
    lam = 1 - (x2 - x1) * (y2 - y1) / (width * height)
    return mixed, lam * targets + (1 - lam) * targets.roll(1, 0)


def cutmix_box(width: int, height: int, lam: float, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    """Box x1, y1, x2, y2 around a centre (x, y) with 1 - ``lam`` of the image's area, clipped to the image."""
    half = 0.5 * math.sqrt(1 - lam)
    half_width, half_height = int(half * width), int(half * height)
    x, y = centre
    return max(x - half_width, 0), max(y - half_height, 0), min(x + half_width, width), min(y + half_height, height)


def _check(images: Tensor, targets: Tensor, axes: int | None = None) -> None:
    if not images.is_floating_point() or not targets.is_floating_point():
        raise ValueError(f"images and targets must be floating, got {images.dtype} and {targets.dtype}")
    if axes is not None and (images.ndim != axes or images.shape[1] != 3):
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    if images.ndim < 1 or targets.ndim != 2 or len(images) != len(targets):
        shapes = f"{tuple(images.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"images and targets must be (B, ...) and (B, C) with one B, got {shapes}")
    if len(images) == 0:
        raise ValueError("images must hold at least one row, got none")
