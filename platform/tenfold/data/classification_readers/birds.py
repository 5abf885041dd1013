"""CUB-200-2011 as 200 kinds of birds: ``CUB_200_2011/`` with four numbered lists and ``images/``."""

from collections.abc import Sequence
from pathlib import Path

from tenfold.data.classification import Split
from tenfold.data.classification_readers.listing import PictureList, PictureLists, picture_list
from tenfold.data.multilabel_readers.listing import read_numbered


def read_cub200(root: Path, parts: Sequence[Split]) -> PictureLists:
    """Training and test part of ``train_test_split.txt``, pictures sorted by path; no validation part.

    Raises:
        ValueError: A missing or malformed file, with the path and the line.
    """
    folder = root / "CUB_200_2011"
    classes = read_numbered(folder / "classes.txt", "lines 'class_id name', ids 1, 2, ...")
    names = read_numbered(folder / "images.txt", "lines 'image_id path', ids 1, 2, ...")
    labels = _numbers(folder / "image_class_labels.txt", "class_id", len(names), range(1, len(classes) + 1))
    is_train = _numbers(folder / "train_test_split.txt", "is_training", len(names), range(2))
    lists: dict[Split, PictureList] = {}
    for part in parts:
        if part == "val":
            continue
        wanted = 1 if part == "train" else 0
        rows = [row for row, flag in enumerate(is_train) if flag == wanted]
        lists[part] = picture_list(sorted((f"{folder}/images/{names[row]}", labels[row] - 1) for row in rows))
    # "001.Black_footed_Albatross" -> "Black footed Albatross"
    words = tuple(name.partition(".")[2].replace("_", " ") or name for name in classes)
    return PictureLists(classes=tuple(classes), parts=lists, prompt_names=words)


def _numbers(path: Path, name: str, length: int, allowed: range) -> list[int]:
    """One whole number of ``allowed`` for each image."""
    values = read_numbered(path, f"lines 'image_id {name}', ids 1, 2, ...", distinct=False)
    if len(values) != length:
        raise ValueError(f"{path}: expected a {name} for each of {length} images of images.txt, got {len(values)}")
    for number, value in enumerate(values, start=1):
        if not value.isdecimal() or int(value) not in allowed:
            raise ValueError(
                f"{path}, line {number}: {name} must be in {allowed.start}..{allowed.stop - 1}, got {value!r}"
            )
    return [int(value) for value in values]
