"""Regression: mean and std of every target, and the interval at the level of the request."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from serve.contract import (
    Answer,
    Call,
    Description,
    Failure,
    Form,
    Limits,
    Outputs,
    Picture,
    RefusedError,
    Sent,
    Start,
    check_reply,
    invalid,
    shown,
)
from serve.tasks import slots
from serve.tasks.batches import as_arrays, divided, isolated
from serve.tasks.pictures import PNG, prefers_png
from tenfold.bundle import load_probes
from tenfold.tasks import LEVEL, LOWER, UPPER, Pixels, RegressionPredictor

SHOW = "show"
WORDS = (SHOW, LEVEL)
ACCEPTED = slots.ACCEPTED
_ENDS = (LOWER, UPPER)
misnamed = slots.misnamed


def read(sent: Sent, description: Description, limits: Limits) -> Call:
    """Read one example, numbers or an image, with its level."""
    _read_shown(sent)
    return slots.read(sent, description, limits)


def accept(call: Call, description: Description, limits: Limits, in_text: Callable[[str], bool]) -> Call:
    """Check inputs and level; naming a bound asks for both, and needs a level. See ``Kind``."""
    call = slots.accept(call, description, limits, in_text)
    if call.outputs is None:
        return call
    is_named = not set(call.outputs).isdisjoint(_ENDS)
    if is_named and LEVEL not in call.params:
        raise invalid(f"{LOWER!r} and {UPPER!r} need the interval's {LEVEL!r} in the request's parameters", LEVEL)
    return replace(call, outputs=(*call.outputs, *_ENDS)) if LEVEL in call.params and not is_named else call


def show(
    answer: Answer, call: Call, description: Description, sent: Sent, limits: Limits
) -> Mapping[str, Any] | Picture:
    """Show mean, std and the rest of every target, as nested lists if a target is an array; or as an image."""
    if prefers_png(sent.accept):
        return _picture(answer, description, _read_shown(sent))
    check_reply(sum(values.size for values in answer.outputs.values()), True, limits)
    level = {LEVEL: call.params[LEVEL]} if LOWER in answer.outputs else {}
    return {
        **level,
        "targets": [
            {"name": name, **{output: values[0, channel].tolist() for output, values in answer.outputs.items()}}
            for channel, name in enumerate(description.signature.columns)
        ],
    }


def form(description: Description) -> Form:
    """Describe what ``read`` takes and ``show`` gives."""
    signature = description.signature
    nested: dict[str, Any] = {
        "anyOf": [{"type": "number"}, {"type": "array", "items": {}}],
        "description": "A number, or nested lists of them.",
    }
    target = {
        "type": "object",
        "properties": {"name": {"type": "string"}, **{slot.name: nested for slot in signature.outputs}},
        "required": ["name", *(slot.name for slot in signature.always)],
    }
    asked = slots.form_of(
        description,
        {
            LEVEL: {"type": "number", "description": "Level of the interval, as requested."},
            "targets": {"type": "array", "items": target},
        },
    )
    if not asked.takes_file:
        return asked
    word = {
        "enum": ["mean", "std"],
        "description": "With 'Accept: image/png': the predicted image, or its std in colours.",
    }
    return replace(asked, gives_picture=True, query={**asked.query, SHOW: word})


def _read_shown(sent: Sent) -> str:
    """Read ``show``; raises ``RefusedError`` (422) for an unknown value, or if no PNG is asked for."""
    word = sent.query.get(SHOW)
    if word is not None and not prefers_png(sent.accept):
        raise invalid(f"{SHOW!r} says what a picture shows; ask for one with 'Accept: image/png'", "picture")
    if word not in (None, "mean", "std"):
        raise invalid(f"{SHOW!r} must be mean or std, got {shown(word)}", "picture")
    return word or "mean"


def _picture(answer: Answer, description: Description, word: str) -> Picture:
    """Render the predicted image, or its std in colours from 0 to its maximum, as a PNG.

    Raises:
        RefusedError: 422, if the model's output is not an image.
    """
    form = slots.image_slot(description).image
    mean, std = answer.outputs["mean"][0], answer.outputs["std"][0]
    if mean.ndim != 3 or len(mean) not in (1, 3) or not isinstance(form, Pixels):
        raise invalid(f"model {description.name} answers with {list(mean.shape)} numbers, which are no picture")
    if word == "mean":
        pixels = np.round(255 * np.clip(mean / form.max_value, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    else:
        pixels = colormaps["magma"](std.mean(0) / max(float(std.mean(0).max()), 1e-30), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)).save(buffer, "PNG")
    headers = {"tenfold-std-mean": f"{std.mean():.6g}", "tenfold-std-largest": f"{std.mean(0).max():.6g}"}
    return Picture(content=buffer.getvalue(), media_type=PNG, headers=headers)


@dataclass(frozen=True)
class ExamplePiece:
    """All or part of the examples of one call."""

    inputs: Mapping[str, np.ndarray]
    level: float | None
    weight: int
    """Share of a batch: its number of examples, more if they are large."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of its inputs, which must agree within one pass."""
        return tuple(sorted((name, values.shape[1:]) for name, values in self.inputs.items()))


