"""Conversions between tensors and numpy arrays; results have the type of the input."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
AnyArray = TypeVar("AnyArray", Tensor, np.ndarray)


def to_numpy(array: Array) -> np.ndarray:
    """Convert to numpy, without a copy if the data is in main memory."""
    if not isinstance(array, Tensor):
        return np.asarray(array)
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


def to_tensor(array: Array) -> Tensor:
    """Convert to torch, without a copy if torch can share the memory."""
    if isinstance(array, Tensor):
        return array.detach()
    return torch.from_numpy(np.ascontiguousarray(array))


def like(result: Tensor, given: AnyArray) -> AnyArray:
    """Convert a result to the type and device of ``given``."""
    if isinstance(given, Tensor):
        return result.to(given.device)
    return result.cpu().numpy()
