"""Animals with Attributes 2: 50 classes whose 85 attributes are the same for all of their images.

Files read from the folder of the download:

- ``classes.txt`` and ``predicates.txt`` (lines 'number name', numbers 1, 2, ...), the names of classes and attributes;
- ``predicate-matrix-binary.txt``: a line for each class, 0 or 1 for each attribute;
- ``train_val_test_classification_split.txt``: lines 'image_id path class split', class 1, 2, ..., split 1 for training,
  2 for validation, 0 for test; of the path counts what follows ``JPEGImages/``, so it may be another machine's;
- ``JPEGImages/<class>/<file>``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.classification import Split
from tenfold.data.files.readers.image_lists import ImageList, image_list
from tenfold.data.files.readers.official_lists import read_lines, read_numbered

IMAGES = "JPEGImages"
_CLASSES = "lines 'number class', numbers 1, 2, ..."
_PREDICATES = "lines 'number attribute', numbers 1, 2, ..."
_MATRIX = "a line for each class, 0 or 1 for each attribute, separated by spaces"
_SPLIT = "lines 'image_id path class split', classes 1, 2, ..., split 1 (train), 2 (val) or 0 (test)"
_PARTS: dict[str, Split] = {"1": "train", "2": "val", "0": "test"}


@dataclass(frozen=True, kw_only=True)
class Awa2Lists:
    """Classes, attributes and the images of each part."""

    classes: tuple[str, ...]
    """Names of the C classes, in label order."""
    attributes: tuple[str, ...]
    """Names of the K attributes, in the order of the matrix's columns."""
    class_attributes: np.ndarray
    """int8 ``(C, K)`` in {0, 1}."""
    parts: Mapping[Split, ImageList]
    """Images in the order of the split file."""


def read_awa2(root: Path) -> Awa2Lists:
    """Read classes, matrix and split. Raises ValueError, with path and line, for a missing or malformed file."""
    classes = read_numbered(root / "classes.txt", _CLASSES)
    attributes = read_numbered(root / "predicates.txt", _PREDICATES)
    return Awa2Lists(
        classes=tuple(classes),
        attributes=tuple(attributes),
        class_attributes=_matrix(root / "predicate-matrix-binary.txt", len(classes), len(attributes)),
        parts=_parts(root, root / "train_val_test_classification_split.txt", len(classes)),
    )


def _matrix(path: Path, num_classes: int, num_attributes: int) -> np.ndarray:
    """Read the matrix of classes and attributes, int8 ``(C, K)``."""
    lines = read_lines(path, _MATRIX)
    if len(lines) != num_classes:
        raise ValueError(f"{path}: expected {_MATRIX}, so {num_classes} lines, got {len(lines)}")
    matrix = np.empty((num_classes, num_attributes), dtype=np.int8)
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        wrong = next((field for field in fields if field not in ("0", "1")), None)
        if wrong is not None:
            raise ValueError(f"{path}, line {number}: expected {_MATRIX}, got {wrong!r}")
        if len(fields) != num_attributes:
            raise ValueError(
                f"{path}, line {number}: expected {num_attributes} values, one for each attribute of predicates.txt, "
                f"got {len(fields)}"
            )
        matrix[number - 1] = [int(field) for field in fields]
    return matrix


def _parts(root: Path, path: Path, num_classes: int) -> dict[Split, ImageList]:
    pairs: dict[Split, list[tuple[str, int]]] = {part: [] for part in _PARTS.values()}
    seen: set[str] = set()
    for number, line in enumerate(read_lines(path, _SPLIT), start=1):
        fields = line.split()
        if len(fields) != 4 or fields[3] not in _PARTS:
            raise ValueError(f"{path}, line {number}: expected {_SPLIT}, got {line.strip()!r}")
        _, name, label, split = fields
        if not label.isdecimal() or not 1 <= int(label) <= num_classes:
            raise ValueError(f"{path}, line {number}: class must be in 1..{num_classes}, got {label!r}")
        image = f"{root / IMAGES}/{name.rpartition(f'{IMAGES}/')[2].removeprefix('./')}"
        if image in seen:
            raise ValueError(f"{path}, line {number}: {name} is listed twice")
        seen.add(image)
        pairs[_PARTS[split]].append((image, int(label) - 1))
    for part, listed in pairs.items():
        if not listed:
            raise ValueError(f"{path} lists no image of the {part} part: expected {_SPLIT}")
    return {part: image_list(listed) for part, listed in pairs.items()}
