"""Gradient uncertainty: the degree to which the per-example gradients of a minibatch cancel."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tree = Tensor | Mapping[str, Tensor]
"""One tensor, or tensors by parameter name."""

_SMALL, _LARGE = 1e-140, 1e140
"""Range of magnitudes whose squares neither underflow nor overflow in float64."""


class GradientUncertainty(NamedTuple):
    """Gradient uncertainty ``value = -numerator / denominator``; all three float64, shape ``()``."""

    value: Tensor
    numerator: Tensor
    """Sum of <g_i, g_j> over all ordered pairs of different examples."""
    denominator: Tensor
    """Sum of |g_i|^2."""


def gradient_uncertainty(per_example_grads: Tree) -> GradientUncertainty:
    """Return ``1 - |sum_i g_i|^2 / sum_i |g_i|^2``.

    It is 1 if the gradients cancel, 0 if they are orthogonal and 1 - B if all are equal; it is invariant to scaling and
    rotation of the gradients, and defined as 0 if all are zero. Sums are accumulated in float64.

    Args:
        per_example_grads: Gradients of B examples, ``(B, P)``, or ``(B, ...)`` by parameter name.

    Raises:
        ValueError: No example, no tensor, tensors of different B, or a value that is not finite.
    """
    tensors = [grads.detach() for grads in leaves(per_example_grads)]
    batch = check_batch(tensors)
    largest = max((float(grads.abs().max()) for grads in tensors if grads.numel()), default=0.0)
    scale = 1.0 if largest == 0 or _SMALL < largest < _LARGE else 1 / largest
    squares = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    of_sum = torch.zeros_like(squares)
    for grads in tensors:
        if scale != 1:
            grads = grads.double() * scale
        squares += torch.linalg.vector_norm(grads, dtype=torch.float64).square()
        of_sum += grads.sum(0, dtype=torch.float64).square().sum()
    return uncertainty_from_sums(of_sum, squares, batch, unit=1 / scale)


def uncertainty_from_sums(of_sum: Tensor, squares: Tensor, batch: int, unit: float = 1.0) -> GradientUncertainty:
    """Return the gradient uncertainty from ``|sum_i g_i|^2`` and ``sum_i |g_i|^2`` of gradients divided by ``unit``."""
    value = torch.where(squares > 0, 1 - of_sum / squares, torch.zeros_like(squares))
    # Rounding errors can exceed the bounds.
    value = value.clamp(1 - batch, 1)
    return GradientUncertainty(value, (of_sum - squares) * unit * unit, squares * unit * unit)


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, in order."""
    return [tree] if isinstance(tree, Tensor) else list(tree.values())


def check_batch(tensors: list[Tensor]) -> int:
    """Return the batch size B of per-example gradients.

    Raises:
        ValueError: As in ``gradient_uncertainty``.
    """
    if not tensors:
        raise ValueError("per-example gradients must hold at least one tensor, got none")
    shapes = [tuple(grads.shape) for grads in tensors]
    batches = {shape[0] if shape else 0 for shape in shapes}
    if len(batches) != 1 or 0 in batches:
        raise ValueError(f"per-example gradients must all be (B, ...) with one B of at least 1, got {shapes}")
    for grads in tensors:
        if not torch.isfinite(grads).all():
            raise ValueError("per-example gradients must be finite, got nan or inf")
    return batches.pop()
