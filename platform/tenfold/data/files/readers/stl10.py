"""STL-10: ``stl10_binary/`` with ``{train,test}_X.bin``, ``{train,test}_y.bin`` and ``class_names.txt``.

Unlike torchvision's reader, this one does not hash all files, among them 2.7 GB of unlabelled images, on every start.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tenfold.data.classification import Split
from tenfold.data.files.readers.image_lists import ImageList, ImageLists
from tenfold.data.files.readers.official_lists import check_distinct, read_lines, require_file

_SIDE = 96
_BYTES = 3 * _SIDE * _SIDE


def read_stl10(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read training and test images, 96x96, into memory; no validation part.

    Raises:
        ValueError: A missing file, one of another length, or a label out of range, with its path.
    """
    folder = root / "stl10_binary"
    names_path = folder / "class_names.txt"
    classes = tuple(line.strip() for line in read_lines(names_path, "STL-10's classes, one a line"))
    check_distinct(classes, names_path, "class")
    return ImageLists(
        classes=classes,
        parts={part: _read_part(folder, part, len(classes)) for part in parts if part != "val"},
    )


def _read_part(folder: Path, part: str, num_classes: int) -> ImageList:
    path = require_file(folder / f"{part}_X.bin", "STL-10's images, 27,648 bytes each")
    labels_path = require_file(folder / f"{part}_y.bin", "STL-10's labels, a byte each")
    pixels, labels = np.fromfile(path, dtype=np.uint8), np.fromfile(labels_path, dtype=np.uint8)
    if not len(labels) or len(pixels) != _BYTES * len(labels):
        raise ValueError(
            f"{path}: expected {_BYTES} bytes for each of the {len(labels)} labels in {labels_path.name}, "
            f"got {len(pixels)}; is one of them truncated?"
        )
    if labels.min() < 1 or labels.max() > num_classes:
        raise ValueError(f"{labels_path}: labels must be in 1..{num_classes}, got {labels.min()}..{labels.max()}")
    # Stored by channel, each in column-major order.
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 3, 2, 1)
    return ImageList(images=np.ascontiguousarray(images), labels=labels.astype(np.int64) - 1)
