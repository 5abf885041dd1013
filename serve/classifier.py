"""One model as a Serve deployment: verified at start, batched across requests, run in a thread of its own."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ray import serve

from serve.contract import Answer, Declined, Description
from serve.loading import Failure, LoadedModel, Outputs
from serve.settings import ServedModel
from serve.telemetry import BatchMetrics


def count_images(requests: Sequence[np.ndarray]) -> int:
    """Size of a batch: pictures, not requests."""
    return sum(len(images) for images in requests)


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
        self._metrics = BatchMetrics(model.name, model.version)
        batching: Any = self._run_batch  # the decorator adds the setters
        batching.set_max_batch_size(model.max_batch_size)
        batching.set_batch_wait_timeout_s(model.batch_wait_s)

    async def infer(
        self, images: np.ndarray, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        """Outputs for uint8 ``(N, S, S, 3)``, sharing batches with other requests; see ``ModelClient``."""
        if declined := self._loaded.decline(images, required_version):
            return declined
        step = self._max_batch_size
        pieces = [images[start : start + step] for start in range(0, len(images), step)]
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

    # A result per request, never an exception for all: one bad request must not fail its neighbours.
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002, batch_size_fn=count_images)
    async def _run_batch(self, requests: list[np.ndarray]) -> list[Outputs | Failure]:
        started = time.perf_counter()
        results = await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded.predict_each, requests)
        self._metrics.record(count_images(requests), (time.perf_counter() - started) * 1000)
        return results
