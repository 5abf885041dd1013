"""CUB-200-2011: 200 bird species with 312 attributes, keypoints and segmentations.

Files read from the folder ``CUB_200_2011`` of the download:

- ``images.txt`` (lines 'image path'), ``classes.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` (1 for
  training) and ``images/``;
- ``attributes/image_attribute_labels.txt``: a line for each image and attribute: image id, attribute id, is_present,
  certainty, time; certainty is ignored;
- ``attributes/class_attribute_labels_continuous.txt``: a line for each class, a percentage for each attribute;
- ``attributes.txt`` (lines 'id name'), which lies next to the folder in the download;
- ``parts/part_locs.txt`` (lines 'image part x y visible') and ``segmentations/<path>.png``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tenfold.data.classification import Split
from tenfold.data.files.readers.image_lists import ImageList, ImageLists, image_list
from tenfold.data.files.readers.masks import Segmentations
from tenfold.data.files.readers.official_lists import Listing, OfficialLists, read_lines, read_numbered, require_file
from tenfold.data.images import file_table
from tenfold.data.localisation import NUM_CUB_POINTS, CueTruth

FOLDER = Path("CUB_200_2011")
_ATTRIBUTES = "lines 'attribute_id name', ids 1, 2, ..."
_PERCENT = "a line for each class, percentages separated by spaces"
_POINTS = f"lines 'image part x y visible', parts 1..{NUM_CUB_POINTS}, visible 0 or 1"


def read_cub200(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read the training and test part of ``train_test_split.txt``, images sorted by path; no validation part.

    Raises:
        ValueError: A missing or malformed file, with the path and the line.
    """
    folder = root / FOLDER
    classes = read_numbered(folder / "classes.txt", "lines 'class_id name', ids 1, 2, ...")
    names = _image_names(folder)
    labels = _numbers(folder / "image_class_labels.txt", "class_id", len(names), range(1, len(classes) + 1))
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


def read_cub(root: Path) -> OfficialLists:
    """Read both lists. Raises ValueError, with the path, for a missing or malformed file."""
    classes = read_cub_classes(root)
    folder = root / FOLDER
    names = _image_names(folder)
    full = _read_attributes(folder / "attributes" / "image_attribute_labels.txt", len(names), len(classes))
    is_train = np.array(_is_train(folder, len(names))) == 1

    def part(rows: np.ndarray) -> Listing:
        return Listing(folder=folder / "images", names=[names[row] for row in np.flatnonzero(rows)], full=full[rows])

    return OfficialLists(classes=classes, train=part(is_train), test=part(~is_train))


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


def _read_attributes(path: Path, num_images: int, num_classes: int) -> np.ndarray:
    """Read is_present, int8 ``(N, K)``."""
    require_file(path, "lines 'image_id attribute_id is_present certainty time'")
    try:
        # A few lines of the published file have a sixth field: naming the columns used makes pandas ignore the rest.
        table = pd.read_csv(path, sep=r"\s+", header=None, usecols=[0, 1, 2], dtype=np.int32).to_numpy()
    except (ValueError, OverflowError) as error:  # pandas' parsing errors are ValueErrors
        raise ValueError(
            f"{path}: expected lines 'image_id attribute_id is_present certainty time' ({error})"
        ) from error
    image_ids, attribute_ids, present = table.T
    for values, top, what in ((image_ids, num_images, "image id"), (attribute_ids, num_classes, "attribute id")):
        wrong = np.flatnonzero((values < 1) | (values > top))
        if wrong.size:
            raise ValueError(f"{path}, line {wrong[0] + 1}: {what} must be in 1..{top}, got {values[wrong[0]]}")
    wrong = np.flatnonzero((present != 0) & (present != 1))
    if wrong.size:
        raise ValueError(f"{path}, line {wrong[0] + 1}: is_present must be 0 or 1, got {present[wrong[0]]}")
    full = np.full((num_images, num_classes), -1, dtype=np.int8)
    full[image_ids - 1, attribute_ids - 1] = present
    if len(table) != full.size or (full < 0).any():
        raise ValueError(
            f"{path}: expected one line for each of {num_images} images and {num_classes} attributes, "
            f"got {len(table)} lines; is it truncated?"
        )
    return full


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
