"""Input checks, dtype promotion and reductions shared by regression losses and scores."""

from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
AnyArray = TypeVar("AnyArray", Tensor, np.ndarray)
_HALF = (torch.float16, torch.bfloat16)


def check_reduction(reduction: str) -> None:
    """Check the name of a reduction.

    Raises:
        ValueError: Not ``none``, ``mean`` or ``sum``.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """Return all elements, their mean or their sum.

    Raises:
        ValueError: The mean of no elements.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if not values.numel():
        raise ValueError(f"a mean needs at least one element, got shape {tuple(values.shape)}")
    return values.mean()


def in_full_precision(tensor: Tensor, name: str) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged.

    Raises:
        ValueError: Not a floating dtype.
    """
    if tensor.dtype in _HALF:
        return tensor.float()
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    return tensor


def check_pair(mean: Tensor, target: Tensor, spread: Tensor, spread_name: str) -> None:
    """Check that mean and target have the same shape and that the spread broadcasts to it.

    Raises:
        ValueError: They do not; names all three shapes.
    """
    shapes = f"mean {tuple(mean.shape)}, target {tuple(target.shape)}, {spread_name} {tuple(spread.shape)}"
    if mean.shape != target.shape:
        # Otherwise (B,) against (B, 1) would broadcast to (B, B) and train on nonsense.
        raise ValueError(f"mean and target must have the same shape, got {shapes}")
    check_broadcast(spread, mean, shapes, spread_name)


def check_broadcast(smaller: Tensor, larger: Tensor, shapes: str, name: str) -> None:
    """Check that ``smaller`` broadcasts to the shape of ``larger``.

    Raises:
        ValueError: It does not, or would enlarge it.
    """
    fits = smaller.ndim <= larger.ndim and all(
        own in (1, wanted) for own, wanted in zip(reversed(smaller.shape), reversed(larger.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to the shape of mean, got {shapes}")


def check_positive(tensor: Tensor, name: str) -> None:
    """Check that all values are positive and finite.

    Raises:
        ValueError: A value is zero, negative, NaN or infinite.
    """
    if tensor.numel() and not bool(((tensor > 0) & (tensor < torch.inf)).all()):
        raise ValueError(f"{name} must be positive and finite everywhere, got {_range(tensor)}")


def flat_float64(values: "Tensor | np.ndarray", name: str) -> Tensor:
    """Return the values flattened, float64, detached.

    Raises:
        ValueError: No values, negative values, NaN or infinity.
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
    """Return the residuals ``target - mean`` and their std, both float64 of the shape of ``mean``.

    Raises:
        ValueError: Mismatched shapes, no values, a non-positive std, non-finite values.
    """
    tensors = [torch.as_tensor(each).detach().to(torch.float64) for each in (mean, std, target)]
    check_pair(tensors[0], tensors[2], tensors[1], "std")
    residual = tensors[2] - tensors[0]
    if not residual.numel():
        raise ValueError(f"mean and target must hold at least one value, got shape {tuple(residual.shape)}")
    if not bool(torch.isfinite(residual).all()):
        raise ValueError("mean and target must be finite, got NaN or infinity")
    check_positive(tensors[1], "std")
    return residual, tensors[1].expand_as(residual)


def like(result: Tensor, given: AnyArray) -> AnyArray:
    """Convert to a numpy array if ``given`` is one."""
    return result.cpu().numpy() if isinstance(given, np.ndarray) else result


def _range(tensor: Tensor) -> str:
    low, high = tensor.aminmax()
    return f"values from {low.item()} to {high.item()}"
