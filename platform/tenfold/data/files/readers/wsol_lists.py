"""Lists of the weakly supervised localisation protocol: ``<data set>/<part>/`` with four comma-separated files.

``image_ids.txt`` (path), ``class_labels.txt`` (path,label), ``image_sizes.txt`` (path,width,height) and
``localization.txt``, which holds boxes (path,x0,y0,x1,y1) or masks (path,mask,ignored), several lines for an image
with several objects. Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tenfold.data.files.readers.official_lists import check_distinct, read_lines

_IDS = "one image's path a line"
_LABELS = "lines 'path,label'"
_SIZES = "lines 'path,width,height'"
_BOXES = "lines 'path,x0,y0,x1,y1' of whole numbers"
_MASKS = "lines 'path,mask,ignored'; only the first line of an image names the ignored region"


class MaskFiles(NamedTuple):
    """Mask files of one image, as paths relative to the data set's folder."""

    objects: tuple[str, ...]
    """File of each object, at least one."""
    ignored: str
    """File of the region that counts neither as object nor as background; may be empty."""


class ImageIndex:
    """Images of a part, with a map from path to row.

    Raises:
        ValueError: A missing or empty list, or a repeated path.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "image_ids.txt"
        self.names = [line.strip() for line in read_lines(self.path, _IDS)]
        if not self.names:
            raise ValueError(f"{self.path} is empty: expected {_IDS}")
        check_distinct(self.names, self.path, "image")
        self._rows: Mapping[str, int] = {name: row for row, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def lines(self, path: Path, what: str, num_fields: int) -> Iterator[tuple[str, int, list[str]]]:
        """Yield location, row of the image and the fields after its path, for every line of a list.

        Raises:
            ValueError: Another number of fields or a path that ``image_ids.txt`` does not have, with the line; after
                the last line, an image without a line.
        """
        seen = np.zeros(len(self), dtype=bool)
        for number, line in enumerate(read_lines(path, what), start=1):
            where = f"{path}, line {number}"
            name, *values = (field.strip() for field in line.split(","))
            if len(values) != num_fields:
                raise ValueError(f"{where}: expected {what}, got {line.strip()!r}")
            row = self._rows.get(name)
            if row is None:
                raise ValueError(f"{where}: {name} is not among the images of {self.path}")
            seen[row] = True
            yield where, row, values
        if not seen.all():
            missing = np.flatnonzero(~seen)
            raise ValueError(
                f"{path} lacks {len(missing)} of the {len(self)} images of {self.path.name}, "
                f"first: {self.names[missing[0]]}; expected {what}"
            )


def read_labels(folder: Path, images: ImageIndex, num_classes: int | None) -> np.ndarray:
    """Read ``class_labels.txt``: int64 ``(N,)`` in the order of the images.

    Args:
        folder: Folder of the part's lists.
        images: Images of the part.
        num_classes: Upper bound of the labels, exclusive; None: unbounded.

    Raises:
        ValueError: A missing file, a malformed line, a label out of range, an image without or with two labels.
    """
    labels = np.full(len(images), -1, dtype=np.int64)
    bounds = "at least 0" if num_classes is None else f"in 0..{num_classes - 1}"
    for where, row, (label,) in images.lines(folder / "class_labels.txt", _LABELS, 1):
        if not label.isdecimal() or (num_classes is not None and int(label) >= num_classes):
            raise ValueError(f"{where}: the label must be {bounds}, got {label!r}")
        if labels[row] >= 0:
            raise ValueError(f"{where}: {images.names[row]} already has the label {labels[row]}")
        labels[row] = int(label)
    return labels


def read_sizes(folder: Path, images: ImageIndex) -> np.ndarray:
    """Read ``image_sizes.txt``: width and height of every image, int64 ``(N, 2)``; raises as ``read_labels`` does."""
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    for where, row, values in images.lines(folder / "image_sizes.txt", _SIZES, 2):
        if not all(value.isdecimal() and int(value) > 0 for value in values):
            raise ValueError(f"{where}: width and height must be integers of at least 1, got {','.join(values)}")
        if sizes[row].any():
            raise ValueError(f"{where}: {images.names[row]} already has a size")
        sizes[row] = [int(value) for value in values]
    return sizes


def read_boxes(folder: Path, images: ImageIndex, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Read ``localization.txt`` as boxes in pixels of the stored images: int64 ``(n, 4)`` for each, n at least 1.

    A box may end at the image's width and height, one past the last pixel: published lists use both conventions.

    Args:
        folder: Folder of the part's lists.
        images: Images of the part.
        sizes: Their widths and heights, ``(N, 2)``.

    Raises:
        ValueError: A missing file, a malformed line, a box outside its image or inverted, an image without a box.
    """
    boxes: list[list[list[int]]] = [[] for _ in images.names]
    for where, row, values in images.lines(folder / "localization.txt", _BOXES, 4):
        try:
            box = [int(value) for value in values]
        except ValueError:
            raise ValueError(f"{where}: expected {_BOXES}, got {','.join(values)}") from None
        width, height = sizes[row].tolist()
        x0, y0, x1, y1 = box
        if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height and x0 < width and y0 < height):
            raise ValueError(f"{where}: the box {box} must lie inside the image of {width} x {height} pixels")
        boxes[row].append(box)
    return tuple(np.array(each, dtype=np.int64) for each in boxes)


def read_mask_files(folder: Path, images: ImageIndex) -> tuple[MaskFiles, ...]:
    """Read ``localization.txt`` as masks, one entry for each image.

    Raises:
        ValueError: A missing file, a malformed line, a second file of an ignored region, an image without a
            mask.
    """
    objects: list[list[str]] = [[] for _ in images.names]
    ignored = [""] * len(images)
    for where, row, (mask, ignore) in images.lines(folder / "localization.txt", _MASKS, 2):
        if not mask or (ignore and objects[row]):
            raise ValueError(f"{where}: expected {_MASKS}, got {images.names[row]},{mask},{ignore}")
        objects[row].append(mask)
        ignored[row] = ignored[row] or ignore
    return tuple(MaskFiles(tuple(names), ignore) for names, ignore in zip(objects, ignored, strict=True))
