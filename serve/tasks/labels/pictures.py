"""Attribution maps for people: the summary in JSON, and the headers of the overlay."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from serve.contract import Answer
from serve.tasks.pictures import strongest
from tenfold.tasks import ATTRIBUTIONS, EXPLAINED


def explanation(answer: Answer, classes: Sequence[str]) -> dict[str, Any]:
    """Summarise a map: the explained class and the position of the maximum.

    Args:
        answer: Answer for one image, with ``attributions`` and ``explained``.
        classes: Classes of the model.
    """
    index = int(answer.outputs[EXPLAINED][0])
    scores = answer.outputs[ATTRIBUTIONS][0]
    return {
        "class": classes[index],
        "index": index,
        "probability": float(answer.outputs["probs"][0, index]),
        "image_size": len(scores),
        "strongest": strongest(scores),
    }


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
