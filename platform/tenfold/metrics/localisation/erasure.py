"""Remove-and-classify: erase the most important pixels of a map and count the images still classified correctly."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold.metrics.localisation.arrays import Array, to_tensor


def topk_erase_mask(s: Tensor, fraction: float) -> Tensor:
    """Mask out the highest values of each map; ties go to the first pixel in row-major order.

    Args:
        s: Maps ``(B, 1, H, W)``.
        fraction: Share of the pixels to erase, in [0, 1]; the number is rounded down.

    Returns:
        Mask of the same shape and dtype: 0 erased, 1 kept.

    Raises:
        ValueError: Wrong shape, NaN, or a fraction outside [0, 1].
    """
    return topk_erase_masks(s, (fraction,))[0]


def topk_erase_masks(s: Tensor, fractions: Sequence[float]) -> Tensor:
    """Compute ``topk_erase_mask`` for several fractions ``(K, B, 1, H, W)`` with one sort."""
    _check_shape(tuple(s.shape))
    counts = [_num_erased(fraction, s.shape[2] * s.shape[3]) for fraction in fractions]
    if s.isnan().any():
        raise ValueError("s must not contain NaN, got NaN; the order of its values is undefined")
    order = s.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = s.new_ones if s.is_floating_point() else torch.ones
    return _erase(order, counts, kept(s.shape))


def random_erase_mask(shape: Sequence[int], fraction: float, generator: torch.Generator) -> Tensor:
    """Mask out the same number of random pixels in each image, drawn independently and without replacement.

    Args:
        shape: ``(B, 1, H, W)``.
        fraction: Share of the pixels to erase, in [0, 1]; the number is rounded down.
        generator: Source of randomness; the mask is on its device.

    Returns:
        float32 mask of that shape: 0 erased, 1 kept.

    Raises:
        ValueError: Wrong shape, or a fraction outside [0, 1].
    """
    return random_erase_masks(shape, (fraction,), generator)[0]


def random_erase_masks(shape: Sequence[int], fractions: Sequence[float], generator: torch.Generator) -> Tensor:
    """Compute ``random_erase_mask`` for several fractions ``(K, B, 1, H, W)`` with one draw; masks are nested."""
    _check_shape(tuple(shape))
    batch, _, height, width = shape
    counts = [_num_erased(fraction, height * width) for fraction in fractions]
    order = torch.rand(batch, height * width, generator=generator, device=generator.device).argsort(dim=1)
    return _erase(order, counts, torch.ones(tuple(shape), device=generator.device))


def remove_and_classify_ratio(correct_top: Array, correct_random: Array) -> float:
    """Ratio of images classified correctly after erasing their top pixels to those after erasing random pixels.

    Args:
        correct_top: Bool or 0/1, any shape.
        correct_random: The same for random erasing.

    Returns:
        The ratio; lower is better.

    Raises:
        ValueError: Different shapes, or no image classified correctly after random erasing.
    """
    top, random = to_tensor(correct_top), to_tensor(correct_random)
    if top.shape != random.shape:
        raise ValueError(
            f"correct_top and correct_random must have the same shape, got {tuple(top.shape)} and {tuple(random.shape)}"
        )
    denominator = int(random.sum())
    if denominator == 0:
        raise ValueError("correct_random must hold at least one correct image, got none; erase a smaller fraction")
    return int(top.sum()) / denominator


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1] != 1:
        raise ValueError(f"maps must be (B, 1, H, W), got {shape}")


def _num_erased(fraction: float, num_pixels: int) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    # 0.29 x 100 is slightly below 29 in floating point.
    return math.floor(fraction * num_pixels + 1e-9 * num_pixels)


def _erase(order: Tensor, counts: Sequence[int], kept: Tensor) -> Tensor:
    """Zero the first ``counts`` pixels of ``order (B, H W)`` in copies of ``kept``, ones ``(B, 1, H, W)``."""
    masks = kept.unsqueeze(0).repeat(len(counts), 1, 1, 1, 1)
    for mask, count in zip(masks.flatten(2), counts, strict=True):  # (B, H W), views
        mask.scatter_(1, order[:, :count], 0)
    return masks
