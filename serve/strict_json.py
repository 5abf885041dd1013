"""JSON of clients: bounded before it is parsed, without duplicate keys; its lists as arrays."""

import json
import re
from itertools import islice
from typing import Any

import numpy as np

from serve.contract import RefusedError

_MAX_LISTS = 250_000
_MAX_WITH_TEXT, _LONGEST_TEXT = 10_000, 200  # values and characters that are converted to tell their type
_KEY, _TEXT_KEY = re.compile(rb'"\s*:'), re.compile(r'"\s*:')


def loads(data: bytes | str, max_keys: int, max_lists: int = _MAX_LISTS) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
        RefusedError: 422 for a duplicate key, and, before anything is parsed, for more than ``max_keys`` keys or more
            than ``max_lists`` lists and objects.
    """
    found = _TEXT_KEY.finditer(data) if isinstance(data, str) else _KEY.finditer(data)
    if sum(1 for _ in islice(found, max_keys + 1)) > max_keys:
        raise RefusedError(422, f"the JSON may have at most {max_keys} keys", "size")
    brackets = (data.count("["), data.count("{")) if isinstance(data, str) else (data.count(b"["), data.count(b"{"))
    if (found_lists := sum(brackets)) > max_lists:
        raise RefusedError(
            422, f"the JSON may have at most {max_lists} lists and objects, got {found_lists}; send flat lists", "size"
        )
    try:
        return _DECODER.decode(data if isinstance(data, str) else data.decode())
    except RecursionError as error:  # deep nesting; wrong encodings and syntax are ValueErrors by themselves
        raise ValueError("it is nested too deeply") from error


def as_array(data: Any) -> np.ndarray:
    """Convert nested lists; many or long texts, which would all take the room of the longest, to one text.

    Raises:
        ValueError: The lists of one axis have different lengths.
    """
    lists, count, longest = [data], 0, 0
    for values in lists:
        if not isinstance(values, list):
            continue
        types = set(map(type, values))
        count += len(values)
        if list in types:
            lists.extend(value for value in values if isinstance(value, list))
        if str in types:
            longest = max(longest, 1, *(len(value) for value in values if isinstance(value, str)))
    if longest > _LONGEST_TEXT or (longest and count > _MAX_WITH_TEXT):
        return np.array(["text"])
    return np.asarray(data)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json silently keeps the last of duplicate keys: a class would lose its prompts.
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RefusedError(422, f"the JSON gives the key {twice[:80]!r} twice in one object", "malformed")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)  # shared: json.loads would build one for each request
