"""Plain protocol of classifiers: one image in, labels with probabilities out."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from serve.contract import LABEL_TASKS, Answer, Description
from serve.explanation import EXPLAIN, EXPLAIN_CLASS
from serve.limits import IMAGE_TYPES, RefusedError, check_image_type, invalid, parse_json, parse_json_value
from serve.picture_explanation import Asked, read_asked
from serve.settings import ServeSettings
from serve.vocabulary import CLASSES, PROMPTS, Vocabulary, read_vocabulary
from tenfold.data.images import decode_image, resize_image
from tenfold.types import Preprocessing

_ACCEPTED = "send the file as multipart/form-data, as a body of type image/jpeg, image/png or image/webp, or as JSON"
_FORM_FIELDS = 8
OUTSIDE = "outside"
"""Output of a model with an out-of-distribution flag: 1 for an image that seems to belong to none of its classes."""
T = TypeVar("T")


@dataclass(frozen=True)
class ImageRequest:
    """One image with the vocabulary and the map parameters of its request."""

    data: bytes
    """Content of the image file, not decoded."""
    vocabulary: Vocabulary | None = None
    """None: the model's own classes."""
    maps: Asked = field(default_factory=Asked)


async def read_request(request: Request, settings: ServeSettings) -> ImageRequest:
    """Read a request: an image as the body, a form, or JSON; the latter two also carry parameters.

    Raises:
        RefusedError: 400 for a malformed body, 415 for a content type that is not accepted or does not match the data,
            422 for a missing image, and for invalid classes or ``explain``.
    """
    content_type = content_type_of(request)
    if content_type in IMAGE_TYPES:
        data = await request.body()
        check_image_type(content_type, data)
        return ImageRequest(data)
    if content_type == "application/json":
        return _from_json(await request.body(), settings)
    if content_type == "multipart/form-data":

        def fields(form: FormData) -> tuple[Vocabulary | None, Asked]:
            vocabulary = read_vocabulary(_json_field(form, CLASSES), _json_field(form, PROMPTS), settings)
            return vocabulary, read_asked({name: text_field(form, name) for name in (EXPLAIN, EXPLAIN_CLASS)})

        data, (vocabulary, maps) = await read_form(request, settings, fields)
        return ImageRequest(data, vocabulary, maps)
    raise unaccepted(content_type, _ACCEPTED)


def content_type_of(request: Request) -> str:
    """Content type in lower case without parameters; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unaccepted(content_type: str, accepted: str) -> RefusedError:
    return RefusedError(415, f"the content type {content_type or '(none)'} is not accepted: {accepted}", "content_type")


def _from_json(body: bytes, settings: ServeSettings) -> ImageRequest:
    content = parse_json(body)
    vocabulary = read_vocabulary(content.get(CLASSES), content.get(PROMPTS), settings)
    return ImageRequest(image_in_json(content), vocabulary, read_asked(content))


def image_in_json(content: Mapping[str, Any]) -> bytes:
    """Decode the base64 file under ``image``; raises ``RefusedError`` (422) if there is none."""
    text = content.get("image")
    if not isinstance(text, str):
        raise RefusedError(422, "the JSON needs the picture's file in base64 under 'image'", "picture")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            422, f"'image' must be base64 of the file; addresses are not fetched ({error})", "picture"
        ) from error


async def read_form(request: Request, settings: ServeSettings, fields: Callable[[FormData], T]) -> tuple[bytes, T]:
    """Read the image file of a form, and its other fields by ``fields``.

    Raises:
        RefusedError: 415 for a content type that is not accepted or does not match the data, 422 for a form without a
            single file; errors of ``fields``.
    """
    # Starlette replies to a malformed form with a 400 of its own. The size of the body is limited already.
    form_reader = request.form(max_files=1, max_fields=_FORM_FIELDS, max_part_size=settings.max_body_bytes)
    async with form_reader as form:
        files = [part for part in form.values() if isinstance(part, UploadFile)]
        if len(files) != 1:
            raise RefusedError(422, "the form needs one file with the picture", "picture")
        data = await files[0].read()
        part_type = (files[0].content_type or "").partition(";")[0].strip().lower()
        if part_type in IMAGE_TYPES:
            check_image_type(part_type, data)
        elif part_type not in ("", "application/octet-stream"):
            raise RefusedError(415, f"the file's content type {part_type} is not accepted: {_ACCEPTED}", "content_type")
        return data, fields(form)


def text_field(form: FormData, name: str) -> str | None:
    """Value of a text field; None if it is missing, or if the file has its name."""
    texts = [text for text in form.getlist(name) if isinstance(text, str)]
    if len(texts) > 1:
        raise invalid(f"the form needs {name!r} once, got it {len(texts)} times", "explain")
    return texts[0] if texts else None


def _json_field(form: FormData, name: str) -> Any:
    """JSON value of a text field; None if it is missing."""
    texts = form.getlist(name)
    if not texts:
        return None
    if len(texts) > 1 or not isinstance(texts[0], str):
        raise RefusedError(422, f"the form needs {name!r} once, as a text field with JSON", "vocabulary")
    example = '["cat", "dog"]' if name == CLASSES else '{"cat": ["a photo of a cat."]}'
    return parse_json_value(texts[0], f"the form's field {name!r} must be JSON such as {example}")


def prepare_image(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> np.ndarray:
    """Decode and resize an image as in training; uint8 ``(1, S, S, 3)``.

    Raises:
        RefusedError: 422, if the image can't be decoded.
    """
    try:
        image = decode_image(data, max_pixels=max_pixels)
    except ValueError as error:
        raise RefusedError(422, str(error), "picture") from error
    resized = resize_image(
        image, preprocessing.image_size, resize=preprocessing.resize, interpolation=preprocessing.interpolation
    )
    return resized[None]


def check_labels(description: Description) -> None:
    """Raise ``RefusedError`` (422) for a model that does not predict labels."""
    if description.task not in LABEL_TASKS:
        name = description.name
        raise RefusedError(
            422, f"model {name} does {description.task}, which has no labels; use /v2/models/{name}/infer", "task"
        )


def label_reply(
    answer: Answer, description: Description, classes: Sequence[str], request_id: str, top: int | None
) -> dict[str, Any]:
    """Build the JSON reply for one image, most probable label first.

    Args:
        answer: Answer of the model.
        description: Description of the version that gave it.
        classes: Names of the columns: the classes of the model or of the request.
        request_id: Id of the request, repeated in the reply.
        top: Number of labels; None: all.
    """
    outputs = dict(answer.outputs)
    probs = outputs["probs"][0]
    if len(probs) != len(classes):  # a faulty predictor; wrong names would be worse than an error
        raise ValueError(f"model {description.name} gave {len(probs)} probabilities for {len(classes)} classes")
    order = np.argsort(-probs, kind="stable")[:top]
    flagged = outputs.pop(OUTSIDE, None) if description.flag else None
    doubt = {
        name: float(values[0]) for name, values in outputs.items() if values.ndim == 1 and values.dtype.kind == "f"
    }
    return {
        "model": description.name,
        "version": answer.version,
        "request_id": request_id,
        "task": str(description.task),
        "labels": [{"name": classes[k], "probability": float(probs[k])} for k in order],
        **({"uncertainty": doubt} if doubt else {}),
        **({OUTSIDE: _outside(flagged, description)} if flagged is not None else {}),
    }


def _outside(flagged: np.ndarray, description: Description) -> dict[str, Any]:
    """Flag of the image, with the rule that sets it."""
    assert description.flag is not None
    return {"flagged": bool(flagged[0]), **asdict(description.flag)}
