"""Content hashes."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def content_hash(content: Any) -> str:
    """Return the SHA-256 of JSON-like content, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def text_sha256(text: str) -> str:
    """Return the hex SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path | str) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(chunks: Iterable[bytes | memoryview]) -> str:
    """Return the hex SHA-256 of concatenated chunks; chunk boundaries do not matter."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
