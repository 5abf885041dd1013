"""Refusals (an HTTP status and one sentence for the client), and checks that both protocols share."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

from tenfold.data.images import sniff_format

IMAGE_TYPES = {"image/jpeg": "jpeg", "image/jpg": "jpeg", "image/png": "png", "image/webp": "webp"}
"""Content type of an image to the format that its first bytes must have."""


class RefusedError(Exception):
    """A refused request.

    Args:
        status: HTTP status.
        message: One sentence for the client.
        reason: One word for logs and metrics.
        headers: Further reply headers.
    """

    def __init__(self, status: int, message: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.headers = dict(headers or {})


def invalid(message: str, reason: str = "tensor") -> RefusedError:
    """A refusal (422) of content that the model does not take."""
    return RefusedError(422, message, reason)


def too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the request body may have at most {limit} bytes", "body_size")


def overloaded(message: str, retry_after_s: float) -> RefusedError:
    # The header takes whole seconds only.
    return RefusedError(503, message, "overload", {"Retry-After": str(max(1, round(retry_after_s)))})


def check_content_length(headers: Mapping[str, str], limit: int) -> None:
    """Refuse a body by its declared length, before any of it is read.

    Raises:
        RefusedError: 400 if the length is not a number, 413 if it exceeds the limit.
    """
    length = headers.get("content-length")
    if length is None:
        return
    if not (length.isascii() and length.isdigit()):
        raise RefusedError(400, "the Content-Length header must be a number", "malformed")
    if int(length) > limit:
        raise too_large(limit)


def limited(receive: Receive, limit: int) -> Receive:
    """Wrap ``receive`` to raise ``RefusedError`` (413) as soon as a streamed body exceeds the limit."""
    num_bytes = 0

    async def counting() -> Message:
        nonlocal num_bytes
        message = await receive()
        if message["type"] == "http.request":
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise too_large(limit)
        return message

    return counting


def check_image_type(content_type: str, data: bytes) -> None:
    """Raise ``RefusedError`` (415) unless the first bytes match the content type."""
    announced, found = IMAGE_TYPES[content_type], sniff_format(data)
    if found != announced:
        raise RefusedError(
            415,
            f"the content type is {content_type}, but the data is {found.upper() if found else 'no JPEG, PNG or WEBP'}",
            "content_type",
        )


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RefusedError: 400 for anything but one JSON object, 422 for a duplicate key.
    """
    try:
        value = _loads(data)
    except ValueError as error:
        raise RefusedError(400, f"the body is not valid JSON: {error}", "malformed") from error
    if not isinstance(value, dict):
        raise RefusedError(400, f"the body must be a JSON object, got {type(value).__name__}", "malformed")
    return value


def parse_json_value(text: str, expected: str) -> Any:
    """Parse the JSON value of a text field; raises ``RefusedError`` (422) naming what was expected."""
    try:
        return _loads(text)
    except ValueError as error:
        raise RefusedError(422, f"{expected} ({error})", "malformed") from error


def _loads(data: bytes | str) -> Any:
    try:
        return _DECODER.decode(data if isinstance(data, str) else data.decode())
    except RecursionError as error:  # deep nesting; wrong encodings and syntax are ValueErrors by themselves
        raise ValueError("it is nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json silently keeps the last of duplicate keys: a class would lose its prompts.
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RefusedError(422, f"the JSON gives the key {twice[:80]!r} twice in one object", "malformed")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)  # shared: json.loads would build one for each request
