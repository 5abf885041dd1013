"""CUB-200-2011's attributes, points and segmentations, for the test pictures: what tells two birds apart, and where.

``attributes/class_attribute_labels_continuous.txt`` (a line for each class, a percentage for each attribute),
``attributes/attributes.txt`` (lines 'id name'; the download has it beside the data set's folder, which will do),
``parts/part_locs.txt`` (lines 'image part x y visible'), ``images.txt`` (lines 'image path') and
``segmentations/<path>.png``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tenfold.data.images import file_table
from tenfold.data.localisation import NUM_CUB_POINTS, CueTruth
from tenfold.data.localisation_readers.masks import Segmentations
from tenfold.data.multilabel_readers.listing import read_lines, read_numbered

_PERCENT = "a line for each class, percentages separated by spaces"
_POINTS = f"lines 'image part x y visible', parts 1..{NUM_CUB_POINTS}, visible 0 or 1"


def read_cub_cues(
    folder: Path, names: Sequence[str], sizes: np.ndarray, num_classes: int, *, size: int, num_workers: int
) -> CueTruth:
    """The annotations of chosen pictures.

    Args:
        folder: ``CUB``, with the files above.
        names: N pictures by their paths in ``images.txt``.
        sizes: Their widths and heights, int64 ``(N, 2)``.
        num_classes: C.
        size: Side of the foreground masks.
        num_workers: Decoding threads.

    Raises:
        ValueError: A missing or malformed file, with its path and line; a picture without an id or a segmentation.
    """
    attributes = read_numbered(_attributes_file(folder), "lines 'attribute_id name', ids 1, 2, ...")
    percent = _percentages(folder / "attributes/class_attribute_labels_continuous.txt", num_classes, len(attributes))
    images_path = folder / "images.txt"
    image_names = read_numbered(images_path, "lines 'image_id path', ids 1, 2, ...")
    image_of = {name: number for number, name in enumerate(image_names)}
    absent = [name for name in names if name not in image_of]
    if absent:
        raise ValueError(f"{images_path} lacks {len(absent)} of {len(names)} test pictures, first: {absent[0]}")
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


def _attributes_file(folder: Path) -> Path:
    places = (folder / "attributes/attributes.txt", folder / "attributes.txt", folder.parent / "attributes.txt")
    return next((place for place in places if place.is_file()), places[0])


def _percentages(path: Path, num_classes: int, num_attributes: int) -> np.ndarray:
    """float64 ``(C, A)``."""
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
    """Part, x and y of the visible points of every image, by ascending part."""
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
            raise ValueError(f"{path}, line {number}: part {part} of image {image} is there already")
        if visible:
            points[image - 1][part] = (x, y)
    return [[(part, *each[part]) for part in sorted(each)] for each in points]
