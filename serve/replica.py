"""What every model's deployment does: threads of its own, batches across requests, a check of its health."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from ray import serve

from serve.contract import Answer, Declined, Description
from serve.loading import Failure, Outputs
from serve.settings import ServedModel
from serve.telemetry import BatchMetrics


class Rows(Protocol):
    """A request, or a part of one, as a batch takes it."""

    def __len__(self) -> int:
        """Examples."""
        ...

    @property
    def weight(self) -> int:
        """How much of a batch it takes up, at most ``max_batch_size``."""
        ...


class Loaded(Protocol):
    """One version of a model, ready to run."""

    description: Description

    def predict_each(self, pieces: Sequence[Any]) -> Sequence[Outputs | Declined | Failure]:
        """A result for each piece, in their order."""
        ...

    def check(self) -> None:
        """Raise if the model no longer works."""
        ...


L = TypeVar("L", bound=Loaded)


def batch_weight(pieces: Sequence[Rows]) -> int:
    """Size of a batch: what its pieces take up, not requests."""
    return sum(piece.weight for piece in pieces)


class Replica(Generic[L]):
    """A model with dynamic batching; knows nothing of HTTP. Deployments add the requests that they take.

    Args:
        model: What to load and how to batch.
        load: Makes the loaded model.
    """

    def __init__(self, model: ServedModel, load: Callable[[ServedModel], L]) -> None:
        torch.set_num_threads(model.threads)
        self._loaded = load(model)
        # One thread: calls of one predictor gain nothing from running at once, and the event loop stays free.
        self._executor = ThreadPoolExecutor(1, "predict", torch.set_num_threads, (model.threads,))
        self._metrics = BatchMetrics(model.name, model.version)
        batching: Any = self._run_batch  # the decorator adds the setters
        batching.set_max_batch_size(model.max_batch_size)
        batching.set_batch_wait_timeout_s(model.batch_wait_s)

    async def describe(self) -> Description:
        return self._loaded.description

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises or does not return in time."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.check)

    async def _answer(self, pieces: Sequence[Rows], known_version: str) -> Answer | Declined:
        """The answer to one request, put together from its pieces; the first refusal where a piece is refused.

        Raises:
            RuntimeError: The predictor failed.
        """
        results = await asyncio.gather(*(self._run_batch(piece) for piece in pieces))
        if failures := [result for result in results if isinstance(result, Failure)]:
            raise RuntimeError(f"the predictor failed: {failures[0].message}")
        if declined := [result for result in results if isinstance(result, Declined)]:
            return declined[0]
        description = self._loaded.description
        outputs = {name: np.concatenate([part[name] for part in results]) for name in results[0]}
        return Answer(description.version, outputs, description if known_version != description.version else None)

    def _other_task(self) -> Declined:
        """The refusal of a request of a kind that this model's task does not have."""
        this = self._loaded.description
        return Declined(f"model {this.name} does {this.task}", this, "task")

    # A result per piece, never an exception for all: one bad request must not fail its neighbours.
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002, batch_size_fn=batch_weight)
    async def _run_batch(self, pieces: list[Any]) -> list[Any]:
        started = time.perf_counter()
        results = await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.predict_each, pieces)
        self._metrics.record(sum(len(piece) for piece in pieces), (time.perf_counter() - started) * 1000)
        return [*results]
