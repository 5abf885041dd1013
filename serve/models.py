"""The models behind an ingress: which there are, what is known of each, and how one is asked."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from serve.contract import Answer, Declined, Description, ModelClient
from serve.limits import RefusedError

_MAX_ATTEMPTS = 3


class ModelTable:
    """Served models by name.

    Descriptions follow the replicas: while a new version rolls out, replies of both come in, and each carries its
    own description if it is not the one known here.

    Args:
        clients: By name, at least one.
        descriptions: What is known before any replica has answered; one for each client.
    """

    def __init__(self, clients: Mapping[str, ModelClient], descriptions: Iterable[Description]) -> None:
        self._clients = dict(clients)
        self._descriptions = {description.name: description for description in descriptions}
        if self._clients.keys() != self._descriptions.keys():
            raise ValueError(f"clients {sorted(self._clients)} and descriptions {sorted(self._descriptions)} differ")

    def names(self) -> list[str]:
        return sorted(self._clients)

    def description(self, name: str, version: str | None = None) -> Description:
        """What is known of a model.

        Raises:
            RefusedError: 404, naming what there is, for a model or a version that is not served.
        """
        description = self._descriptions.get(name)
        if description is None:
            known = ", ".join(self.names())
            raise RefusedError(404, f"there is no model {name!r}; served are: {known}", "unknown_model")
        if version is not None and version != description.version:
            raise self._unknown_version(Declined(f"model {name} has no version {version!r}", description))
        return description

    async def refresh(self, name: str) -> Description:
        """Ask a replica what runs now."""
        self.description(name)
        description = await self._clients[name].describe()
        self._descriptions[name] = description
        return description

    async def infer(self, name: str, images: np.ndarray, version: str | None = None) -> tuple[Answer, Description]:
        """Run ready-made pictures, uint8 ``(N, S, S, 3)``.

        Raises:
            RefusedError: 404 for a version that is not served, 422 for pictures that its model does not take; what
                the client raises.
        """
        reply, description = await self._ask(name, images, version)
        if isinstance(reply, Declined):
            if version is not None and version != description.version:
                raise self._unknown_version(reply)
            raise RefusedError(422, reply.message, "tensor")
        return reply, description

    async def infer_picture(
        self, name: str, prepare: Callable[[int], "asyncio.Future[np.ndarray]"]
    ) -> tuple[Answer, Description]:
        """Run one picture that ``prepare`` brings to the size it is given, uint8 ``(1, S, S, 3)``.

        A roll-out to a version of another picture size, just then, makes it prepare the picture again.
        """
        for _ in range(_MAX_ATTEMPTS):
            images = await prepare(self.description(name).image_size)
            reply, description = await self._ask(name, images, None)
            if isinstance(reply, Answer):
                return reply, description
        raise RefusedError(503, f"model {name} is changing its version; try again", "rollout", {"Retry-After": "1"})

    async def _ask(self, name: str, images: np.ndarray, version: str | None) -> tuple[Answer | Declined, Description]:
        known = self.description(name)
        reply = await self._clients[name].infer(images, known.version, version)
        if reply.description is not None:
            self._descriptions[name] = known = reply.description
        return reply, known

    def _unknown_version(self, declined: Declined) -> RefusedError:
        return RefusedError(404, f"{declined.message}; served is: {declined.description.version}", "unknown_model")
