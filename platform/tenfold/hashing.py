"""Content hashes."""

import hashlib
import json
from typing import Any


def content_hash(content: Any) -> str:
    """Return the SHA-256 of JSON-like content, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
