"""CUB-200-2011 as 312 binary attributes: ``CUB_200_2011/`` and ``attributes.txt`` beside it.

``attributes/image_attribute_labels.txt`` holds one line for each image and attribute: image id, attribute id,
is_present, certainty, time. Certainty is ignored. ``train_test_split.txt`` says 1 for training.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from tenfold.data.multilabel_readers.listing import Listing, OfficialLists, read_numbered, require_file

FOLDER = Path("CUB_200_2011")


def read_cub_classes(root: Path) -> tuple[str, ...]:
    """The attribute names of ``attributes.txt``, in its order."""
    path = root / "attributes.txt"
    return tuple(read_numbered(path, "lines 'attribute_id name', ids 1, 2, ..."))


def read_cub(root: Path) -> OfficialLists:
    """Read both lists. Raises ValueError, with the path, for a missing or malformed file."""
    classes = read_cub_classes(root)
    folder = root / FOLDER
    names = read_numbered(folder / "images.txt", "lines 'image_id path', ids 1, 2, ...")
    split_path = folder / "train_test_split.txt"
    flags = read_numbered(split_path, "lines 'image_id is_training', ids 1, 2, ...", distinct=False)
    if len(flags) != len(names) or not set(flags) <= {"0", "1"}:
        raise ValueError(f"{split_path}: expected {len(names)} flags 0 or 1 as in images.txt, got {len(flags)}")
    full = _read_attributes(folder / "attributes" / "image_attribute_labels.txt", len(names), len(classes))
    is_train = np.array(flags) == "1"

    def part(rows: np.ndarray) -> Listing:
        return Listing(folder=folder / "images", names=[names[row] for row in np.flatnonzero(rows)], full=full[rows])

    return OfficialLists(classes=classes, train=part(is_train), test=part(~is_train))


def _read_attributes(path: Path, num_images: int, num_classes: int) -> np.ndarray:
    """is_present, int8 ``(N, K)``."""
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
            f"got {len(table)} lines: is it cut off?"
        )
    return full
