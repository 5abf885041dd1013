"""CUB-200-2011: 200 bird species with 312 attributes, keypoints and segmentations.

Files read from the folder ``CUB_200_2011`` of the download:

- ``images.txt`` (lines 'image path'), ``classes.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` (1 for
  training) and ``images/``;
- ``attributes/image_attribute_labels.txt``: a line for each image and attribute: image id, attribute id, is_present,
  certainty (1 not visible, 2 guessing, 3 probably, 4 definitely), time;
- ``attributes/class_attribute_labels_continuous.txt``: a line for each class, a percentage for each attribute;
- ``attributes.txt`` (lines 'id name'), which lies next to the folder in the download, or in ``attributes/``;
- ``parts/part_locs.txt`` (lines 'image part x y visible') and ``segmentations/<path>.png``.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tenfold.data.array_cache import cached_array
from tenfold.data.classification import Split
from tenfold.data.files.readers.image_lists import ImageList, ImageLists, image_list
from tenfold.data.files.readers.masks import Segmentations
from tenfold.data.files.readers.official_lists import Listing, OfficialLists, read_lines, read_numbered, require_file
from tenfold.data.images import file_table
from tenfold.data.localisation import NUM_CUB_POINTS, CueTruth
from tenfold.hashing import text_sha256

FOLDER = Path("CUB_200_2011")
_ATTRIBUTES = "lines 'attribute_id name', ids 1, 2, ..."
_LABELS = "lines 'image_id attribute_id is_present certainty time'"
_PERCENT = "a line for each class, percentages separated by spaces"
_POINTS = f"lines 'image part x y visible', parts 1..{NUM_CUB_POINTS}, visible 0 or 1"
# Part of the cache's name: increment when the parsing changes the bytes.
_PARSING = "cub-attributes-1"


@dataclass(frozen=True, kw_only=True)
class CubAttributes:
    """Images of CUB-200-2011 in the order of their ids, with classes and attributes: N images, A attributes."""

    folder: Path
    """Folder that ``names`` are relative to."""
    names: list[str]
    """Paths of the images inside ``folder``."""
    labels: np.ndarray
    """Class of each image, int64 ``(N,)``."""
    is_train: np.ndarray
    """Whether the official list has the image for training, bool ``(N,)``."""
    classes: tuple[str, ...]
    """Names of the classes, in label order."""
    attributes: tuple[str, ...]
    """Names of the attributes, such as ``has_bill_shape::dagger``."""
    present: np.ndarray
    """Whether annotators saw the attribute, int8 ``(N, A)`` in {0, 1}."""
    certainty: np.ndarray
    """Their certainty, int8 ``(N, A)``: 1 not visible, 2 guessing, 3 probably, 4 definitely."""


def read_cub200(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read the training and test part of ``train_test_split.txt``, images sorted by path; no validation part.

    Raises:
        ValueError: A missing or malformed file, with the path and the line.
    """
    folder = root / FOLDER
    classes = _class_names(folder)
    names = _image_names(folder)
    labels = _class_ids(folder, len(names), len(classes))
    is_train = _is_train(folder, len(names))
    lists: dict[Split, ImageList] = {}
    for part in parts:
        if part == "val":
            continue
        wanted = 1 if part == "train" else 0
        rows = [row for row, flag in enumerate(is_train) if flag == wanted]
        lists[part] = image_list(sorted((f"{folder}/images/{names[row]}", labels[row] - 1) for row in rows))
    # "001.Black_footed_Albatross" -> "Black footed Albatross"
    words = tuple(name.partition(".")[2].replace("_", " ") or name for name in classes)
    return ImageLists(classes=tuple(classes), parts=lists, prompt_names=words)


def read_cub_classes(root: Path) -> tuple[str, ...]:
    """Read the attribute names of ``attributes.txt``, in its order."""
    return tuple(read_numbered(root / "attributes.txt", _ATTRIBUTES))


def read_cub(root: Path, cache: str | Path | None = None) -> OfficialLists:
    """Read both lists; ``cache`` as in ``read_cub_attributes``.

    Raises:
        ValueError: A missing or malformed file, with the path.
        OSError: No room for the cache.
    """
    classes = read_cub_classes(root)
    folder = root / FOLDER
    names = _image_names(folder)
    full, _ = _read_attributes(folder, len(names), len(classes), cache)
    is_train = np.array(_is_train(folder, len(names))) == 1

    def part(rows: np.ndarray) -> Listing:
        return Listing(folder=folder / "images", names=[names[row] for row in np.flatnonzero(rows)], full=full[rows])

    return OfficialLists(classes=classes, train=part(is_train), test=part(~is_train))


