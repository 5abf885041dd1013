"""Ray Serve deployment of the HTTP application, and its client of the models' replicas."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from serve.api import create_app
from serve.contract import Answer, Declined, Description
from serve.explanation import Explain
from serve.keys import Keys
from serve.limits import RefusedError, overloaded
from serve.models import ModelTable
from serve.regression import Regression
from serve.settings import ServeSettings
from serve.telemetry import RequestMetrics
from serve.trace import log_to_stdout
from serve.vocabulary import Vocabulary

T = TypeVar("T")

_MAX_ATTEMPTS = 3
_RETRY_WAIT_S = 0.2


class HandleClient:
    """A ``ModelClient`` over a Serve handle.

    A request whose replica died is retried on another one: predictions have no side effects.
    """

    def __init__(self, name: str, handle: Any, settings: ServeSettings) -> None:
        self._name = name
        self._handle = handle
        self._settings = settings

    async def infer(
        self,
        images: np.ndarray,
        known_version: str,
        required_version: str | None = None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> Answer | Declined:
        return await self._call("infer", images, known_version, required_version, vocabulary, explain)

    async def regress(
        self, asked: Regression, known_version: str, required_version: str | None = None
    ) -> Answer | Declined:
        return await self._call("regress", asked, known_version, required_version)

    async def describe(self) -> Description:
        return await self._call("describe")

    async def _call(self, method: str, *arguments: Any) -> Any:
        limit_s = self._settings.request_timeout_s
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                return await self._attempts(method, *arguments)
        except TimeoutError as error:
            # A TimeoutError of Serve itself, raised before the limit, is an internal error.
            if time.monotonic() - started < limit_s:
                raise
            raise RefusedError(504, f"model {self._name} gave no answer in {limit_s:g} s", "timeout") from error
        except BackPressureError as error:
            message = f"model {self._name} has as many requests waiting as it takes; try again"
            raise overloaded(message, self._settings.retry_after_s) from error

    async def _attempts(self, method: str, *arguments: Any) -> Any:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return await getattr(self._handle, method).remote(*arguments)
            except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError) as error:
                if attempt == _MAX_ATTEMPTS:
                    message = f"no replica of model {self._name} is there at present; try again"
                    raise overloaded(message, self._settings.retry_after_s) from error
                await asyncio.sleep(_RETRY_WAIT_S * attempt)
        raise AssertionError("the last attempt returns or raises")


@serve.ingress()
class Ingress:
    """HTTP front end of all models: checks, decodes, routes by model name, encodes.

    Args:
        handles: Serve handle of each model.
        descriptions: Description of each model before a replica has reported.
        settings: The limits.

    Raises:
        ValueError: If the keys file is invalid; the replica does not start.
    """

    def __init__(
        self, handles: Mapping[str, Any], descriptions: Sequence[Description], settings: ServeSettings
    ) -> None:
        clients = {name: HandleClient(name, handle, settings) for name, handle in handles.items()}
        self._table = ModelTable(clients, descriptions)
        self._settings = settings
        self._keys = Keys.load(settings.keys_file) if settings.keys_file else None
        self._executor = ThreadPoolExecutor(settings.decode_threads, "decode")
        if settings.access_log:
            log_to_stdout()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the application; Serve calls this once in each replica."""
        return create_app(
            self._table, self._settings, self._keys, RequestMetrics(), self._executor, server_tells_id=True
        )
