"""Bodies of requests: read within the limits, parsed as JSON, taken for the image that they announce."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

from serve import strict_json
from serve.contract import Limits, RefusedError
from tenfold.data.images import sniff_format

IMAGE_TYPES = {"image/jpeg": "jpeg", "image/jpg": "jpeg", "image/png": "png", "image/webp": "webp"}
"""Content type of an image to the format that its first bytes must have."""
_MAX_DIGITS = 18  # of a number of bytes; Python refuses to read thousands of digits


def too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the request body may have at most {limit} bytes", "body_size")


def number_of(text: str) -> int | None:
    """Read a header's number of bytes; None if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def check_content_length(length: str | None, limit: int) -> None:
    """Refuse a body by its declared length, before any of it is read.

    Raises:
        RefusedError: 400 if the length is not a number, 413 if it exceeds the limit.
    """
    if length is None:
        return
    if not (length.isascii() and length.isdigit()):
        raise RefusedError(400, "the Content-Length header must be a number", "malformed")
    number = number_of(length.lstrip("0") or "0")
    if number is None or number > limit:
        raise too_large(limit)


def limited(receive: Receive, limit: int, timeout_s: float) -> Receive:
    """Wrap ``receive`` to refuse a body that is too large, as soon as it is, and one that takes too long.

    The wrapped function raises ``RefusedError``: 413 beyond ``limit`` bytes, 408 after ``timeout_s`` seconds.
    """
    num_bytes = 0
    is_whole = False
    deadline: float | None = None

    async def counting() -> Message:
        nonlocal num_bytes, is_whole, deadline
        if is_whole:
            return await receive()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s if deadline is None else deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise RefusedError(408, f"the request's body must arrive within {timeout_s:g} s", "slow_body") from error
        if message["type"] == "http.request":
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise too_large(limit)
        is_whole = not message.get("more_body", False)
        return message

    return counting


async def read_body(receive: Receive) -> bytes:
    """Read a whole body.

    Raises:
        RefusedError: 499, if the client disconnects before its end.
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(499, "the client disconnected", "disconnected")
        if body := message.get("body", b""):
            parts.append(body)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def check_image_type(content_type: str, data: bytes) -> None:
    """Raise ``RefusedError`` (415) unless the first bytes match the content type."""
    announced, found = IMAGE_TYPES[content_type], sniff_format(data)
    if found != announced:
        raise RefusedError(
            415,
            f"the content type is {content_type}, but the data is {found.upper() if found else 'no JPEG, PNG or WEBP'}",
            "content_type",
        )


def parse_object(data: bytes, limits: Limits) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        RefusedError: 400 for anything but one JSON object, 422 for a duplicate key or too many keys, lists and objects.
    """
    try:
        value = strict_json.loads(data, limits.max_json_keys, limits.max_json_lists)
    except ValueError as error:
        raise RefusedError(400, f"the body is not valid JSON: {error}", "malformed") from error
    if not isinstance(value, dict):
        raise RefusedError(400, f"the body must be a JSON object, got {type(value).__name__}", "malformed")
    return value


def header(scope: Mapping[str, Any], name: bytes) -> str | None:
    """First value of a header of a request; the name in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
