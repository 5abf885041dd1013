"""Attribution maps in the plain protocol: request parameters, the summary in JSON, the overlay as a PNG."""

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
    """Map parameters of a request, from the query or from the body."""

    explain: bool | str | None = None
    """``overlay`` adds the image under the colours of its map to the JSON."""
    classes: Any = None


def read_asked(given: Mapping[str, Any]) -> Asked:
    """Read ``explain`` and ``explain_class``; other entries are ignored.

    Raises:
        RefusedError: 422 if ``explain`` is neither a boolean, nor its name, nor ``overlay``.
    """
    value = given.get(EXPLAIN)
    word = _WORDS.get(value.lower()) if isinstance(value, str) else value
    if value is not None and not isinstance(word, bool) and word != OVERLAY:
        raise invalid(f"{EXPLAIN!r} must be true, false or {OVERLAY}, got {repr(value)[:80]}", "explain")
    return Asked(word, given.get(EXPLAIN_CLASS))


def merge(query: Asked, body: Asked) -> Asked:
    """Merge query and body; raises ``RefusedError`` (422) for a parameter that is given in both."""
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
    """Convert to the request of one image; raises ``RefusedError`` (422) for malformed classes."""
    return choose(bool(asked.explain), asked.classes, 1)


def prefers_png(accept: str | None) -> bool:
    """Return True if ``Accept`` names PNG with a higher weight than JSON."""
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
    """Summarise a map: the explained class and the position of the maximum.

    Args:
        answer: Answer for one image, with ``attributions`` and ``explained``.
        classes: Classes of the model.
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
    """Render the image, uint8 ``(S, S, 3)`` as the model saw it, under the colours of its map, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(overlay(image, answer.outputs[ATTRIBUTIONS][0])).save(buffer, "PNG")
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_headers(reply: Mapping[str, Any]) -> dict[str, str]:
    """Headers of a PNG reply, with the main fields of the JSON; names are percent-encoded UTF-8.

    Args:
        reply: Content of the JSON reply, most probable label first, with the explanation.
    """
    top, told = reply["labels"][0], reply["explanation"]
    return {
        "tenfold-class": quote(top["name"], safe=" "),
        "tenfold-probability": f"{top['probability']:.6g}",
        "tenfold-explained-class": quote(told["class"], safe=" "),
        "tenfold-explained-index": str(told["index"]),
        "tenfold-explained-probability": f"{told['probability']:.6g}",
    }
