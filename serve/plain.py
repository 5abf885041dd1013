"""The plain protocol for people: one picture in, labels with probabilities out."""

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
"""Output of a model with a flag: 1 where a picture does not seem to belong to any of its classes."""
T = TypeVar("T")


@dataclass(frozen=True)
class ImageRequest:
    """One picture, the classes that the client brought along, and what it says of maps."""

    data: bytes
    """The picture's file, not decoded."""
    vocabulary: Vocabulary | None = None
    """None: the model's own classes."""
    maps: Asked = field(default_factory=Asked)


async def read_request(request: Request, settings: ServeSettings) -> ImageRequest:
    """What the client sent, in whichever of the three forms it chose; JSON and forms have room for more than a picture.

    Raises:
        RefusedError: 400 for a body that is not of its announced form, 415 for a content type that is not accepted
            or does not match the data, 422 for a body without a picture, for wrong classes or a wrong ``explain``.
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
    """In small letters and without its parameters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unaccepted(content_type: str, accepted: str) -> RefusedError:
    return RefusedError(415, f"the content type {content_type or '(none)'} is not accepted: {accepted}", "content_type")


def _from_json(body: bytes, settings: ServeSettings) -> ImageRequest:
    content = parse_json(body)
    vocabulary = read_vocabulary(content.get(CLASSES), content.get(PROMPTS), settings)
    return ImageRequest(image_in_json(content), vocabulary, read_asked(content))


def image_in_json(content: Mapping[str, Any]) -> bytes:
    """The file that stands in base64 under ``image``; raises ``RefusedError`` (422) where there is none."""
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
    """The picture's file in a form, and what ``fields`` reads from its other fields.

    Raises:
        RefusedError: 415 for a content type that is not accepted or does not match the data, 422 for a form without a
            picture; what ``fields`` raises.
    """
    # Starlette turns a malformed form into its own 400 with one sentence. The body as a whole is limited already.
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
    """What stands in a form's text field; None where it is not there, and where its name is the picture's."""
    texts = [text for text in form.getlist(name) if isinstance(text, str)]
    if len(texts) > 1:
        raise invalid(f"the form needs {name!r} once, got it {len(texts)} times", "explain")
    return texts[0] if texts else None


def _json_field(form: FormData, name: str) -> Any:
    """What a form's text field says in JSON; None where it is not there."""
    texts = form.getlist(name)
    if not texts:
        return None
    if len(texts) > 1 or not isinstance(texts[0], str):
        raise RefusedError(422, f"the form needs {name!r} once, as a text field with JSON", "vocabulary")
    example = '["cat", "dog"]' if name == CLASSES else '{"cat": ["a photo of a cat."]}'
    return parse_json_value(texts[0], f"the form's field {name!r} must be JSON such as {example}")


def prepare_image(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> np.ndarray:
    """Decode and resize, as in training; uint8 ``(1, S, S, 3)``.

    Raises:
        RefusedError: 422, with what is wrong with the picture.
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
    """Raise ``RefusedError`` (422) where a model answers with something else than labels."""
    if description.task not in LABEL_TASKS:
        name = description.name
        raise RefusedError(
            422, f"model {name} does {description.task}, which has no labels; use /v2/models/{name}/infer", "task"
        )


def label_reply(
    answer: Answer, description: Description, classes: Sequence[str], request_id: str, top: int | None
) -> dict[str, Any]:
    """Labels of one picture, the most probable first; ``top`` of them, None for all.

    Args:
        answer: What the model said.
        description: Of the version that said it.
        classes: Names of the answer's columns: the model's classes, or those that the request brought along.
        request_id: Told in the reply.
        top: How many labels.
    """
    outputs = dict(answer.outputs)
    probs = outputs["probs"][0]
    if len(probs) != len(classes):  # a predictor that breaks its word; the wrong names would be worse than none
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
    """Whether the picture is flagged, and when pictures are."""
    assert description.flag is not None
    return {"flagged": bool(flagged[0]), **asdict(description.flag)}
