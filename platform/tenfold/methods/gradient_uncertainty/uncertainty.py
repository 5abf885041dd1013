"""How much the gradients of a minibatch's examples cancel each other."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tree = Tensor | Mapping[str, Tensor]
"""One tensor, or tensors by parameter name."""

_SMALL, _LARGE = 1e-140, 1e140
"""Between them squares neither vanish nor overflow in float64."""


class GradientUncertainty(NamedTuple):
    """``value`` is ``-numerator / denominator``; all three float64, shape ``()``."""

    value: Tensor
    numerator: Tensor
    """Sum of <g_i, g_j> over all ordered pairs of different examples."""
    denominator: Tensor
    """Sum of |g_i|^2."""


def gradient_uncertainty(per_example_grads: Tree) -> GradientUncertainty:
    """``1 - |sum_i g_i|^2 / sum_i |g_i|^2``: 1 where the gradients cancel, 0 where they are orthogonal, 1 - B where all
    are equal.

    Neither a common factor nor a rotation of all gradients changes it. It is 0 by definition where all are zero.
    Sums are taken in float64.

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
    """The measure from ``|sum_i g_i|^2`` and ``sum_i |g_i|^2``, both of gradients divided by ``unit``."""
    value = torch.where(squares > 0, 1 - of_sum / squares, torch.zeros_like(squares))
    # Rounding alone can step over the bounds.
    value = value.clamp(1 - batch, 1)
    return GradientUncertainty(value, (of_sum - squares) * unit * unit, squares * unit * unit)


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in its order."""
    return [tree] if isinstance(tree, Tensor) else list(tree.values())


def check_batch(tensors: list[Tensor]) -> int:
    """B of per-example gradients.

    Raises:
        ValueError: As ``gradient_uncertainty`` says.
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
