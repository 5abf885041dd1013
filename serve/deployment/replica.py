"""Serve deployment of one model."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from serve.clients.gathering import Item, Reply
from serve.clients.handle import HandleClient
from serve.clients.local import LocalModel
from serve.contract import Answer, Call, Description, Failure, RefusedError
from serve.deployment.metrics import BatchMetrics
from serve.settings import ServedModel


class Model:
    """Replica of a model of any kind: verified at start, batched across requests.

    Args:
        model: Bundle and batching settings.
        peers: The models that it may ask, with their handles, by name.

    Raises:
        BundleError: If the bundle differs from what was trained; the replica does not start.
    """

    def __init__(self, model: ServedModel, peers: Mapping[str, tuple[ServedModel, Any]]) -> None:
        clients = {name: HandleClient(peer, handle) for name, (peer, handle) in peers.items()}
        self._model = LocalModel(model, BatchMetrics(model.name, model.version), clients)

    async def ask(self, call: Call, known_version: str, required_version: str | None = None) -> Answer | RefusedError:
        """Answer a call; see ``Client``."""
        return await self._model.ask(call, known_version, required_version)

    async def ask_together(self, items: Sequence[Item]) -> list[Reply]:
        """Answer several calls, each by itself: one that fails or is refused does not affect the others."""
        replies = await asyncio.gather(*(self._model.ask(*item) for item in items), return_exceptions=True)
        return [reply if isinstance(reply, Answer | RefusedError) else Failure(str(reply)) for reply in replies]

    async def describe(self) -> Description:
        """Describe the running version."""
        return await self._model.describe()

    async def check_health(self) -> None:
        """Check the model; Serve replaces a replica whose check raises or times out."""
        await self._model.check_health()
