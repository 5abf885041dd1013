"""Plain protocol for people: an image file, a form or JSON in; JSON or a picture out."""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Scope

from serve.contract import FILE, Answer, Description, Kind, Limits, Picture, RefusedError, Sent, invalid
from serve.protocols.bodies import IMAGE_TYPES, check_image_type, header, parse_object

_FORM_FIELDS = 8
_NO_TYPE = ("", "application/octet-stream")


def content_type_of(scope: Scope) -> str:
    """Content type in lower case without parameters; empty if there is none."""
    return (header(scope, b"content-type") or "").partition(";")[0].strip().lower()


async def read(
    scope: Scope, body: bytes, query: Mapping[str, str], kind: Kind, limits: Limits, run: Callable[..., Awaitable[Any]]
) -> Sent:
    """Read a request: an image as the body, a form, or JSON; the latter two also carry parameters.

    Args:
        scope: The request.
        body: Its body.
        query: Words of its query.
        kind: Kind of the model.
        limits: The limits.
        run: Calls a function, off the event loop where it handles many bytes: ``run(num_bytes, function, *arguments)``.

    Raises:
        RefusedError: 400 for a malformed body, 415 for a content type that is not accepted or does not match the data,
            422 for a form without a single file.
    """
    content_type, accept = content_type_of(scope), header(scope, b"accept") or ""
    if content_type in IMAGE_TYPES:
        check_image_type(content_type, body)
        return Sent(content_type=content_type, file=body, query=query, accept=accept)
    if content_type == "application/json":
        values = await run(len(body), parse_object, body, limits)
        file = await run(len(body), _from_base64, values[FILE]) if FILE in values else None
        return Sent(content_type=content_type, file=file, values=values, query=query, accept=accept)
    if content_type == "multipart/form-data":
        file, field, texts = await _read_form(scope, body, kind)
        return Sent(content_type=content_type, file=file, file_field=field, texts=texts, query=query, accept=accept)
    raise RefusedError(
        415, f"the content type {content_type or '(none)'} is not accepted: {kind.ACCEPTED}", "content_type"
    )


def query_of(query: Mapping[str, str], kind: Kind, description: Description, others: Mapping[str, Any]) -> None:
    """Refuse a word of the query that only other kinds of models understand.

    Args:
        query: Words and values.
        kind: Kind of the model.
        description: The model.
        others: Words of all kinds.

    Raises:
        RefusedError: 422, naming the word.
    """
    own = {*kind.WORDS, *(param.name for param in description.signature.params)}
    for word in query:
        if word not in own and word in others:
            task = description.signature.task
            raise RefusedError(422, f"model {description.name} does {task}, which knows no {word!r}", "parameter")


def reply(
    shown: Mapping[str, Any] | Picture, answer: Answer, description: Description, request_id: str
) -> tuple[bytes, dict[str, str]]:
    """Encode what a kind shows as body and headers; JSON starts with the model, its version and the request's id."""
    if isinstance(shown, Picture):
        return shown.content, {"content-type": shown.media_type, **shown.headers}
    head = {
        "model": description.name,
        "version": answer.version,
        "request_id": request_id,
        "task": str(description.signature.task),
    }
    return json_bytes({**head, **shown}), {"content-type": "application/json"}


def json_bytes(content: Any) -> bytes:
    """Encode JSON as compactly as the other routes do."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise invalid(f"the JSON needs the picture's file in base64 under {FILE!r}", "picture")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{FILE!r} must be base64 of the file; addresses are not fetched ({error})", "picture") from error


async def _read_form(scope: Scope, body: bytes, kind: Kind) -> tuple[bytes, str, dict[str, list[str]]]:
    """Read the one file of a form, the name of its field, and the text fields."""

    async def stream() -> Any:
        yield body

    headers = Headers(scope=scope)
    # The size of the body is limited already.
    parser = MultiPartParser(headers, stream(), max_files=1, max_fields=_FORM_FIELDS, max_part_size=max(len(body), 1))
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(400, error.message, "malformed") from error
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        if len(files) != 1:
            raise invalid("the form needs one file with the picture", "picture")
        field, file = files[0]
        data = await file.read()
        part_type = (file.content_type or "").partition(";")[0].strip().lower()
        if part_type in IMAGE_TYPES:
            check_image_type(part_type, data)
        elif part_type not in _NO_TYPE:
            raise RefusedError(
                415, f"the file's content type {part_type} is not accepted: {kind.ACCEPTED}", "content_type"
            )
        texts: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                texts.setdefault(name, []).append(value)
        return data, field, texts
    finally:
        await form.close()
