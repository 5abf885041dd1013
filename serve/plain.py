"""The plain protocol for people: one picture in, labels with probabilities out."""

import base64
import binascii
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request

from serve.contract import LABEL_TASKS, Answer, Description
from serve.limits import IMAGE_TYPES, RefusedError, check_image_type, parse_json
from tenfold.data.images import decode_image, resize_image

_ACCEPTED = "send the file as multipart/form-data, as a body of type image/jpeg, image/png or image/webp, or as JSON"


async def read_picture(request: Request) -> bytes:
    """The picture's file bytes, from whichever of the three forms the client chose.

    Raises:
        RefusedError: 400 for a body that is not of its announced form, 415 for a content type that is not accepted
            or does not match the data, 422 for a body without a picture.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in IMAGE_TYPES:
        data = await request.body()
        check_image_type(content_type, data)
        return data
    if content_type == "application/json":
        return _from_json(await request.body())
    if content_type == "multipart/form-data":
        return await _from_form(request)
    raise RefusedError(415, f"the content type {content_type or '(none)'} is not accepted: {_ACCEPTED}", "content_type")


def _from_json(body: bytes) -> bytes:
    text = parse_json(body).get("image")
    if not isinstance(text, str):
        raise RefusedError(422, "the JSON needs the picture's file in base64 under 'image'", "picture")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            422, f"'image' must be base64 of the file; addresses are not fetched ({error})", "picture"
        ) from error


async def _from_form(request: Request) -> bytes:
    # Starlette turns a malformed form into its own 400 with one sentence.
    async with request.form(max_files=1, max_fields=8) as form:
        files = [part for part in form.values() if isinstance(part, UploadFile)]
        if len(files) != 1:
            raise RefusedError(422, "the form needs one file with the picture", "picture")
        data = await files[0].read()
        part_type = (files[0].content_type or "").partition(";")[0].strip().lower()
        if part_type in IMAGE_TYPES:
            check_image_type(part_type, data)
        elif part_type not in ("", "application/octet-stream"):
            raise RefusedError(415, f"the file's content type {part_type} is not accepted: {_ACCEPTED}", "content_type")
        return data


def prepare_picture(data: bytes, image_size: int, max_pixels: int) -> np.ndarray:
    """Decode and resize, as in training; uint8 ``(1, S, S, 3)``.

    Raises:
        RefusedError: 422, with what is wrong with the picture.
    """
    try:
        return resize_image(decode_image(data, max_pixels=max_pixels), image_size)[None]
    except ValueError as error:
        raise RefusedError(422, str(error), "picture") from error


def check_labels(description: Description) -> None:
    """Raise ``RefusedError`` (422) where a model answers with something else than labels."""
    if description.task not in LABEL_TASKS:
        name = description.name
        raise RefusedError(
            422, f"model {name} does {description.task}, which has no labels; use /v2/models/{name}/infer", "task"
        )


def label_reply(answer: Answer, description: Description, request_id: str, top: int | None) -> dict[str, Any]:
    """Labels of one picture, the most probable first; ``top`` of them, None for all."""
    probs = answer.outputs["probs"][0]
    order = np.argsort(-probs, kind="stable")[:top]
    return {
        "model": description.name,
        "version": answer.version,
        "request_id": request_id,
        "task": str(description.task),
        "labels": [{"name": description.classes[k], "probability": float(probs[k])} for k in order],
    }
