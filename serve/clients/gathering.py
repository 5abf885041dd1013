"""Gathering: calls that come while a model's replicas are busy travel to them together. Independent of Ray.

A call between processes costs more than a small model takes to answer it; many in one message share that cost. A call
that comes while a replica is free leaves at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from serve.contract import Answer, Call, Failure, RefusedError, overloaded

Item = tuple[Call, str, str | None]
"""A call with the version that the caller knows and the one that it requires."""
Reply = Answer | RefusedError | Failure
_MAX_BYTES = 8 * 2**20
_IN_FLIGHT_PER_REPLICA = 2  # one that is answered, and one that is there when it is


class Gatherer:
    """Queue in front of the replicas of one model; for use on one event loop.

    Args:
        send: Sends calls together and returns their replies, in order; its exception goes to all of them.
        num_replicas: Returns the number of running replicas.
        name: Name of the model, for refusals.
        max_calls: Maximum calls in one message.
        max_waiting: Maximum calls that wait; more are refused.
        retry_after_s: Told to clients for whom there is no room.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Reply]]],
        num_replicas: Callable[[], int],
        *,
        name: str,
        max_calls: int,
        max_waiting: int,
        retry_after_s: float,
    ) -> None:
        self._send = send
        self._num_replicas = num_replicas
        self._name = name
        self._max_calls = max_calls
        self._max_waiting = max_waiting
        self._retry_after_s = retry_after_s
        self._waiting: deque[tuple[Item, asyncio.Future[Reply]]] = deque()
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, item: Item) -> Answer | RefusedError:
        """Answer one call.

        Raises:
            RefusedError: 503, if too many wait already; errors of ``send``.
            RuntimeError: If the predictor failed.
        """
        if len(self._waiting) >= self._max_waiting:
            raise overloaded(
                f"model {self._name} has as many requests waiting as it takes; try again", self._retry_after_s
            )
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._send_some()
        reply = await future
        if isinstance(reply, Failure):
            raise RuntimeError(reply.message)  # noqa: TRY004 - not a matter of types
        return reply

    def _send_some(self) -> None:
        while self._waiting and self._in_flight < _IN_FLIGHT_PER_REPLICA * max(1, self._num_replicas()):
            together = self._take()
            if together:
                self._in_flight += 1
                task = asyncio.create_task(self._deliver(together))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[tuple[Item, "asyncio.Future[Reply]"]]:
        """Take the calls of the next message: alike, so that none waits for a slower kind of another."""
        together: list[tuple[Item, asyncio.Future[Reply]]] = []
        left: deque[tuple[Item, asyncio.Future[Reply]]] = deque()
        form: tuple[frozenset[str], frozenset[str]] | None = None
        size = 0
        while self._waiting:
            item, future = self._waiting.popleft()
            if future.done():  # its client has gone
                continue
            call = item[0]
            size += sum(values.nbytes for values in call.inputs.values())
            fits = form is None or (form == form_of(call) and size <= _MAX_BYTES)
            if not fits or len(together) == self._max_calls:
                left.append((item, future))
                if len(together) == self._max_calls or size > _MAX_BYTES:
                    break
                continue
            form = form_of(call)
            together.append((item, future))
        self._waiting.extendleft(reversed(left))
        return together

    async def _deliver(self, together: Sequence[tuple[Item, "asyncio.Future[Reply]"]]) -> None:
        deadlines = [item[0].budget.deadline for item, _ in together]
        latest = max((deadline for deadline in deadlines if deadline is not None), default=None)
        limit_s = None if latest is None or None in deadlines else max(0.0, latest - time.time())
        try:
            async with asyncio.timeout(limit_s):  # a replica that hangs must not keep its place for ever
                replies = await self._send([item for item, _ in together])
            for (_, future), reply in zip(together, replies, strict=True):
                if not future.done():
                    future.set_result(reply)
        except Exception as error:  # noqa: BLE001 - raised where each call is awaited
            for _, future in together:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._in_flight -= 1
            self._send_some()


def form_of(call: Call) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the inputs and parameters of a call; calls with equal ones take about the same time."""
    return frozenset(call.inputs), frozenset(call.params)


def brings_texts(call: Call) -> bool:
    """Return whether a call has inputs of text, which may take seconds to encode."""
    return any(values.dtype.kind in "OU" for values in call.inputs.values())
