"""JSON of clients: bounded before it is parsed, without duplicate keys."""

import json
import re
from itertools import islice
from typing import Any

from serve.contract import RefusedError

_KEY, _TEXT_KEY = re.compile(rb'"\s*:'), re.compile(r'"\s*:')


def loads(data: bytes | str, max_keys: int) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
        RefusedError: 422 for a duplicate key, and, before anything is parsed, for more than ``max_keys`` keys.
    """
    found = _TEXT_KEY.finditer(data) if isinstance(data, str) else _KEY.finditer(data)
    if sum(1 for _ in islice(found, max_keys + 1)) > max_keys:
        raise RefusedError(422, f"the JSON may have at most {max_keys} keys", "size")
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
