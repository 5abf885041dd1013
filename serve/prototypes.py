"""Prototypes of the classes that requests bring along: computed once each, away from the pictures. Knows no Ray."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor

from torch import Tensor

from serve.vocabulary import Vocabulary
from tenfold.hashing import content_hash

_MAX_KEPT = 64  # a thousand classes of 512 numbers are 2 MB


class PrototypeCache:
    """Prototypes by vocabulary, the least recently used forgotten first.

    A vocabulary that was asked for before waits for nobody, and requests that bring the same new one at the same time
    wait for one computation. Only successes are kept. For use on one event loop.

    Args:
        compute: Prototypes ``(K, D)`` of a vocabulary; what it raises goes to the requests that brought it.
        executor: Where it runs. One thread: text towers gain nothing from running at once.
        max_kept: Most vocabularies remembered.
    """

    def __init__(
        self, compute: Callable[[Vocabulary], Tensor], executor: Executor, *, max_kept: int = _MAX_KEPT
    ) -> None:
        self._compute = compute
        self._executor = executor
        self._max_kept = max_kept
        self._futures: OrderedDict[str, asyncio.Future[Tensor]] = OrderedDict()

    async def get(self, vocabulary: Vocabulary) -> Tensor:
        """Prototypes ``(K, D)``, a row for each class in the vocabulary's order."""
        key = content_hash([vocabulary.classes, vocabulary.prompts])  # the texts themselves may be megabytes
        future = self._futures.get(key)
        if future is None:
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._compute, vocabulary)
            self._futures[key] = future
            future.add_done_callback(lambda done: self._settle(key, done))
        self._futures.move_to_end(key)
        # A client that goes away must not take the answer from those who wait for the same one.
        return await asyncio.shield(future)

    def _settle(self, key: str, future: "asyncio.Future[Tensor]") -> None:
        failed = future.cancelled() or future.exception() is not None
        if failed and self._futures.get(key) is future:
            del self._futures[key]
        while len(self._futures) > self._max_kept:
            self._futures.popitem(last=False)