class Regressor:
    """One version of a regression model.

    Args:
        start: What to load from.
    """

    def __init__(self, start: Start) -> None:
        self._predictor = cast(RegressionPredictor, start.predictor)
        self._slots = start.description.signature.inputs
        self._max_batch_size, self._max_batch_values = start.model.max_batch_size, start.model.max_batch_values
        probes = cast(Mapping[str, Tensor], load_probes(start.bundle)[0])
        self._one = {name: values[:1].numpy() for name, values in probes.items()}
        self._interval(self._predict(self._one), 0.5)

    def check(self, call: Call) -> None:
        """Raise ``RefusedError`` for inputs that do not fit."""
        if message := slots.misfit(call.inputs, self._slots):
            raise invalid(message)

    async def pieces(self, call: Call) -> list[ExamplePiece]:
        """Split a checked call into pieces that fit into one call of the predictor."""
        length = len(next(iter(call.inputs.values())))
        # A batch is full at max_batch_size examples or max_batch_values numbers, whichever comes first.
        share = max(1.0, self._max_batch_size * slots.num_values(call.inputs) / length / self._max_batch_values)
        size = max(1, int(self._max_batch_size / share))
        pieces = []
        for start in range(0, length, size):
            inputs = {name: values[start : start + size] for name, values in call.inputs.items()}
            rows = min(size, length - start)
            weight = min(self._max_batch_size, math.ceil(rows * share))
            pieces.append(ExamplePiece(inputs, call.params.get(LEVEL), weight))
        return pieces

    def run(self, pieces: Sequence[ExamplePiece]) -> list[Outputs | RefusedError | Failure]:
        """Predict each piece, in order; pieces whose examples have the same shapes share one pass."""
        positions: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
        for position, piece in enumerate(pieces):
            positions.setdefault(piece.shapes, []).append(position)
        results: dict[int, Outputs | RefusedError | Failure] = {}
        for alike in positions.values():
            results.update(zip(alike, isolated(self._run, [pieces[position] for position in alike]), strict=True))
        return [results[position] for position in range(len(pieces))]

    def try_out(self) -> None:
        """Raise if the predictor no longer works."""
        self._predict(self._one)

    def _predict(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        with torch.inference_mode():
            return as_arrays(self._predictor(**{name: torch.tensor(values) for name, values in inputs.items()}))

    def _run(self, pieces: Sequence[ExamplePiece]) -> list[Outputs | RefusedError]:
        names = list(pieces[0].inputs)
        try:
            outputs = self._predict({name: np.concatenate([piece.inputs[name] for piece in pieces]) for name in names})
        except ValueError as error:
            if len(pieces) > 1:
                raise  # each piece is then retried alone
            # Sizes that the signature leaves open but the network rejects: the client must change them.
            return [invalid(str(error))]
        return [
            part if piece.level is None else part | self._interval(part, piece.level)
            for part, piece in zip(divided(outputs, pieces), pieces, strict=True)
        ]

    def _interval(self, outputs: Outputs, level: float) -> Outputs:
        ends = self._predictor.interval({name: torch.from_numpy(values) for name, values in outputs.items()}, level)
        return as_arrays(dict(zip(_ENDS, ends, strict=True)))


load = Regressor
