"""Attribution maps for people: the summary in JSON, and the overlay as a PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from serve.contract import Answer
from tenfold.figures.overlays import overlay
from tenfold.tasks import ATTRIBUTIONS, EXPLAINED


def explanation(answer: Answer, classes: Sequence[str]) -> dict[str, Any]:
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
