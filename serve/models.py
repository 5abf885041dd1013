"""The models behind an ingress: which there are, what is known of each, and how one is asked."""

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

    async def known(self, name: str) -> Description:
        """What a replica has told of a model, which it is asked for where none has yet."""
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
        """Run ready-made pictures, uint8 ``(N, S, S, 3)``, over the request's classes or the model's own.

        Raises:
            RefusedError: 404 for a version that is not served, 422 for pictures or classes that its model does not
                take and for maps that it does not give; what the client raises.
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
        """Run one picture that ``prepare`` brings to the form it is given, uint8 ``(1, S, S, 3)``.

        A roll-out to a version that wants another form, just then, makes it prepare the picture again.

        Returns:
            The answer, the description of the version that gave it, and the picture as that one saw it.

        Raises:
            RefusedError: 422 for classes that the model does not take and for maps that it does not give; what the
                client raises.
        """
        for _ in range(_MAX_ATTEMPTS):
            wanted = self.description(name).image_preprocessing
            images = await prepare(wanted)
            reply, description = await self._ask(name, images, None, vocabulary, explain)
            if isinstance(reply, Declined) and reply.reason in ("vocabulary", "explain", "unexplained"):
                raise self._refusal(reply)
            # Of the right size is not enough: the new version may cut where the old one stretched.
            if isinstance(reply, Answer) and _form(description.image_preprocessing) == _form(wanted):
                return reply, description, images
        raise _rolling_out(name)

    async def regress(
        self,
        name: str,
        prepare: Callable[[Description], Awaitable[A]],
        version: str | None = None,
    ) -> tuple[Answer, Description, A]:
        """Run a regression of what ``prepare`` makes of the request for the version that it is given.

        A roll-out to a version that takes other inputs, just then, makes it prepare the request again.

        Returns:
            The answer, the description of the version that gave it, and what that one was asked.

        Raises:
            RefusedError: 404 for a version that is not served, 422 for inputs that the model does not take and for a
                model that does no regression; what ``prepare`` and the client raise.
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
        """Of a request that asks a model for what it does not have; where maps are missing, it names who gives them."""
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
    """What of it concerns the picture's bytes; scaling and normalising are the predictor's."""
    return preprocessing.image_size, preprocessing.resize, preprocessing.interpolation
