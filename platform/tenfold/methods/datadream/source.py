"""Batches read with a seed of their own, so that a batch depends on its epoch and position alone."""

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tenfold.engine.loader import Loader
from tenfold.types import Batch

Read = Callable[[np.ndarray, int], Batch]
"""Function from row numbers and a seed to a batch, deterministic in both."""


class SeededSource:
    """Batches in a loader's order, each read with a seed derived from (seed, pass, batch number, rank).

    Args:
        loader: Source of the order; its own reading is not used.
        read: Reads a batch.
        seed: Seed common to all batches.
        rank: Rank of this worker.
        passes: Passes over the data that count as one epoch.
        num_workers: Processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self, loader: Loader, read: Read, *, seed: int, rank: int = 0, passes: int = 1, num_workers: int = 0
    ) -> None:
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        self._loader, self._read = loader, read
        self._seed, self._rank, self._passes, self._num_workers = seed, rank, passes, num_workers

    def num_batches(self) -> int:
        return self._loader.num_batches() * self._passes

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        plan = self._plan(epoch)[start:] if self._num_workers else self._plan_lazily(epoch, start)
        if not self._num_workers:
            for rows, seed in plan:
                yield _batch(self._read, rows, seed)
            return
        batches = DataLoader(
            _Batches(self._read),
            sampler=list(plan),  # an item of the dataset is a whole batch
            batch_size=None,
            num_workers=self._num_workers,
            generator=torch.Generator(),  # else it draws from the stream of the loss
        )
        yield from batches

    def _plan(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        return list(self._plan_lazily(epoch, 0))

    def _plan_lazily(self, epoch: int, start: int) -> Generator[tuple[np.ndarray, int], None, None]:
        in_pass = self._loader.num_batches()
        for step in range(start // in_pass, self._passes):
            number = epoch * self._passes + step
            for place, rows in enumerate(self._loader.rows(number)):
                if step * in_pass + place >= start:
                    words = (self._seed, number, place, self._rank)
                    yield rows, int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


class _Batches(Dataset[Batch]):
    def __init__(self, read: Read) -> None:
        self._read = read

    def __getitem__(self, item: tuple[np.ndarray, int]) -> Batch:
        return _batch(self._read, *item)


def _batch(read: Read, rows: np.ndarray, seed: int) -> Batch:
    return {**read(rows, seed), "index": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))}


def divide(batch_size: int, world_size: int) -> int:
    """Batch size of one worker where ``batch_size`` is the total over all workers."""
    return max(1, batch_size // world_size)


def largest_divisor(number: int, limit: int) -> int:
    """Largest divisor of ``number`` that is at most ``limit``."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)
