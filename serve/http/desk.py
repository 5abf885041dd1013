"""The desk between the protocols and the models: their descriptions, threads and room for decoding, and ``ask``."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from serve.contract import Answer, Budget, Call, Client, Description, RefusedError, invalid, overloaded
from serve.settings import ServeSettings

T = TypeVar("T")

_MAX_ATTEMPTS = 3
_INLINE_BYTES = 64 * 1024  # smaller bodies parse faster than they reach a thread
_INLINE_PIXELS = 2**15
_LARGE = 2**20  # bytes or pixels, of which small work must not wait for
_SEEN_TIMEOUT_S = 2.0


class Desk:
    """Served models by name.

    Descriptions follow the models: during a roll-out both versions reply, and a reply carries a description if its
    version is not the one known here.

    Args:
        clients: Model name to client, at least one.
        descriptions: One for each client, from its bundle.
        settings: The limits.
    """

    def __init__(
        self, clients: Mapping[str, Client], descriptions: Iterable[Description], settings: ServeSettings
    ) -> None:
        self.settings = settings
        self._clients = dict(clients)
        self._descriptions = {description.name: description for description in descriptions}
        if self._clients.keys() != self._descriptions.keys():
            raise ValueError(f"clients {sorted(self._clients)} and descriptions {sorted(self._descriptions)} differ")
        self._small = ThreadPoolExecutor(settings.decode_threads, "decode")
        self._large = ThreadPoolExecutor(1, "decode-large")
        self._decoding = 0

    def names(self) -> list[str]:
        return sorted(self._clients)

    def description(self, name: str, version: str | None = None) -> Description:
        """Latest description of a model.

        Raises:
            RefusedError: 404 for a model or version that is not served, naming those that are.
        """
        description = self._descriptions.get(name)
        if description is None:
            known = ", ".join(self.names())
            raise RefusedError(404, f"there is no model {name!r}; served are: {known}", "unknown_model")
        if version is not None and version != description.version:
            raise unknown_version(name, version, description.version)
        return description

    async def known(self, name: str) -> Description:
        """Description of a model; it is asked itself where its bundle says too little."""
        description = self.description(name)
        if not description.whole:
            description = self._descriptions[name] = await self._clients[name].describe()
        return description

    async def last_seen(self, name: str) -> Description:
        """Latest description of a model, whether it is running or not."""
        try:
            async with asyncio.timeout(_SEEN_TIMEOUT_S):
                return await self.known(name)
        except (TimeoutError, RefusedError):
            return self.description(name)

    def is_ready(self, name: str) -> bool:
        """Return whether a model would answer now; asks nobody."""
        return self._clients[name].ready()

    async def ask(
        self, name: str, version: str | None, make_call: Callable[[Description], Awaitable[Call]]
    ) -> tuple[Answer, Description, Call]:
        """Ask a model; if a roll-out changes what it takes in between, the call is made again.

        Args:
            name: Name of the model.
            version: Required version; None: whichever runs.
            make_call: Makes the call for a description.

        Returns:
            The answer, the description of the version that gave it, and the call sent to that version.

        Raises:
            RefusedError: 404 for a version that is not served, 422 for a call that the model does not take or answers
                with NaN, 503 and 504 without an answer; errors of ``make_call``.
        """
        for _ in range(_MAX_ATTEMPTS):
            wanted = await self._in_time(name, self.known(name))
            self.description(name, version)
            deadline = time.time() + self.settings.request_timeout_s
            try:
                call = replace(await make_call(wanted), budget=Budget(deadline=deadline))
            except RefusedError as error:
                raise self.completed(error) from error
            reply = await self._in_time(name, self._clients[name].ask(call, wanted.version, version))
            now = reply.description or wanted
            # A replica of the version before does not undo what is known of the one that follows.
            if not (isinstance(reply, RefusedError) and reply.status == 404):
                self._descriptions[name] = now
            is_same = now.signature.inputs == wanted.signature.inputs and now.signature.kind == wanted.signature.kind
            if isinstance(reply, RefusedError):
                if is_same or reply.status != 422:
                    raise self.completed(reply)
            elif is_same:
                check_finite(reply, call, name)
                return reply, now, call
        raise RefusedError(503, f"model {name} is changing its version; try again", "rollout", {"Retry-After": "1"})

    def completed(self, refused: RefusedError) -> RefusedError:
        """Add to a refusal for want of an output the models that have it."""
        if refused.lacks is None:
            return refused
        able = [name for name in self.names() if self._descriptions[name].signature.gives(refused.lacks)]
        known = f"; of the models served here, these do: {', '.join(able)}" if able else ""
        return RefusedError(refused.status, refused.sentence + known, refused.reason, refused.headers)

    async def run(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """Run ``function`` in a thread if it handles many bytes, else at once; large work does not delay small."""
        if size <= _INLINE_BYTES:
            return function(*arguments)
        return await self._in_thread(size, function, *arguments)

    async def decode(self, num_pixels: int, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """Run ``function``, which decodes an image of so many pixels in a file of so many bytes.

        Raises:
            RefusedError: 503, if images with too many pixels are being decoded already.
        """
        if num_pixels <= _INLINE_PIXELS and size <= _INLINE_BYTES:
            return function(*arguments)
        async with self._admitted(num_pixels):
            return await self._in_thread(max(size, num_pixels), function, *arguments)

    @asynccontextmanager
    async def _admitted(self, num_pixels: int) -> AsyncIterator[None]:
        if self._decoding and self._decoding + num_pixels > self.settings.max_decoding_pixels:
            raise overloaded("as many pictures as there is room for are being decoded; try again", self._retry_after_s)
        self._decoding += num_pixels
        try:
            yield
        finally:
            self._decoding -= num_pixels

    def _in_thread(self, size: int, function: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        executor = self._large if size > _LARGE else self._small
        return asyncio.get_running_loop().run_in_executor(executor, partial(function, *arguments))

    async def _in_time(self, name: str, asking: Awaitable[T]) -> T:
        limit_s = self.settings.request_timeout_s
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                return await asking
        except TimeoutError as error:
            # A TimeoutError from below, raised before the limit, is an internal error.
            if time.monotonic() - started < limit_s:
                raise
            raise RefusedError(504, f"model {name} gave no answer in {limit_s:g} s", "timeout") from error

    @property
    def _retry_after_s(self) -> float:
        return self.settings.retry_after_s


def unknown_version(name: str, asked: str, served: str) -> RefusedError:
    """A refusal (404) of a version that is not served."""
    return RefusedError(404, f"model {name} has no version {asked!r}; served is: {served}", "unknown_model")


def check_finite(answer: Answer, call: Call, name: str) -> None:
    """Refuse to pass on NaN or infinite numbers, in JSON and as raw bytes alike.

    Raises:
        RefusedError: 422, naming the output.
    """
    for output in call.outputs or tuple(answer.outputs):
        values = answer.outputs.get(output)
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise invalid(
                f"model {name} answers this request with NaN or infinite numbers in {output!r}; send other inputs, "
                f"or ask for other outputs",
                "not_finite",
            )


def num_bytes(answer: Answer) -> int:
    return sum(values.nbytes for values in answer.outputs.values())
