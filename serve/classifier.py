"""Ray Serve deployment of an image classifier."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve.contract import Answer, Declined
from serve.explanation import Explain
from serve.loading import LoadedModel
from serve.prototypes import PrototypeCache
from serve.replica import Replica
from serve.settings import ServedModel
from serve.vocabulary import Vocabulary


class Classifier(Replica[LoadedModel]):
    """Replica of an image classifier: verified at start, batched across requests.

    Args:
        model: Bundle and batching settings.

    Raises:
        BundleError: If the bundle differs from what was trained; the replica does not start.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model, LoadedModel)
        self._max_batch_size = model.max_batch_size
        # A separate thread for texts, so that a long list of new classes does not delay the images of other requests.
        text_executor = ThreadPoolExecutor(1, "texts", torch.set_num_threads, (model.threads,))
        self._prototypes = PrototypeCache(self._encode, text_executor)

    async def infer(
        self,
        images: np.ndarray,
        known_version: str,
        required_version: str | None = None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> Answer | Declined:
        """Predict uint8 ``(N, S, S, 3)``, batched with other requests; see ``ModelClient``."""
        if declined := self._loaded.decline(images, required_version, vocabulary, explain):
            return declined
        try:
            prototypes = await self._prototypes.get(vocabulary) if vocabulary is not None else None
        except ValueError as error:
            return self._loaded.decline_texts(error)
        return await self._answer(self._loaded.pieces(images, self._max_batch_size, prototypes, explain), known_version)

    async def regress(self, *_: Any) -> Declined:
        """Decline inputs meant for a regressor that this model has just replaced."""
        return self._other_task()

    def _encode(self, vocabulary: Vocabulary) -> Tensor:
        started = time.perf_counter()
        prototypes = self._loaded.prototypes(vocabulary)
        self._metrics.record_texts((time.perf_counter() - started) * 1000)
        return prototypes
