"""Remove and classify: erase what a map calls important, and see how many pictures are still recognised."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold.metrics.localisation.arrays import Array, to_tensor


def topk_erase_mask(s: Tensor, fraction: float) -> Tensor:
    """Erase the highest values of every map; of equal values those that come first, row by row.

    Args:
        s: Maps ``(B, 1, H, W)``.
        fraction: Share of the pixels to erase, in [0, 1]; the number is rounded down.

    Returns:
        The same shape and dtype: 0 erased, 1 kept.

    Raises:
        ValueError: Another shape, NaN, or a fraction outside [0, 1].
    """
    return topk_erase_masks(s, (fraction,))[0]


def topk_erase_masks(s: Tensor, fractions: Sequence[float]) -> Tensor:
    """``topk_erase_mask`` for several fractions ``(K, B, 1, H, W)``, with one sort."""
    _check_shape(tuple(s.shape))
    counts = [_num_erased(fraction, s.shape[2] * s.shape[3]) for fraction in fractions]
    if s.isnan().any():
        raise ValueError("s must not hold NaN: the order of its values is undefined")
    order = s.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = s.new_ones if s.is_floating_point() else torch.ones
    return _erase(order, counts, kept(s.shape))


def random_erase_mask(shape: Sequence[int], fraction: float, generator: torch.Generator) -> Tensor:
    """Erase as many pixels at random, without replacement, in every picture on its own.

    Args:
        shape: ``(B, 1, H, W)``.
        fraction: Share of the pixels to erase, in [0, 1]; the number is rounded down.
        generator: Of the draw; the mask is on its device.

    Returns:
        float32 of that shape: 0 erased, 1 kept.

    Raises:
        ValueError: Another shape, or a fraction outside [0, 1].
    """
    return random_erase_masks(shape, (fraction,), generator)[0]


def random_erase_masks(shape: Sequence[int], fractions: Sequence[float], generator: torch.Generator) -> Tensor:
    """``random_erase_mask`` for several fractions ``(K, B, 1, H, W)``: one draw, so that a greater one erases more."""
    _check_shape(tuple(shape))
    batch, _, height, width = shape
    counts = [_num_erased(fraction, height * width) for fraction in fractions]
    order = torch.rand(batch, height * width, generator=generator, device=generator.device).argsort(dim=1)
    return _erase(order, counts, torch.ones(tuple(shape), device=generator.device))


def remove_and_classify_ratio(correct_top: Array, correct_random: Array) -> float:
    """Pictures recognised without their most important pixels, over those recognised without random ones.

    Args:
        correct_top: Bool or 0/1, any shape.
        correct_random: The same for random erasing.

    Returns:
        The ratio; lower means a better map.

    Raises:
        ValueError: Different shapes, or no picture recognised after random erasing.
    """
    top, random = to_tensor(correct_top), to_tensor(correct_random)
    if top.shape != random.shape:
        raise ValueError(
            f"correct_top and correct_random must have one shape, got {tuple(top.shape)} and {tuple(random.shape)}"
        )
    denominator = int(random.sum())
    if denominator == 0:
        raise ValueError("no picture is recognised after random erasing: the ratio is undefined, erase less")
    return int(top.sum()) / denominator


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or shape[1] != 1:
        raise ValueError(f"maps must be (B, 1, H, W), got {shape}")


def _num_erased(fraction: float, num_pixels: int) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    # 0.29 x 100 is a hair below 29 in floating point.
    return math.floor(fraction * num_pixels + 1e-9 * num_pixels)


def _erase(order: Tensor, counts: Sequence[int], kept: Tensor) -> Tensor:
    """``order``: pixels ``(B, H W)`` in the order of erasing; ``kept``: ones ``(B, 1, H, W)``."""
    masks = kept.unsqueeze(0).repeat(len(counts), 1, 1, 1, 1)
    for mask, count in zip(masks.flatten(2), counts, strict=True):  # (B, H W), views
        mask.scatter_(1, order[:, :count], 0)
    return masks
