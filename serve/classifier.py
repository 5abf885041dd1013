"""One model as a Serve deployment: verified at start, batched across requests, run in a thread of its own."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ray import serve
from torch import Tensor

from serve.contract import Answer, Declined, Description
from serve.explanation import Explain
from serve.loading import Failure, LoadedModel, Outputs, Piece
from serve.prototypes import PrototypeCache
from serve.settings import ServedModel
from serve.telemetry import BatchMetrics
from serve.vocabulary import Vocabulary


def count_images(pieces: Sequence[Piece]) -> int:
    """Size of a batch: pictures, not requests."""
    return sum(len(piece) for piece in pieces)


class Classifier:
    """A bundle with dynamic batching; knows nothing of HTTP.

    Args:
        model: What to load and how to batch.

    Raises:
        BundleError: If the bundle is not what was trained; the replica then does not start.
    """

    def __init__(self, model: ServedModel) -> None:
        torch.set_num_threads(model.threads)
        self._loaded = LoadedModel(model)
        self._max_batch_size = model.max_batch_size
        # One thread: calls of one predictor gain nothing from running at once, and the event loop stays free.
        self._executor = ThreadPoolExecutor(1, "predict", torch.set_num_threads, (model.threads,))
        # Another one for texts, so that a long list of new classes does not hold up the pictures of others.
        text_executor = ThreadPoolExecutor(1, "texts", torch.set_num_threads, (model.threads,))
        self._prototypes = PrototypeCache(self._encode, text_executor)
        self._metrics = BatchMetrics(model.name, model.version)
        batching: Any = self._run_batch  # the decorator adds the setters
        batching.set_max_batch_size(model.max_batch_size)
        batching.set_batch_wait_timeout_s(model.batch_wait_s)

    async def infer(
        self,
        images: np.ndarray,
        known_version: str,
        required_version: str | None = None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> Answer | Declined:
        """Outputs for uint8 ``(N, S, S, 3)``, sharing batches with other requests; see ``ModelClient``."""
        if declined := self._loaded.decline(images, required_version, vocabulary, explain):
            return declined
        try:
            prototypes = await self._prototypes.get(vocabulary) if vocabulary is not None else None
        except ValueError as error:
            return self._loaded.decline_texts(error)
        pieces = self._loaded.pieces(images, self._max_batch_size, prototypes, explain)
        results = await asyncio.gather(*(self._run_batch(piece) for piece in pieces))
        if failures := [result for result in results if isinstance(result, Failure)]:
            raise RuntimeError(f"the predictor failed: {failures[0].message}")
        parts = [result for result in results if not isinstance(result, Failure)]
        description = self._loaded.description
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Answer(description.version, outputs, description if known_version != description.version else None)

    async def describe(self) -> Description:
        return self._loaded.description

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises or does not return in time."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.check)

    def _encode(self, vocabulary: Vocabulary) -> Tensor:
        started = time.perf_counter()
        prototypes = self._loaded.prototypes(vocabulary)
        self._metrics.record_texts((time.perf_counter() - started) * 1000)
        return prototypes

    # A result per piece, never an exception for all: one bad request must not fail its neighbours.
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002, batch_size_fn=count_images)
    async def _run_batch(self, pieces: list[Piece]) -> list[Outputs | Failure]:
        started = time.perf_counter()
        results = await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.predict_each, pieces)
        self._metrics.record(count_images(pieces), (time.perf_counter() - started) * 1000)
        return results
