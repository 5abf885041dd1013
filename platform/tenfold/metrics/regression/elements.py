"""What the losses and scores of regression share: shapes that fit, the dtype to compute in, the reduction."""

from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
AnyArray = TypeVar("AnyArray", Tensor, np.ndarray)
_HALF = (torch.float16, torch.bfloat16)


def check_reduction(reduction: str) -> None:
    """Refuse a reduction that there is not.

    Raises:
        ValueError: Not ``none``, ``mean`` or ``sum``.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """All elements, their mean or their sum.

    Raises:
        ValueError: The mean of no element.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if not values.numel():
        raise ValueError(f"a mean needs at least one element, got the shape {tuple(values.shape)}")
    return values.mean()


def in_full_precision(tensor: Tensor, name: str) -> Tensor:
    """Half precision as float32, float32 and float64 as they are.

    Raises:
        ValueError: No floating dtype.
    """
    if tensor.dtype in _HALF:
        return tensor.float()
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    return tensor


def check_pair(mean: Tensor, target: Tensor, spread: Tensor, spread_name: str) -> None:
    """Mean and target must have one shape, and what tells their spread must broadcast to it.

    Raises:
        ValueError: They don't; says all three shapes.
    """
    shapes = f"mean {tuple(mean.shape)}, target {tuple(target.shape)}, {spread_name} {tuple(spread.shape)}"
    if mean.shape != target.shape:
        # Left alone, (B,) against (B, 1) would broadcast to (B, B) and train on nonsense.
        raise ValueError(f"mean and target must have one shape, got {shapes}")
    check_broadcast(spread, mean, shapes, spread_name)


def check_broadcast(smaller: Tensor, larger: Tensor, shapes: str, name: str) -> None:
    """Refuse what does not broadcast to the shape of ``larger``.

    Raises:
        ValueError: It doesn't, or would make it larger.
    """
    fits = smaller.ndim <= larger.ndim and all(
        own in (1, wanted) for own, wanted in zip(reversed(smaller.shape), reversed(larger.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to the shape of mean, got {shapes}")


def check_positive(tensor: Tensor, name: str) -> None:
    """Refuse zero, negative numbers, NaN and infinity.

    Raises:
        ValueError: There is one.
    """
    if tensor.numel() and not bool(((tensor > 0) & (tensor < torch.inf)).all()):
        raise ValueError(f"{name} must be positive and finite everywhere, got {_range(tensor)}")


def flat_float64(values: "Tensor | np.ndarray", name: str) -> Tensor:
    """One dimension, float64, without a gradient.

    Raises:
        ValueError: Nothing in it, negative numbers, NaN or infinity.
    """
    flat = torch.as_tensor(values).detach().to(torch.float64).flatten()
    if not flat.numel():
        raise ValueError(f"{name} must hold at least one value, got none")
    if not bool(((flat >= 0) & (flat < torch.inf)).all()):
        raise ValueError(f"{name} must be finite and not negative, got {_range(flat)}")
    return flat


def standard_scores(
    mean: "Tensor | np.ndarray", std: "Tensor | np.ndarray", target: "Tensor | np.ndarray"
) -> tuple[Tensor, Tensor]:
    """Residuals ``target - mean`` and the std of each, both float64 of the shape of ``mean``.

    Raises:
        ValueError: Shapes that don't fit, nothing in them, a std that is not positive, values that are not finite.
    """
    tensors = [torch.as_tensor(each).detach().to(torch.float64) for each in (mean, std, target)]
    check_pair(tensors[0], tensors[2], tensors[1], "std")
    residual = tensors[2] - tensors[0]
    if not residual.numel():
        raise ValueError(f"mean and target must hold at least one value, got the shape {tuple(residual.shape)}")
    if not bool(torch.isfinite(residual).all()):
        raise ValueError("mean and target must be finite, got NaN or infinity")
    check_positive(tensors[1], "std")
    return residual, tensors[1].expand_as(residual)


def like(result: Tensor, given: AnyArray) -> AnyArray:
    """As an array of numpy if that is what was given."""
    return result.cpu().numpy() if isinstance(given, np.ndarray) else result


def _range(tensor: Tensor) -> str:
    low, high = tensor.aminmax()
    return f"values from {low.item()} to {high.item()}"
