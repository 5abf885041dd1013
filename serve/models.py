"""Table of the models behind an ingress: their descriptions, and requests to them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from serve.contract import Answer, Declined, Description, ModelClient
from serve.explanation import Explain
from serve.limits import RefusedError
from serve.regression import Regression
from serve.vocabulary import Vocabulary
from tenfold.types import Preprocessing

_MAX_ATTEMPTS = 3
A = TypeVar("A", bound=Regression)


class ModelTable:
    """Served models by name.

    Descriptions follow the replicas: during a roll-out both versions reply, and a reply carries a description if its
    version is not the one known here.

    Args:
        clients: Model name to client, at least one.
        descriptions: One for each client, from before any replica has reported.
    """

    def __init__(self, clients: Mapping[str, ModelClient], descriptions: Iterable[Description]) -> None:
        self._clients = dict(clients)
        self._descriptions = {description.name: description for description in descriptions}
        if self._clients.keys() != self._descriptions.keys():
            raise ValueError(f"clients {sorted(self._clients)} and descriptions {sorted(self._descriptions)} differ")

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
            raise self._unknown_version(Declined(f"model {name} has no version {version!r}", description))
        return description

    async def refresh(self, name: str) -> Description:
        """Ask a replica for its current description."""
        self.description(name)
        description = await self._clients[name].describe()
        self._descriptions[name] = description
        return description

    async def known(self, name: str) -> Description:
        """Description reported by a replica; one is asked if none has reported yet."""
        description = self.description(name)
        return description if description.from_replica else await self.refresh(name)

    async def infer(
        self,
        name: str,
        images: np.ndarray,
        version: str | None = None,
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> tuple[Answer, Description]:
        """Predict preprocessed images, uint8 ``(N, S, S, 3)``, over the request's classes or the model's own.

        Raises:
            RefusedError: 404 for a version that is not served, 422 for images or classes that the model does not accept
                and for maps that it does not provide; errors of the client.
        """
        reply, description = await self._ask(name, images, version, vocabulary, explain)
        if isinstance(reply, Declined):
            if version is not None and version != description.version:
                raise self._unknown_version(reply)
            raise self._refusal(reply)
        return reply, description

    async def infer_image(
        self,
        name: str,
        prepare: Callable[[Preprocessing], "asyncio.Future[np.ndarray]"],
        vocabulary: Vocabulary | None = None,
        explain: Explain | None = None,
    ) -> tuple[Answer, Description, np.ndarray]:
        """Predict one image that ``prepare`` preprocesses to uint8 ``(1, S, S, 3)``.

        If a roll-out changes the preprocessing in between, the image is prepared again.

        Returns:
            The answer, the description of the version that gave it, and the image as that version saw it.

        Raises:
            RefusedError: 422 for classes that the model does not accept and for maps that it does not provide; errors
                of the client.
        """
        for _ in range(_MAX_ATTEMPTS):
            wanted = self.description(name).image_preprocessing
            images = await prepare(wanted)
            reply, description = await self._ask(name, images, None, vocabulary, explain)
            if isinstance(reply, Declined) and reply.reason in ("vocabulary", "explain", "unexplained"):
                raise self._refusal(reply)
            # Comparing sizes is not enough: the new version may crop where the old one stretched.
            if isinstance(reply, Answer) and _form(description.image_preprocessing) == _form(wanted):
                return reply, description, images
        raise _rolling_out(name)

    async def regress(
        self,
        name: str,
        prepare: Callable[[Description], Awaitable[A]],
        version: str | None = None,
    ) -> tuple[Answer, Description, A]:
        """Predict the request that ``prepare`` builds for a description.

        If a roll-out changes the inputs in between, the request is prepared again.

        Returns:
            The answer, the description of the version that gave it, and the request sent to that version.

        Raises:
            RefusedError: 404 for a version that is not served, 422 for inputs that the model does not accept and for a
                model of another task; errors of ``prepare`` and of the client.
        """
        for _ in range(_MAX_ATTEMPTS):
            wanted = self.description(name, version)
            asked = await prepare(wanted)
            reply = await self._clients[name].regress(asked, wanted.version, version)
            if reply.description is not None:
                self._descriptions[name] = reply.description
            if isinstance(reply, Answer):
                return reply, self._descriptions[name], asked
            if reply.reason == "version":
                raise self._unknown_version(reply)
            if reply.description.inputs == wanted.inputs:
                raise self._refusal(reply)
        raise _rolling_out(name)

    async def _ask(
        self,
        name: str,
        images: np.ndarray,
        version: str | None,
        vocabulary: Vocabulary | None,
        explain: Explain | None,
    ) -> tuple[Answer | Declined, Description]:
        known = self.description(name)
        reply = await self._clients[name].infer(images, known.version, version, vocabulary, explain)
        if reply.description is not None:
            self._descriptions[name] = known = reply.description
        return reply, known

    def _refusal(self, declined: Declined) -> RefusedError:
        """Refusal (422) of a declined request; for missing maps, it names the models that provide them."""
        if declined.reason != "unexplained":
            return RefusedError(422, declined.message, declined.reason)
        explaining = [name for name in self.names() if self._descriptions[name].explains]
        known = f"; of the models served here, these do: {', '.join(explaining)}" if explaining else ""
        return RefusedError(422, declined.message + known, "explain")

    def _unknown_version(self, declined: Declined) -> RefusedError:
        return RefusedError(404, f"{declined.message}; served is: {declined.description.version}", "unknown_model")


def _rolling_out(name: str) -> RefusedError:
    return RefusedError(503, f"model {name} is changing its version; try again", "rollout", {"Retry-After": "1"})


def _form(preprocessing: Preprocessing) -> tuple[int, str, str]:
    """Settings that determine the preprocessed bytes; the predictor scales and normalises."""
    return preprocessing.image_size, preprocessing.resize, preprocessing.interpolation
