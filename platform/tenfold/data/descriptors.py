"""Descriptors of classes: for each class a list of visual features, read from JSON files.

The order of the keys is the order of the labels. Re-sorting a file's keys would assign descriptors to the wrong
classes, so ``check_descriptors`` compares the order with the data set's.
"""

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

# Names in the published files that differ from CLIP's list of ImageNet names.
_ALIASES = {"newt": "eft", "tights": "maillot"}


def read_descriptors(path: Path | str) -> dict[str, list[str]]:
    """Read the descriptors of every class, in the order of the file; a list may be empty.

    Raises:
        ValueError: The file is missing, not UTF-8 or not a JSON object, or a key is repeated, empty or without a list
            of texts; names the file and the key.
    """
    path = Path(path)
    what = 'a JSON object {"class": ["descriptor", ...], ...} with the classes in label order'
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: expected {what}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): expected {what}") from error

    def pairs_to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} is repeated")
        return content

    try:
        content = json.loads(text, object_pairs_hook=pairs_to_dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; expected {what}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds {type(content).__name__} {str(content)[:40]}: expected {what}")
    for key, descriptors in content.items():
        if not key.strip():
            raise ValueError(f"{path}: a class has the empty name {key!r}: expected {what}")
        if not isinstance(descriptors, list) or not all(isinstance(each, str) for each in descriptors):
            raise ValueError(f"{path}: {key!r} must have a list of texts, got {descriptors!r:.80}")
    return content


def check_descriptors(
    descriptors: dict[str, list[str]],
    classes: Sequence[str],
    path: Path | str,
    *,
    prompt_names: Sequence[str] | None = None,
    sort_case_insensitive: bool = False,
) -> None:
    """Refuse descriptors of other classes, or of the same classes in another order.

    A key matches a class if they are equal up to case, spaces and punctuation or, at the same position, if the words
    of one are a subset of those of the other ("annual crop land" and ``AnnualCrop``).

    Args:
        descriptors: Descriptors as ``read_descriptors`` returns them.
        classes: Names in label order.
        path: File of the descriptors, for the message.
        prompt_names: Alternative names of the classes.
        sort_case_insensitive: Labels follow the sorted lower-case keys and not the file (Oxford pets).

    Raises:
        ValueError: Unknown classes, missing ones, or another order; names the file and the classes.
    """
    keys = sorted(descriptors, key=str.lower) if sort_case_insensitive else list(descriptors)
    names = [{name, _ALIASES.get(name, name)} for name in classes]
    for place, name in enumerate(prompt_names or ()):
        names[place].add(name)
    exact = {_letters(name): label for label, others in enumerate(names) for name in others}
    places = {_letters(key): place for place, key in enumerate(keys)}

    def fits(place: int, label: int) -> bool:
        return any(_related(keys[place], name) for name in names[label])

    def known(place: int) -> bool:
        key = _letters(keys[place])
        return key in exact or (place < len(names) and fits(place, place))

    def present(label: int) -> bool:
        return any(_letters(name) in places for name in names[label]) or (label < len(keys) and fits(label, label))

    unknown = [keys[place] for place in range(len(keys)) if not known(place)]
    missing = [classes[label] for label in range(len(names)) if not present(label)]
    if unknown or missing or len(keys) != len(names):
        raise ValueError(
            f"{path} must describe the data set's {len(names)} classes, got {len(keys)}"
            + (f"; unknown: {_some(unknown)}" if unknown else "")
            + (f"; missing: {_some(missing)}" if missing else "")
            + "; write the keys like the class names (case, spaces and punctuation do not matter)"
        )
    for place, key in enumerate(keys):
        label = exact.get(_letters(key), place)
        if label != place:
            raise ValueError(
                f"{path}: the keys must be in label order, but {key!r}, which is class {label}, is at position "
                f"{place}, where {classes[place]!r} belongs: were the keys re-sorted?"
            )


def shipped_descriptors(name: str) -> Path | None:
    """Return the descriptor file that this package ships for a data set; None where there is none."""
    path = Path(str(resources.files("tenfold.data"))) / "descriptors" / f"{name}.json"
    return path if path.is_file() else None


def _letters(name: str) -> str:
    return "".join(re.findall(r"[^\W_]+", _bare(name).lower()))


def _bare(name: str) -> str:
    """Strip the letter that sorts the scenes of Places365 into folders: ``/a/arcade``."""
    return re.sub(r"^/\w/", "", name)


def _related(key: str, name: str) -> bool:
    if _letters(key) == _letters(name):
        return True
    first, second = _words(key), _words(name)
    return bool(first and second) and (first <= second or second <= first)


def _words(name: str) -> set[str]:
    """Return the words in lower case, with camel case split."""
    return set(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _bare(name)).lower()))


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
