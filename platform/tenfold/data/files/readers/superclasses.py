"""Superclasses: groups of related classes, read from a file."""

import json
from pathlib import Path
from typing import Any

from tenfold.data.files.readers.official_lists import read_lines, require_file
from tenfold.data.localisation import check_superclasses

_JSON = "JSON of a superclass's name to a list of its classes, numbers or names"
_TEXT = "lines 'class,superclass', the class by its number or name"


def read_superclasses(path: Path, classes: tuple[str, ...]) -> dict[int, tuple[int, ...]]:
    """Read, for every class, the classes of its superclass in ascending order.

    Args:
        path: ``.json``, an object of names to lists of classes; any other suffix is text, a line 'class,superclass'
            for each class. A class is given by its index or its name.
        classes: Names in label order.

    Raises:
        ValueError: A missing or malformed file, an unknown class, or a class in no group or in two, with the path.
    """
    numbers = {name: label for label, name in enumerate(classes)}
    groups: dict[str, list[int]] = {}
    for where, given, group in _json_pairs(path) if path.suffix == ".json" else _text_pairs(path):
        label = numbers.get(given, int(given) if given.isdecimal() else -1)
        if not 0 <= label < len(classes):
            raise ValueError(f"{where}: {given!r} is not a class; classes are 0..{len(classes) - 1} or their names")
        groups.setdefault(group, []).append(label)
    superclasses: dict[int, tuple[int, ...]] = {}
    for members in groups.values():
        for label in members:
            if label in superclasses or members.count(label) > 1:
                raise ValueError(f"{path}: class {label} ({classes[label]}) must be in one superclass, but is repeated")
        superclasses |= dict.fromkeys(members, tuple(sorted(members)))
    missing = [label for label in range(len(classes)) if label not in superclasses]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(classes)} classes are in no superclass, first: {missing[0]} "
            f"({classes[missing[0]]})"
        )
    check_superclasses(superclasses, len(classes), str(path))
    return superclasses


def _text_pairs(path: Path) -> list[tuple[str, str, str]]:
    pairs = []
    for number, line in enumerate(read_lines(path, _TEXT), start=1):
        # The last comma: class names may hold commas.
        given, comma, group = (field.strip() for field in line.rpartition(","))
        if not comma or not given or not group:
            raise ValueError(f"{path}, line {number}: expected {_TEXT}, got {line.strip()!r}")
        pairs.append((f"{path}, line {number}", given, group))
    return pairs


def _json_pairs(path: Path) -> list[tuple[str, str, str]]:
    require_file(path, _JSON)
    try:
        content: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected {_JSON} ({error})") from error
    if not isinstance(content, dict) or not all(_is_group(members) for members in content.values()):
        raise ValueError(f"{path}: expected {_JSON}, got {content!r:.80}")
    return [(f"{path}, {group!r}", str(member), group) for group, members in content.items() for member in members]


def _is_group(members: Any) -> bool:
    return isinstance(members, list) and all(type(member) in (str, int) for member in members)
