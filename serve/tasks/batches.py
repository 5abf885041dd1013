"""Dynamic batching: calls that come while a model is busy share its next pass."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from serve.contract import Failure, Meter, Outputs, Piece, RefusedError

P = TypeVar("P", bound=Piece)
R = TypeVar("R")
Result = Outputs | RefusedError | Failure

logger = logging.getLogger(__name__)


class Batcher:
    """Queue of pieces in front of one thread; for use on one event loop.

    Args:
        run: Answers the pieces of a batch, in order.
        executor: Runs ``run``; one thread, as concurrent calls of one predictor gain nothing.
        max_weight: Maximum sum of the weights of a batch.
        wait_s: Time that an incomplete batch waits for further pieces once the model is free; with 0 a batch is what
            came during the one before.
        meter: Told the size and the time of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Result]],
        executor: Executor,
        *,
        max_weight: int,
        wait_s: float,
        meter: Meter,
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_weight = max_weight
        self._wait_s = wait_s
        self._meter = meter
        self._waiting: deque[tuple[Any, float | None, asyncio.Future[Result]]] = deque()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, piece: Any, deadline: float | None = None) -> Result:
        """Answer one piece together with others; one that nobody awaits any more, or is late, never runs."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((piece, deadline, future))
        if self._wait_s > 0 and self._weight() >= self._max_weight:
            self._full.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    def _weight(self) -> int:
        return sum(piece.weight for piece, _, _ in self._waiting)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self._wait_s > 0 and self._weight() < self._max_weight:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._wait_s)
            pieces, futures = self._next()
            if not pieces:
                continue
            started = time.perf_counter()
            try:
                results = await loop.run_in_executor(self._executor, self._run, pieces)
                if len(results) != len(pieces):
                    raise ValueError(f"run must answer each of {len(pieces)} pieces, got {len(results)} results")
            except Exception as error:  # noqa: BLE001 - goes to every call of the batch
                results = [Failure(f"{type(error).__name__}: {error}")] * len(pieces)
            latency_ms = (time.perf_counter() - started) * 1000
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
            self._meter.batch(sum(len(piece) for piece in pieces), latency_ms)

    def _next(self) -> tuple[list[Any], list["asyncio.Future[Result]"]]:
        """Take the pieces of the next batch from the queue."""
        pieces: list[Any] = []
        futures: list[asyncio.Future[Result]] = []
        weight = 0
        now = time.time()
        while self._waiting:
            piece, deadline, future = self._waiting[0]
            if pieces and weight + piece.weight > self._max_weight:
                break
            self._waiting.popleft()
            if future.done():  # its client has gone
                continue
            if deadline is not None and deadline < now:
                future.set_result(
                    RefusedError(504, "the time for an answer ran out before the model was free", "timeout")
                )
                continue
            pieces.append(piece)
            futures.append(future)
            weight += piece.weight
        return pieces, futures


def isolated(run: Callable[[Sequence[P]], Sequence[R]], pieces: Sequence[P]) -> list[R | Failure]:
    """Apply ``run`` to all pieces at once; if it raises, to each alone, so that only the faulty one fails."""
    try:
        return [*run(pieces)]
    except Exception as error:  # whatever a predictor raises stays with the piece that made it
        if len(pieces) == 1:
            logger.exception("the predictor failed")
            return [Failure(f"{type(error).__name__}: {error}")]
        return [result for piece in pieces for result in isolated(run, [piece])]


def divided(outputs: Outputs, pieces: Sequence[Piece]) -> list[Outputs]:
    """Split the outputs of joined pieces."""
    if len(pieces) == 1:
        return [outputs]
    ends = np.cumsum([len(piece) for piece in pieces])
    # Copies: serializing a view would include the whole batch.
    return [
        {name: values[end - len(piece) : end].copy() for name, values in outputs.items()}
        for piece, end in zip(pieces, ends, strict=True)
    ]


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Join the outputs of the pieces of one call."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_arrays(outputs: Mapping[str, Tensor]) -> Outputs:
    """Convert outputs to arrays of the same types."""
    return {name: values.detach().cpu().numpy() for name, values in outputs.items()}
