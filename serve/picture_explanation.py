"""The plain protocol's way to ask for a map, and to show it: a word about it, or the picture under its colours."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from serve.contract import Answer
from serve.explanation import ATTRIBUTIONS, EXPLAIN, EXPLAIN_CLASS, EXPLAINED, Explain, choose
from serve.limits import invalid
from tenfold.figures.overlays import overlay

OVERLAY = "overlay"
PNG = "image/png"
_JSON = "application/json"
_WORDS: dict[str, bool | str] = {"true": True, "false": False, OVERLAY: OVERLAY}


@dataclass(frozen=True)
class Asked:
    """What a request says of maps, in one of its places."""

    explain: bool | str | None = None
    """``overlay``: the picture under the map's colours too, in the JSON."""
    classes: Any = None


def read_asked(given: Mapping[str, Any]) -> Asked:
    """What stands under ``explain`` and ``explain_class``, of which other entries are ignored.

    Raises:
        RefusedError: 422 for ``explain`` that is neither a boolean, nor its name, nor ``overlay``.
    """
    value = given.get(EXPLAIN)
    word = _WORDS.get(value.lower()) if isinstance(value, str) else value
    if value is not None and not isinstance(word, bool) and word != OVERLAY:
        raise invalid(f"{EXPLAIN!r} must be true, false or {OVERLAY}, got {repr(value)[:80]}", "explain")
    return Asked(word, given.get(EXPLAIN_CLASS))


def merge(query: Asked, body: Asked) -> Asked:
    """Both places of one request; raises ``RefusedError`` (422) where they both say the same thing's value."""
    for name, one, other in (
        (EXPLAIN, query.explain, body.explain),
        (EXPLAIN_CLASS, query.classes, body.classes),
    ):
        if one is not None and other is not None:
            raise invalid(f"{name!r} is given in the query and in the body; give it once", "explain")
    return Asked(
        query.explain if query.explain is not None else body.explain,
        query.classes if query.classes is not None else body.classes,
    )


def explain_of(asked: Asked) -> Explain | None:
    """As models take it: for one picture; raises ``RefusedError`` (422) for classes of another form."""
    return choose(bool(asked.explain), asked.classes, 1)


def prefers_png(accept: str | None) -> bool:
    """Whether a client names PNG in its ``Accept``, and not JSON with the same or a higher weight."""
    weights = {PNG: 0.0, _JSON: 0.0}
    for part in (accept or "").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = _weight(parameters)
    return weights[PNG] > weights[_JSON]


def _weight(parameters: list[str]) -> float:
    text = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 0.0


def explanation(answer: Answer, classes: tuple[str, ...]) -> dict[str, Any]:
    """In words and numbers: which class the map is about, and where it is strongest.

    Args:
        answer: For one picture, with ``attributions`` and ``explained``.
        classes: Of the model.
    """
    index = int(answer.outputs[EXPLAINED][0])
    scores = answer.outputs[ATTRIBUTIONS][0]
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return {
        "class": classes[index],
        "index": index,
        "probability": float(answer.outputs["probs"][0, index]),
        "image_size": len(scores),
        "strongest": {"x": int(column), "y": int(row)} if scores.any() else None,
    }


def overlay_png(image: np.ndarray, answer: Answer) -> bytes:
    """PNG of the picture, uint8 ``(S, S, 3)`` as the model saw it, under the colours of its map."""
    buffer = io.BytesIO()
    Image.fromarray(overlay(image, answer.outputs[ATTRIBUTIONS][0])).save(buffer, "PNG")
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_headers(reply: Mapping[str, Any]) -> dict[str, str]:
    """What the JSON would have told, for a reply that is a picture; names are percent-encoded UTF-8.

    Args:
        reply: The JSON's content, with the most probable label first, and the explanation.
    """
    top, told = reply["labels"][0], reply["explanation"]
    return {
        "tenfold-class": quote(top["name"], safe=" "),
        "tenfold-probability": f"{top['probability']:.6g}",
        "tenfold-explained-class": quote(told["class"], safe=" "),
        "tenfold-explained-index": str(told["index"]),
        "tenfold-explained-probability": f"{told['probability']:.6g}",
    }