def read_cub_attributes(root: Path, cache: str | Path | None = None) -> CubAttributes:
    """Read all images with their classes, attributes and certainties.

    Args:
        root: Folder that holds ``CUB_200_2011``.
        cache: Folder that keeps the attributes as parsed (2 N A bytes), since the text file has 3.7 million lines;
            None parses it on every call. A changed file is parsed anew.

    Raises:
        ValueError: A missing or malformed file, with the path and the line.
        OSError: No room for the cache.
    """
    folder = root / FOLDER
    classes = _class_names(folder)
    attributes = read_numbered(_attributes_file(folder), _ATTRIBUTES)
    names = _image_names(folder)
    labels = _class_ids(folder, len(names), len(classes))
    is_train = _is_train(folder, len(names))
    present, certainty = _read_attributes(folder, len(names), len(attributes), cache)
    return CubAttributes(
        folder=folder / "images",
        names=names,
        labels=np.array(labels, dtype=np.int64) - 1,
        is_train=np.array(is_train) == 1,
        classes=tuple(classes),
        attributes=tuple(attributes),
        present=present,
        certainty=certainty,
    )


def read_cub_cues(
    folder: Path, names: Sequence[str], sizes: np.ndarray, num_classes: int, *, size: int, num_workers: int
) -> CueTruth:
    """Read the attributes, keypoints and segmentations of some images.

    Args:
        folder: Folder ``CUB`` with the files above.
        names: Paths of N images, as in ``images.txt``.
        sizes: Their widths and heights, int64 ``(N, 2)``.
        num_classes: Number of classes C.
        size: Side of the foreground masks.
        num_workers: Decoding threads.

    Raises:
        ValueError: A missing or malformed file, with its path and line; an image without an id or a segmentation.
    """
    attributes = read_numbered(_attributes_file(folder), _ATTRIBUTES)
    percent = _percentages(folder / "attributes/class_attribute_labels_continuous.txt", num_classes, len(attributes))
    image_names = _image_names(folder)
    image_of = {name: number for number, name in enumerate(image_names)}
    absent = [name for name in names if name not in image_of]
    if absent:
        raise ValueError(f"{folder / 'images.txt'} lacks {len(absent)} of {len(names)} test images, first: {absent[0]}")
    points = _points(folder / "parts/part_locs.txt", len(image_names))
    chosen = [points[image_of[name]] for name in names]
    paths = [str((folder / "segmentations" / name).with_suffix(".png")) for name in names]
    file_table(paths)
    return CueTruth(
        class_attribute_percent=percent,
        attribute_names=tuple(attributes),
        part_ids=tuple(np.array([part for part, _, _ in each], dtype=np.int64) for each in chosen),
        part_xy=tuple(np.array([(x, y) for _, x, y in each], dtype=np.float64).reshape(-1, 2) for each in chosen),
        image_wh=sizes,
        foregrounds=Segmentations(paths, size, num_workers),
    )


def _class_names(folder: Path) -> list[str]:
    """Return the names of all classes, in the order of their ids."""
    return read_numbered(folder / "classes.txt", "lines 'class_id name', ids 1, 2, ...")


def _class_ids(folder: Path, num_images: int, num_classes: int) -> list[int]:
    """Return the class of each image, in 1..C."""
    return _numbers(folder / "image_class_labels.txt", "class_id", num_images, range(1, num_classes + 1))


def _image_names(folder: Path) -> list[str]:
    """Return the paths of all images inside ``images/``, in the order of their ids."""
    return read_numbered(folder / "images.txt", "lines 'image_id path', ids 1, 2, ...")


def _is_train(folder: Path, num_images: int) -> list[int]:
    """Return 1 for each training image, 0 for each test image."""
    return _numbers(folder / "train_test_split.txt", "is_training", num_images, range(2))


def _numbers(path: Path, name: str, length: int, allowed: range) -> list[int]:
    """Read one integer of ``allowed`` for each image."""
    values = read_numbered(path, f"lines 'image_id {name}', ids 1, 2, ...", distinct=False)
    if len(values) != length:
        raise ValueError(f"{path}: expected a {name} for each of {length} images of images.txt, got {len(values)}")
    for number, value in enumerate(values, start=1):
        if not value.isdecimal() or int(value) not in allowed:
            raise ValueError(
                f"{path}, line {number}: {name} must be in {allowed.start}..{allowed.stop - 1}, got {value!r}"
            )
    return [int(value) for value in values]


