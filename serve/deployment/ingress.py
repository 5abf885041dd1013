"""Serve deployment of the HTTP application, and of the models that live in its process."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve

from serve.clients.handle import HandleClient
from serve.clients.local import LocalModel
from serve.contract import Answer, Call, Client, Description, RefusedError
from serve.deployment.metrics import BatchMetrics, RequestMetrics
from serve.http.access_log import log_to_stdout
from serve.http.app import App
from serve.http.desk import Desk
from serve.http.keys import Keys
from serve.settings import ServedModel, ServeSettings
from serve.tasks.table import kind_of, words

_PATIENCE_S = 60.0

logger = logging.getLogger(__name__)


class Missing:
    """Client of a model that could not be loaded: refuses, so that the others can be asked."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def ask(self, call: Call, known_version: str, required_version: str | None = None) -> Answer | RefusedError:
        return self._refusal()

    async def describe(self) -> Description:
        raise self._refusal()

    def ready(self) -> bool:
        return False

    def _refusal(self) -> RefusedError:
        return RefusedError(503, f"model {self._name} could not be loaded; the server's log tells why", "not_loaded")


async def _until_ready(clients: Sequence[Client]) -> None:
    """Wait for the models of other deployments, which start at the same time; not for ever, as one may never start."""
    deadline = time.monotonic() + _PATIENCE_S
    while not all(client.ready() for client in clients) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


@serve.ingress()
class Ingress:
    """HTTP front end of all models: checks, decodes, routes by model name, encodes.

    Args:
        models: The models that live in this process.
        own: The other models.
        handles: Serve handle of each of these.
        descriptions: Description of each model from its bundle.
        settings: The limits.

    Raises:
        ValueError: If the keys file is invalid; the replica does not start.
        BundleError: If none of the models of this process can be loaded, and there are no others.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        models: Sequence[ServedModel],
        own: Sequence[ServedModel],
        handles: Mapping[str, Any],
        descriptions: Sequence[Description],
        settings: ServeSettings,
    ) -> None:
        keys = Keys.load(settings.keys_file) if settings.keys_file else None
        self._local: list[LocalModel] = []
        clients: dict[str, Client] = {
            model.name: HandleClient(model, handles[model.name], settings.retry_after_s) for model in own
        }
        for position, model in enumerate(models, start=1):
            is_last_hope = position == len(models) and not self._local and not own
            clients[model.name] = self._load(model, must=is_last_hope)
        await _until_ready([clients[model.name] for model in own])
        desk = Desk(clients, descriptions, settings)
        self._app = App(desk, kind_of, words(), keys, RequestMetrics(), server_tells_id=True)
        if settings.access_log:
            log_to_stdout()

    def _load(self, model: ServedModel, must: bool) -> Client:
        try:
            loaded = LocalModel(model, BatchMetrics(model.name, model.version))
        except Exception:
            if must:
                raise
            logger.exception("model %s could not be loaded", model.name)
            return Missing(model.name)
        self._local.append(loaded)
        return loaded

    def __serve_build_asgi_app__(self) -> App:
        """Return the application; Serve calls this once in each replica."""
        return self._app

    async def check_health(self) -> None:
        """Check the models of this process; Serve replaces a replica whose check raises or times out."""
        await asyncio.gather(*(model.check_health() for model in self._local))
