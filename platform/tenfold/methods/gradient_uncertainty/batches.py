"""Minibatch loaders of a chain, with a reproducible order."""

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
    """Loader whose order is a function of the epoch number, as exact resumption requires."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Iterate over batches ``start``, ``start + 1``, ... of an epoch, both counted from 0."""
        ...


class ShuffledBatches:
    """In-memory tensors, reshuffled every epoch.

    Args:
        inputs: ``(N, ...)``.
        labels: ``(N,)``.
        batch_size: Examples per batch; the last batch of an epoch may be smaller.
        seed: Random seed; the order of an epoch is a function of the seed and the epoch number.
        drop_last: Drop a smaller last batch.
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
        """Stand-in with the length of the data set, as ``DataLoader.dataset``."""

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
    """Iterate over (epoch, batch number, batch) indefinitely, restarting the loader when it ends.

    Starts at batch ``start`` of ``epoch``. A loader without an ``epoch`` method is iterated from its first batch, and
    batches before ``start`` are dropped; its ``set_epoch``, if any, is called before each pass.

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
                "the loader must be an iterable of (inputs, labels) that can be iterated again, got no batch; "
                "a generator cannot be iterated twice"
            )
        epoch, start = epoch + 1, 0


def _dropped(batches: Iterator[Pair], count: int) -> Iterator[Pair]:
    for _ in range(count):
        next(batches, None)
    return batches
