"""Score maps come from networks as tensors and from files as arrays; an answer is of the kind of the question."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
AnyArray = TypeVar("AnyArray", Tensor, np.ndarray)


def to_numpy(array: Array) -> np.ndarray:
    """The same numbers in numpy; without a copy where they are in main memory."""
    if not isinstance(array, Tensor):
        return np.asarray(array)
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


def to_tensor(array: Array) -> Tensor:
    """The same numbers in torch; without a copy where torch can share them."""
    if isinstance(array, Tensor):
        return array.detach()
    return torch.from_numpy(np.ascontiguousarray(array))


def like(result: Tensor, given: AnyArray) -> AnyArray:
    """A tensor, or a numpy array if that is what was given."""
    if isinstance(given, Tensor):
        return result.to(given.device)
    return result.cpu().numpy()
