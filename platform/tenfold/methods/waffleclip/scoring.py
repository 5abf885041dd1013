"""Class scores and prototypes from embedded images and prompts, and the averages of the paper's tables.

Roth et al., "Waffling around for Performance", ICCV 2023. The mean score of a class over its prompts equals the product
with the un-normalised mean of their embeddings, so one matrix product serves all classes, and all repetitions, too.
Shapes: B images, C classes, D features; prompts are ordered class by class, ``counts[c]`` of class c, M in total.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

AGGREGATES = ("mean", "max", "sum", "merged")
"""Aggregations of the scores of a class's prompts; "merged" averages and normalises embeddings in place of scores."""

_PROTOTYPE_AGGREGATES = ("mean", "merged")
_UNIT_TOLERANCE = 1e-3


def class_scores(
    image: Tensor, prompt_embeddings: Tensor, prompt_counts: Sequence[int], aggregate: str = "mean"
) -> Tensor:
    """Compute the cosine scores of images and classes.

    Args:
        image: Unit rows, ``(B, D)``.
        prompt_embeddings: Unit rows, ``(M, D)``, class by class.
        prompt_counts: Number of prompts of each class, C numbers of at least 1 that sum to M.
        aggregate: One of ``AGGREGATES``.

    Returns:
        ``(B, C)``. Only "max" computes the B * M scores of all prompts, so its images should come in batches.

    Raises:
        ValueError: The aggregate is unknown, shapes do not fit, counts do not sum to M, or a row is not of unit length
            within 1e-3.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {AGGREGATES}, got {aggregate!r}")
    counts = _checked_counts(prompt_embeddings, prompt_counts)
    if image.ndim != 2 or image.shape[1] != prompt_embeddings.shape[1]:
        raise ValueError(f"image must be (B, D) with D = {prompt_embeddings.shape[1]}, got {tuple(image.shape)}")
    _check_unit_rows(image, "image")
    _check_unit_rows(prompt_embeddings, "prompt_embeddings")
    if aggregate == "max":
        rows = _class_of_prompt(counts).expand(len(image), -1)
        lowest = image.new_full((len(image), len(counts)), -torch.inf)
        return lowest.scatter_reduce(1, rows, image @ prompt_embeddings.T, "amax", include_self=False)
    if aggregate == "sum":
        return image @ _class_sums(prompt_embeddings, counts).T
    return image @ _prototypes(prompt_embeddings, counts, aggregate).T


def prototypes(prompt_embeddings: Tensor, prompt_counts: Sequence[int], aggregate: str = "mean") -> Tensor:
    """Compute the vector of each class whose product with an image is its score.

    Args:
        prompt_embeddings: Unit rows, ``(M, D)``, class by class. Several repetitions may be concatenated: R * C counts
            then give R * C prototypes.
        prompt_counts: Number of prompts of each class, numbers of at least 1 that sum to M.
        aggregate: "mean" for the class means, "merged" for the normalised class means.

    Returns:
        ``(C, D)``.

    Raises:
        ValueError: As in ``class_scores``; also for "max" and "sum", which have no prototypes.
    """
    if aggregate not in _PROTOTYPE_AGGREGATES:
        raise ValueError(f"aggregate must be one of {_PROTOTYPE_AGGREGATES} for prototypes, got {aggregate!r}")
    counts = _checked_counts(prompt_embeddings, prompt_counts)
    _check_unit_rows(prompt_embeddings, "prompt_embeddings")
    return _prototypes(prompt_embeddings, counts, aggregate)


def summarise(means: ArrayLike, stds: ArrayLike) -> NDArray[np.float64]:
    """Average over data sets as in the paper's tables, from numbers rounded to two decimals.

    Args:
        means: Accuracies of R rows on N data sets, ``(R, N)``; the paper's table has N = 8.
        stds: Their standard deviations over repetitions, ``(R, N)``.

    Returns:
        ``(R, 2)``: mean of the means, and ``sqrt(sum of squared deviations / N)``.

    Raises:
        ValueError: The two are not matrices of one shape, or are empty.
    """
    means, stds = np.asarray(means, np.float64), np.asarray(stds, np.float64)
    if means.ndim != 2 or means.shape != stds.shape or means.size == 0:
        raise ValueError(f"means and stds must be two matrices (R, N) of one shape, got {means.shape} and {stds.shape}")
    deviations = np.sqrt(np.mean(np.round(stds, 2) ** 2, axis=1))
    return np.stack([np.mean(np.round(means, 2), axis=1), deviations], axis=1)


def _prototypes(prompt_embeddings: Tensor, counts: Tensor, aggregate: str) -> Tensor:
    means = _class_sums(prompt_embeddings, counts) / counts.unsqueeze(1)
    return functional.normalize(means, dim=1) if aggregate == "merged" else means


def _class_sums(prompt_embeddings: Tensor, counts: Tensor) -> Tensor:
    zeros = prompt_embeddings.new_zeros(len(counts), prompt_embeddings.shape[1])
    return zeros.index_add(0, _class_of_prompt(counts), prompt_embeddings)


def _class_of_prompt(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _checked_counts(prompt_embeddings: Tensor, prompt_counts: Sequence[int]) -> Tensor:
    if prompt_embeddings.ndim != 2:
        raise ValueError(f"prompt_embeddings must be (M, D), got {tuple(prompt_embeddings.shape)}")
    counts = torch.as_tensor(prompt_counts)
    if counts.ndim != 1 or not len(counts) or counts.is_floating_point():
        raise ValueError(f"prompt_counts must be one integer for each class, got {prompt_counts}")
    if counts.min() < 1:
        raise ValueError(f"prompt_counts must be at least 1, got {int(counts.min())} for class {int(counts.argmin())}")
    if counts.sum() != len(prompt_embeddings):
        raise ValueError(
            f"prompt_counts must sum to the {len(prompt_embeddings)} rows of prompt_embeddings, got {int(counts.sum())}"
        )
    return counts.to(prompt_embeddings.device)


def _check_unit_rows(rows: Tensor, name: str) -> None:
    lengths = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
    # The negated condition catches rows of NaN, too.
    if not ((lengths - 1).abs() <= _UNIT_TOLERANCE).all():
        worst = int((lengths - 1).abs().nan_to_num(torch.inf).argmax())
        raise ValueError(
            f"rows of {name} must be of unit length within {_UNIT_TOLERANCE}, got {float(lengths[worst]):.4g} in row "
            f"{worst}; normalise in float32"
        )
