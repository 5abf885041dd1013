"""Where a chain gets its minibatches from, in an order that can be found again."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tenfold.methods.gradient_uncertainty.per_example import check_pairs

Pair = tuple[Tensor, Tensor]
"""Inputs ``(B, ...)`` and labels ``(B,)``."""


@runtime_checkable
class EpochBatches(Protocol):
    """Batches whose order is a function of the epoch's number: what exact continuation needs."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Batches ``start``, ``start + 1``, ... of an epoch, both counted from 0."""
        ...


class ShuffledBatches:
    """Tensors in memory, in a new order every epoch.

    Args:
        inputs: ``(N, ...)``.
        labels: ``(N,)``.
        batch_size: Of all batches but the last of an epoch, which holds what is left.
        seed: Of the orders; the order of an epoch is a function of this and the epoch's number.
        drop_last: Leave out a last batch that is smaller.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, batch_size: int, *, seed: int = 0, drop_last: bool = False
    ) -> None:
        check_pairs(inputs, labels)
        if not 1 <= batch_size <= len(inputs):
            raise ValueError(f"batch_size must lie in 1..{len(inputs)}, the number of examples, got {batch_size}")
        self._inputs, self._labels = inputs, labels
        self._batch_size, self._seed, self._drop_last = batch_size, seed, drop_last
        self._passes = 0
        self.dataset = range(len(inputs))
        """As long as the data set; what ``DataLoader`` calls by this name."""

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self._batch_size)
        return full + (rest > 0 and not self._drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        order = torch.from_numpy(np.random.default_rng((self._seed, epoch)).permutation(len(self.dataset)))
        for number in range(start, len(self)):
            rows = order[number * self._batch_size : (number + 1) * self._batch_size]
            yield self._inputs[rows], self._labels[rows]

    def __iter__(self) -> Iterator[Pair]:
        self._passes += 1
        return self.epoch(self._passes - 1)


def endless(loader: Iterable[Pair] | EpochBatches, epoch: int = 0, start: int = 0) -> Iterator[tuple[int, int, Pair]]:
    """Epoch, number in it, and batch, for ever; a loader that ends is begun again.

    Starts at batch ``start`` of ``epoch``. A loader without ``epoch`` is asked for its batches from the first on, and
    those before ``start`` are dropped; where it has ``set_epoch``, that is called before each pass.

    Raises:
        ValueError: An epoch without a batch.
    """
    while True:
        number = start - 1
        if isinstance(loader, EpochBatches):
            batches: Iterator[Pair] = loader.epoch(epoch, start)
        else:
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            batches = _dropped(iter(loader), start)
        for number, pair in enumerate(batches, start):
            yield epoch, number, pair
        if number < 0:
            raise ValueError(
                "the loader gave no batch; it must be an iterable of (inputs, labels) that can be begun again "
                "(a generator cannot)"
            )
        epoch, start = epoch + 1, 0


def _dropped(batches: Iterator[Pair], count: int) -> Iterator[Pair]:
    for _ in range(count):
        next(batches, None)
    return batches
