"""Plain protocol of regression models: one example in, mean, std and an interval out.

An example is JSON with its inputs by name, or an image file for a model that takes an image.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from matplotlib import colormaps
from PIL import Image
from starlette.requests import Request

from serve.contract import Answer, Description
from serve.limits import IMAGE_TYPES, RefusedError, check_image_type, invalid, parse_json
from serve.plain import content_type_of, image_in_json, read_form, text_field, unaccepted
from serve.regression import LEVEL, LOWER, Regression, check_reply, check_request, numbers, read_level
from serve.settings import ServeSettings
from tenfold.data.images import decode_image
from tenfold.types import TensorSchema

INPUTS, SHOW = "inputs", "show"
Shown = Literal["mean", "std"]
_ACCEPTED = "send JSON with 'inputs', or, to a model that takes a picture, its file as a form, as a body or in JSON"


@dataclass(frozen=True)
class ExampleRequest:
    """One example as sent by the client."""

    content: bytes | Mapping[str, Any]
    """Content of an image file, not decoded; or the JSON value of each input, without the example axis."""
    level: float | None


async def read_request(request: Request, settings: ServeSettings, query_level: str | None) -> ExampleRequest:
    """Read a request: an image as the body, a form, or JSON.

    Raises:
        RefusedError: 400 for a malformed body, 415 for a content type that is not accepted or does not match the data,
            422 for a missing example, and for a level that is invalid or given twice.
    """
    content_type = content_type_of(request)
    content: bytes | Mapping[str, Any]
    body_level: Any = None
    if content_type in IMAGE_TYPES:
        content = await request.body()
        check_image_type(content_type, content)
    elif content_type == "multipart/form-data":
        content, body_level = await read_form(request, settings, lambda form: text_field(form, LEVEL))
    elif content_type == "application/json":
        found = parse_json(await request.body())
        content, body_level = _content(found), found.get(LEVEL)
    else:
        raise unaccepted(content_type, _ACCEPTED)
    if query_level is not None and body_level is not None:
        raise invalid(f"{LEVEL!r} is given in the query and in the body; give it once", LEVEL)
    return ExampleRequest(content, read_level(query_level if body_level is None else body_level))


def as_regression(asked: ExampleRequest, description: Description, settings: ServeSettings) -> Regression:
    """Convert an example to the model's inputs, adding the example axis.

    Raises:
        RefusedError: 422, naming what was expected.
    """
    schemas = description.inputs
    if isinstance(asked.content, bytes):
        inputs = {schemas[0].name: _pixels(asked.content, _image_schema(description), settings)}
    else:
        wanted = {schema.name: schema.dtype for schema in schemas}
        if sorted(asked.content) != sorted(wanted):
            raise invalid(f"{INPUTS!r} must be {', '.join(wanted)}, got {', '.join(sorted(asked.content)) or 'none'}")
        inputs = {name: numbers(name, asked.content[name], dtype)[None] for name, dtype in wanted.items()}
    return check_request(Regression(inputs, asked.level), schemas, settings)


def reply(
    answer: Answer, description: Description, asked: Regression, request_id: str, settings: ServeSettings
) -> dict[str, Any]:
    """Build the JSON reply: mean, std and the rest of every target, as nested lists if a target is an array.

    Raises:
        RefusedError: 422, if the reply would be too large.
    """
    check_reply(sum(values.size for values in answer.outputs.values()), True, settings)
    return {
        "model": description.name,
        "version": answer.version,
        "request_id": request_id,
        "task": str(description.task),
        **({LEVEL: asked.level} if LOWER in answer.outputs else {}),
        "targets": [
            {"name": name, **{output: values[0, channel].tolist() for output, values in answer.outputs.items()}}
            for channel, name in enumerate(description.classes)
        ],
    }


def read_shown(word: str | None, as_png: bool) -> Shown:
    """Read ``show``; raises ``RefusedError`` (422) for an unknown value, or if no PNG is asked for."""
    if word is not None and not as_png:
        raise invalid(f"{SHOW!r} says what a picture shows; ask for one with 'Accept: image/png'", "picture")
    if word not in (None, "mean", "std"):
        raise invalid(f"{SHOW!r} must be mean or std, got {repr(word)[:80]}", "picture")
    return cast(Shown, word or "mean")


def image_png(answer: Answer, description: Description, shown: Shown) -> tuple[bytes, dict[str, str]]:
    """Render the predicted image, or its std in colours from 0 to its maximum, as a PNG; return it with its headers.

    Raises:
        RefusedError: 422, if the model's output is not an image.
    """
    schema = _image_schema(description)
    mean, std = answer.outputs["mean"][0], answer.outputs["std"][0]
    if mean.ndim != 3 or len(mean) not in (1, 3):
        raise invalid(f"model {description.name} answers with {list(mean.shape)} numbers, which are no picture")
    if shown == "mean":
        assert schema.max_value is not None
        pixels = np.round(255 * np.clip(mean / schema.max_value, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    else:
        pixels = colormaps["magma"](std.mean(0) / max(float(std.mean(0).max()), 1e-30), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)).save(buffer, "PNG")
    headers = {"tenfold-std-mean": f"{std.mean():.6g}", "tenfold-std-largest": f"{std.mean(0).max():.6g}"}
    return buffer.getvalue(), headers


def _content(found: Mapping[str, Any]) -> bytes | Mapping[str, Any]:
    if (INPUTS in found) == ("image" in found):
        raise invalid(f"the JSON needs an example's numbers by name under {INPUTS!r}, or a picture under 'image'")
    if "image" in found:
        return image_in_json(found)
    if not isinstance(found[INPUTS], dict):
        raise invalid(f"{INPUTS!r} must be an object: the numbers of one example by the input's name")
    return found[INPUTS]


def _image_schema(description: Description) -> TensorSchema:
    schemas = description.inputs
    if len(schemas) != 1 or schemas[0].max_value is None:
        names = ", ".join(schema.name for schema in schemas)
        raise invalid(f"model {description.name} takes no picture; send JSON with {INPUTS!r}: {names}", "picture")
    return schemas[0]


def _pixels(data: bytes, schema: TensorSchema, settings: ServeSettings) -> np.ndarray:
    """Decode to float32 ``(1, C, H, W)``; a model with one channel gets the mean of the colours."""
    try:
        image = decode_image(data, max_pixels=settings.max_pixels)
    except ValueError as error:
        raise RefusedError(422, str(error), "picture") from error
    assert schema.max_value is not None
    pixels = image.astype(np.float32) * np.float32(schema.max_value / 255)
    if schema.shape[0] == 1:
        pixels = pixels.mean(-1, keepdims=True)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
