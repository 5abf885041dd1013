"""Replies to look at: which clients prefer them, and images under the colours of their maps."""

import io

import numpy as np
from PIL import Image

from tenfold.figures.overlays import overlay

PNG = "image/png"
_JSON = "application/json"


def prefers_png(accept: str) -> bool:
    """Return True if ``Accept`` names PNG with a higher weight than JSON."""
    weights = {PNG: 0.0, _JSON: 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = _weight(parameters)
    return weights[PNG] > weights[_JSON]


def overlay_png(image: np.ndarray, scores: np.ndarray) -> bytes:
    """Render an image, uint8 ``(S, S, 3)`` as the model saw it, under the colours of its map ``(S, S)``, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(overlay(image, scores)).save(buffer, "PNG")
    return buffer.getvalue()


def strongest(scores: np.ndarray) -> dict[str, int] | None:
    """Position of the maximum of a map ``(S, S)``; None if it is 0 everywhere."""
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return {"x": int(column), "y": int(row)} if scores.any() else None


def _weight(parameters: list[str]) -> float:
    text = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 0.0