def _read_attributes(
    folder: Path, num_images: int, num_attributes: int, cache: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Read is_present and certainty, int8 ``(N, A)`` each, from the cache if there is one."""
    path = require_file(folder / "attributes/image_attribute_labels.txt", _LABELS)
    if cache is None:
        parsed = _parse_attributes(path, num_images, num_attributes)
        return parsed[0], parsed[1]
    status = os.stat(path)
    key = [_PARSING, path.resolve(), status.st_size, status.st_mtime_ns, num_images, num_attributes]

    def fill(out: np.ndarray, start: int, stop: int) -> None:
        out[:] = _parse_attributes(path, num_images, num_attributes)

    kept = cached_array(
        Path(cache) / f"cub-attributes-{text_sha256('|'.join(map(str, key)))[:24]}.npy",
        (2, num_images, num_attributes),
        np.int8,
        fill,
        chunk=2,
        description="parsing attributes",
        progress=False,
    )
    return np.array(kept[0]), np.array(kept[1])


def _parse_attributes(path: Path, num_images: int, num_attributes: int) -> np.ndarray:
    """Parse is_present and certainty, int8 ``(2, N, A)``."""
    try:
        # A few lines of the published file have a sixth field: naming the columns used makes pandas ignore the rest.
        table = pd.read_csv(path, sep=r"\s+", header=None, usecols=[0, 1, 2, 3], dtype=np.int32).to_numpy()
    except (ValueError, OverflowError) as error:  # pandas' parsing errors are ValueErrors
        raise ValueError(f"{path}{_first_bad_line(path)}: expected {_LABELS} ({error})") from error
    image_ids, attribute_ids, present, certainty = table.T
    for values, low, top, what in (
        (image_ids, 1, num_images, "image id must be in 1..{}"),
        (attribute_ids, 1, num_attributes, "attribute id must be in 1..{}"),
        (present, 0, 1, "is_present must be 0 or {}"),
        (certainty, 1, 4, "certainty must be in 1..{}"),
    ):
        wrong = np.flatnonzero((values < low) | (values > top))
        if wrong.size:
            raise ValueError(f"{path}, line {wrong[0] + 1}: {what.format(top)}, got {values[wrong[0]]}")
    parsed = np.full((2, num_images, num_attributes), -1, dtype=np.int8)
    parsed[:, image_ids - 1, attribute_ids - 1] = present, certainty
    if len(table) != parsed[0].size or (parsed < 0).any():
        raise ValueError(
            f"{path}: expected one line for each of {num_images} images and {num_attributes} attributes, "
            f"got {len(table)} lines; is it truncated?"
        )
    return parsed


def _first_bad_line(path: Path) -> str:
    """Return ``, line 7`` for the first line that does not begin with four integers; nothing if all do."""
    begins_well = re.compile(rb"\s*[+-]?\d+\s+[+-]?\d+\s+[+-]?\d+\s+[+-]?\d+(\s|$)").match
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not begins_well(line):
                return f", line {number}"
    return ""


def _attributes_file(folder: Path) -> Path:
    places = (folder / "attributes/attributes.txt", folder / "attributes.txt", folder.parent / "attributes.txt")
    return next((place for place in places if place.is_file()), places[0])


def _percentages(path: Path, num_classes: int, num_attributes: int) -> np.ndarray:
    """Read percentages, float64 ``(C, A)``."""
    lines = read_lines(path, _PERCENT)
    if len(lines) != num_classes:
        raise ValueError(f"{path}: expected {_PERCENT}, so {num_classes} lines, got {len(lines)}")
    table = np.empty((num_classes, num_attributes))
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) != num_attributes:
            raise ValueError(
                f"{path}, line {number}: expected {num_attributes} percentages, one for each attribute, "
                f"got {len(fields)}"
            )
        try:
            table[number - 1] = [float(field) for field in fields]
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected {_PERCENT}, got {line.strip()[:60]!r}") from None
        if not ((table[number - 1] >= 0) & (table[number - 1] <= 100)).all():
            raise ValueError(f"{path}, line {number}: percentages must lie in 0..100")
    return table


def _points(path: Path, num_images: int) -> list[list[tuple[int, float, float]]]:
    """Read part, x and y of the visible keypoints of every image, in ascending order of part."""
    points: list[dict[int, tuple[float, float]]] = [{} for _ in range(num_images)]
    for number, line in enumerate(read_lines(path, _POINTS), start=1):
        fields = line.split()
        try:
            image, part, visible = (int(fields[place]) for place in (0, 1, 4))
            x, y = float(fields[2]), float(fields[3])
        except (IndexError, ValueError):
            raise ValueError(f"{path}, line {number}: expected {_POINTS}, got {line.strip()!r}") from None
        known = 1 <= image <= num_images and 1 <= part <= NUM_CUB_POINTS and visible in (0, 1)
        if not known or len(fields) != 5 or not np.isfinite([x, y]).all():
            raise ValueError(f"{path}, line {number}: expected {_POINTS}, images 1..{num_images}, got {line.strip()!r}")
        if part in points[image - 1]:
            raise ValueError(f"{path}, line {number}: part {part} of image {image} is repeated")
        if visible:
            points[image - 1][part] = (x, y)
    return [[(part, *each[part]) for part in sorted(each)] for each in points]
