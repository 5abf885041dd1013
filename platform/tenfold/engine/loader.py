"""Batches in a seeded order, sharded over workers, resumable at any batch.

The order of an epoch is a function of ``(seed, epoch)`` alone, so the position in the data is a single number. Data is
read with one call per batch, not per example; a thread prefetches where reading decodes files.
"""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import numpy as np
import torch

from tenfold.types import Batch


class BatchSource(Protocol):
    """Source of batches for ``fit``: ``Loader`` below, or a method's own (rollouts, paired batches)."""

    def num_batches(self) -> int:
        """Number of batches per epoch on this worker; the same on every worker."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield batches ``start``, ``start + 1``, ... of an epoch, both counted from 0."""
        ...


class Loader:
    """Batches of a data set that is read by row index.

    Args:
        read: Maps row indices ``(B,)`` int64 to a batch on the CPU; depends on its argument alone.
        num_examples: Number of rows N, at least 1.
        batch_size: Rows B per batch on one worker; the last batch of an epoch may be smaller.
        shuffle: Whether to shuffle the rows anew in each epoch.
        seed: Seed of the shuffling.
        rank, world_size: Index of this worker and number of workers. Every worker gets ``ceil(N / world_size)`` rows:
            the first rows of the order are repeated at its end if N is not a multiple.
        drop_last: Whether to drop a smaller last batch.
        prefetch: Number of batches prefetched by a thread; 0 reads in the calling thread, best for arrays in memory.
        order: Maps an epoch to the row indices of its batches over all workers, instead of the seeded permutation;
            batch i goes to worker ``i % world_size``, and batches that do not fill a round are dropped.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], Batch],
        num_examples: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        prefetch: int = 0,
        order: Callable[[int], Sequence[np.ndarray]] | None = None,
    ) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size = {world_size}), got {rank}")
        self._read = read
        self.num_examples = num_examples
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._drop_last = drop_last
        self._prefetch = prefetch
        self._order = order
        if self.num_batches() == 0:
            raise ValueError(
                f"batch_size must fill at least one batch per worker, got {batch_size} with {num_examples} examples on "
                f"{world_size} workers"
            )

    def num_batches(self) -> int:
        if self._order is not None:
            return len(self._order(0)) // self._world_size
        rows = -(-self.num_examples // self._world_size)
        return rows // self.batch_size if self._drop_last else -(-rows // self.batch_size)

    def rows(self, epoch: int) -> list[np.ndarray]:
        """Row indices of each of this worker's batches."""
        if self._order is not None:
            batches = self._order(epoch)
            usable = len(batches) // self._world_size * self._world_size
            return [np.asarray(batch) for batch in batches[self._rank : usable : self._world_size]]
        if self._shuffle:
            order = np.random.default_rng((self._seed, epoch)).permutation(self.num_examples)
        else:
            order = np.arange(self.num_examples)
        padded = np.resize(order, -(-self.num_examples // self._world_size) * self._world_size)
        mine = padded[self._rank :: self._world_size]
        batches = [mine[at : at + self.batch_size] for at in range(0, len(mine), self.batch_size)]
        return batches[: self.num_batches()]

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        rows = self.rows(epoch)[start:]
        if self._prefetch and len(rows) > 1:
            return self._ahead(rows)
        return (self._batch(batch) for batch in rows)

    def _batch(self, rows: np.ndarray) -> Batch:
        return {**self._read(rows), "index": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))}

    def _ahead(self, rows: list[np.ndarray]) -> Generator[Batch, None, None]:
        """Prefetch in a thread; its errors are raised here, and leaving the loop early ends it."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=self._prefetch)
        left = threading.Event()

        def put(item: Batch | BaseException | None) -> None:
            while not left.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for batch in rows:
                    if left.is_set():
                        return
                    put(self._batch(batch))
                put(None)
            except BaseException as error:  # noqa: BLE001 - re-raised in the consuming thread
                put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            thread.join()
