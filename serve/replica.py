"""Base of the model deployments: dynamic batching across requests, own threads, health checks."""

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
    """All or part of a request, as an element of a batch."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    @property
    def weight(self) -> int:
        """Share of a batch, at most ``max_batch_size``."""
        ...


class Loaded(Protocol):
    """One version of a model, ready to predict."""

    description: Description

    def predict_each(self, pieces: Sequence[Any]) -> Sequence[Outputs | Declined | Failure]:
        """Predict each piece, in order."""
        ...

    def check(self) -> None:
        """Raise if the model no longer works."""
        ...


L = TypeVar("L", bound=Loaded)


def batch_weight(pieces: Sequence[Rows]) -> int:
    """Size of a batch: the sum of the weights of its pieces."""
    return sum(piece.weight for piece in pieces)


class Replica(Generic[L]):
    """A model with dynamic batching, independent of HTTP; subclasses add the requests that they accept.

    Args:
        model: Bundle and batching settings.
        load: Loads the model.
    """

    def __init__(self, model: ServedModel, load: Callable[[ServedModel], L]) -> None:
        torch.set_num_threads(model.threads)
        self._loaded = load(model)
        # One thread: concurrent calls of one predictor gain nothing, and the event loop stays free.
        self._executor = ThreadPoolExecutor(1, "predict", torch.set_num_threads, (model.threads,))
        self._metrics = BatchMetrics(model.name, model.version)
        batching: Any = self._run_batch  # the decorator adds the setters
        batching.set_max_batch_size(model.max_batch_size)
        batching.set_batch_wait_timeout_s(model.batch_wait_s)

    async def describe(self) -> Description:
        return self._loaded.description

    async def check_health(self) -> None:
        """Check the model; Serve replaces a replica whose check raises or times out."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.check)

    async def _answer(self, pieces: Sequence[Rows], known_version: str) -> Answer | Declined:
        """Answer one request by its pieces; the first refusal if any piece is refused.

        Raises:
            RuntimeError: If the predictor failed.
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
        """Refuse a request that this model's task does not support."""
        this = self._loaded.description
        return Declined(f"model {this.name} does {this.task}", this, "task")

    # One result per piece and no exception for all: a bad request must not fail the rest of its batch.
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002, batch_size_fn=batch_weight)
    async def _run_batch(self, pieces: list[Any]) -> list[Any]:
        started = time.perf_counter()
        results = await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.predict_each, pieces)
        self._metrics.record(sum(len(piece) for piece in pieces), (time.perf_counter() - started) * 1000)
        return [*results]
