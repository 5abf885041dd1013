"""Split files: lists of the training, validation and test images.

Three formats: a CSV with the header ``split,filename``; JSON ``{"train": [[path, label, name], ...], "val": ...,
"test": ...}``; and text, one ``path,label`` a line, one file per part. The first two name images of the data set,
whose labels come from its reader; the third has its own labels.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenfold.data.classification import SPLITS, Split
from tenfold.data.files.readers.image_lists import ImageList, ImageLists, image_list
from tenfold.data.files.readers.official_lists import read_lines, require_file

_CSV = "a CSV with the header 'split,filename', split being train, val or test"
_JSON = 'JSON {"train": [[path, label, name], ...], "val": [...], "test": [...]}'
_TEXT = "lines 'path,label'"


def read_split_file(path: Path, pool: ImageLists) -> dict[Split, ImageList]:
    """Split the images of a data set by a ``.csv`` or ``.json`` file.

    A name in the file must be the end of an image's path; if no path ends with it, an image with the same file name is
    used, if it is unique.

    Args:
        path: The split file.
        pool: All images of the data set.

    Raises:
        ValueError: The file is missing or malformed, names an image that does not exist, is ambiguous, or lists an
            image twice.
    """
    labels: dict[str, int] = {}
    for part in pool.parts.values():
        labels.update(zip((str(image) for image in part.images), part.labels.tolist(), strict=True))
    by_file: dict[str, list[str]] = {}
    for image in labels:
        by_file.setdefault(image.rpartition("/")[2], []).append(image)

    pairs: dict[Split, list[tuple[str, int]]] = {}
    seen: set[str] = set()
    renamed: dict[Any, int] = {}
    for where, part_name, name, foreign_label in _json_entries(path) if path.suffix == ".json" else _csv_entries(path):
        image = _find(name, by_file, f"{path}, {where}")
        if image in seen:
            raise ValueError(f"{path}, {where}: {name} is listed twice")
        seen.add(image)
        label = labels[image]
        if foreign_label is not None and renamed.setdefault(foreign_label, label) != label:
            first = pool.classes[renamed[foreign_label]]
            raise ValueError(
                f"{path}, {where}: label {foreign_label} was {first!r} before, but {name} is {pool.classes[label]!r}"
            )
        pairs.setdefault(part_name, []).append((image, label))
    if not pairs:
        raise ValueError(f"{path} lists no image: expected {_JSON if path.suffix == '.json' else _CSV}")
    return {part: image_list(pairs[part]) for part in SPLITS if part in pairs}


def read_text_lists(path: Path, root: Path, num_classes: int) -> dict[Split, ImageList]:
    """Read the parts in a folder of ``train.txt``, ``val.txt``, ``test.txt``, or one ``.txt`` file for training.

    Paths that are not absolute are relative to ``root``.

    Raises:
        ValueError: No list, or a malformed line, a label out of range or an image listed twice, with file and line.
    """
    if path.is_dir():
        files: dict[Split, Path] = {part: path / f"{part}.txt" for part in SPLITS if (path / f"{part}.txt").is_file()}
        if not files:
            raise ValueError(f"{path} holds no train.txt, val.txt or test.txt: expected {_TEXT}")
    else:
        files = {"train": path}
    lists: dict[Split, ImageList] = {}
    seen: set[str] = set()
    for part, file in files.items():
        pairs = []
        for number, line in enumerate(read_lines(file, _TEXT), start=1):
            name, comma, label = line.strip().rpartition(",")
            if not comma or not name or not label.strip().isdecimal() or int(label) >= num_classes:
                raise ValueError(
                    f"{file}, line {number}: expected 'path,label' with a label in 0..{num_classes - 1}, "
                    f"got {line.strip()!r}"
                )
            image = str(root / name)
            if image in seen:
                raise ValueError(f"{file}, line {number}: {name} is listed twice")
            seen.add(image)
            pairs.append((image, int(label)))
        if not pairs:
            raise ValueError(f"{file} is empty: expected {_TEXT}")
        lists[part] = image_list(pairs)
    return lists


_Entry = tuple[str, Split, str, Any]


def _csv_entries(path: Path) -> Iterator[_Entry]:
    lines = read_lines(path, _CSV)
    rows = csv.reader(lines)
    header = next(rows, None)
    if header is None or [name.strip() for name in header] != ["split", "filename"]:
        raise ValueError(f"{path}, line 1: expected {_CSV}, got {','.join(header or [])!r}")
    for row in rows:
        part = next((part for part in SPLITS if row and row[0] == part), None)
        if part is None or len(row) != 2 or not row[1].strip(" /"):
            raise ValueError(f"{path}, line {rows.line_num}: expected {_CSV}, got {','.join(row)!r}")
        yield f"line {rows.line_num}", part, row[1].strip(), None


def _json_entries(path: Path) -> Iterator[_Entry]:
    try:
        content = json.loads(require_file(path, _JSON).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: expected {_JSON} ({error})") from error
    if not isinstance(content, dict) or not content or not set(content) <= set(SPLITS):
        raise ValueError(f"{path}: expected {_JSON}")
    for part in SPLITS:
        entries = content.get(part, [])
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if not _is_entry(entry):
                raise ValueError(f"{path}: entry {number} of {part} must be [path, label, name], got {entry!r:.80}")
            yield f"entry {number} of {part}", part, entry[0], entry[1]


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    return isinstance(entry[0], str) and entry[0].strip("/") != "" and isinstance(entry[1], int)


def _find(name: str, by_file: dict[str, list[str]], where: str) -> str:
    wanted = name.strip("/")
    same_file = by_file.get(wanted.rpartition("/")[2], [])
    ending = [image for image in same_file if image.endswith(f"/{wanted}")]
    found = ending or same_file
    if not found:
        raise ValueError(f"{where}: {name} is not among the data set's images")
    if len(found) > 1:
        raise ValueError(f"{where}: {name} may be {found[0]} or {found[1]}; give more of the path")
    return found[0]
