"""LRU cache of class prototypes for open-vocabulary requests. Independent of Ray."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor

from torch import Tensor

from serve.contract import overloaded
from serve.tasks.labels.vocabulary import Vocabulary
from tenfold.hashing import content_hash

_MAX_WAITING = 16
_MAX_KEPT = 64  # a thousand classes of 512 numbers are 2 MB


class PrototypeCache:
    """LRU cache from vocabulary to prototypes.

    A cached vocabulary does not wait, and concurrent requests with the same new vocabulary share one computation. Only
    successes are kept. For use on one event loop.

    Args:
        compute: Computes the prototypes ``(K, D)`` of a vocabulary; its errors go to the requests that wait for them.
        executor: Runs ``compute``. One thread is enough: text encoders gain nothing from running concurrently.
        max_kept: Capacity, in vocabularies.
    """

    def __init__(
        self, compute: Callable[[Vocabulary], Tensor], executor: Executor, *, max_kept: int = _MAX_KEPT
    ) -> None:
        self._compute = compute
        self._executor = executor
        self._max_kept = max_kept
        self._futures: OrderedDict[str, asyncio.Future[Tensor]] = OrderedDict()

    async def get(self, vocabulary: Vocabulary) -> Tensor:
        """Return prototypes ``(K, D)``, one row per class in the vocabulary's order."""
        key = content_hash([vocabulary.classes, vocabulary.prompts])  # the texts may be megabytes
        future = self._futures.get(key)
        if future is None:
            if sum(not each.done() for each in self._futures.values()) >= _MAX_WAITING:
                raise overloaded("as many new classes as there is room for are being encoded; try again")
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._compute, vocabulary)
            self._futures[key] = future
            future.add_done_callback(lambda done: self._settle(key, done))
        self._futures.move_to_end(key)
        # A client that disconnects must not cancel the computation for others.
        return await asyncio.shield(future)

    def _settle(self, key: str, future: "asyncio.Future[Tensor]") -> None:
        failed = future.cancelled() or future.exception() is not None
        if failed and self._futures.get(key) is future:
            del self._futures[key]
        while len(self._futures) > self._max_kept:
            self._futures.popitem(last=False)
