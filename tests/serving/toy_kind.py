"""Toy kind of answers: counts the letters of texts, or asks a peer to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.contract import Batched, Call, Conversing, Failure, Outputs, RefusedError, Start, invalid
from serve.tasks.batches import as_arrays, isolated
from serve.tasks.slots import ACCEPTED, WORDS, accept, form, misfit, misnamed, read, show

__all__ = ["ACCEPTED", "WORDS", "accept", "form", "load", "misnamed", "read", "show"]


@dataclass(frozen=True)
class TextPiece:
    call: Call

    def __len__(self) -> int:
        return len(self.call.inputs["text"])

    weight = property(__len__)


class Toy:
    def __init__(self, start: Start) -> None:
        self._predictor, self._slots = start.predictor, start.description.signature.inputs
        self.batches: list[int] = []

    def check(self, call: Call) -> None:
        if message := misfit(call.inputs, self._slots):
            raise invalid(message)

    async def pieces(self, call: Call) -> list[TextPiece]:
        return [TextPiece(call)]

    def run(self, pieces: Sequence[TextPiece]) -> list[Outputs | RefusedError | Failure]:
        self.batches.append(len(pieces))
        return [*isolated(lambda some: [self._answer(piece.call) for piece in some], pieces)]

    def try_out(self) -> None:
        self._predictor(text=["a"])

    def _answer(self, call: Call) -> Outputs:
        texts = call.inputs["text"].tolist()
        outputs = as_arrays(self._predictor(text=texts, **call.params))
        if "written" in (call.outputs or ()):
            upper = call.params.get("case") == "upper"
            outputs["written"] = np.array([text.upper() if upper else text.lower() for text in texts], object)
        return outputs


class AskingToy:
    def __init__(self, start: Start) -> None:
        [(self._name, self._peer)] = start.peers.items()

    async def answer(self, call: Call) -> tuple[Outputs, Mapping[str, Any]]:
        reply = await self._peer.ask(call, "")
        if isinstance(reply, RefusedError):
            raise reply
        return {**reply.outputs, "length": reply.outputs["length"] + 1}, {"queries": len(call.inputs["text"])}

    async def try_out(self) -> None:
        await self._peer.describe()


def load(start: Start) -> Batched | Conversing:
    return AskingToy(start) if start.peers else Toy(start)
