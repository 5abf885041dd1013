"""Client of a model in a Serve deployment of its own."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from serve.clients.gathering import Gatherer, Item, Reply, brings_texts
from serve.contract import Answer, Call, Description, RefusedError, overloaded
from serve.settings import ServedModel

_MAX_ATTEMPTS = 3
_RETRY_WAIT_S = 0.2


class HandleClient:
    """A ``Client`` over a Serve handle.

    A request whose replica died is retried on another one: predictions have no side effects. Requests to a fixed number
    of replicas are gathered (``Gatherer``); autoscaling counts requests, so there each goes by itself.

    Args:
        model: The model.
        handle: Handle of its deployment.
        retry_after_s: Told to clients for whom there is no room.
    """

    def __init__(self, model: ServedModel, handle: Any, retry_after_s: float = 1.0) -> None:
        self._name = model.name
        self._handle = handle
        self._may_rest = model.autoscaling is not None and model.autoscaling.min_replicas == 0
        self._retry_after_s = retry_after_s
        self._gatherer = None
        if model.autoscaling is None:
            self._gatherer = Gatherer(
                self._send,
                lambda: num_running(handle),
                name=model.name,
                max_calls=model.max_batch_size,
                max_waiting=model.max_queued_requests,
                retry_after_s=retry_after_s,
            )

    async def ask(self, call: Call, known_version: str, required_version: str | None = None) -> Answer | RefusedError:
        if self._gatherer is not None and not brings_texts(call):
            return await self._gatherer.ask((call, known_version, required_version))
        reply: Answer | RefusedError = await self._call("ask", call, known_version, required_version)
        return reply

    async def _send(self, items: Sequence[Item]) -> Sequence[Reply]:
        replies: Sequence[Reply] = await self._call("ask_together", items)
        return replies

    async def describe(self) -> Description:
        described: Description = await self._call("describe")
        return described

    def ready(self) -> bool:
        """Return whether Serve has told this process of a running replica, or the model rests until it is asked."""
        return self._may_rest or num_running(self._handle) > 0

    async def _call(self, method: str, *arguments: Any) -> Any:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return await getattr(self._handle, method).remote(*arguments)
            except BackPressureError as error:
                message = f"model {self._name} has as many requests waiting as it takes; try again"
                raise overloaded(message, self._retry_after_s) from error
            except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
                if attempt == _MAX_ATTEMPTS:
                    message = f"no replica of model {self._name} is there at present; try again"
                    raise overloaded(message, self._retry_after_s) from error
                await asyncio.sleep(_RETRY_WAIT_S * attempt)
        raise AssertionError("the last attempt returns or raises")


def num_running(handle: Any) -> int:
    """Number of running replicas that Serve has told a handle of; asks nobody."""
    # There is no public way to the current ones: running_replicas_populated() stays true when all have died.
    if not handle.is_initialized:
        handle._init()
    router = handle._router._asyncio_router
    chooser = router.request_router
    if chooser is None:
        return len(router._running_replicas or ())
    return len(chooser.curr_replicas)
