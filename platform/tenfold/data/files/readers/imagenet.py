"""ImageNet (ILSVRC 2012), its subset of 100 classes, and ImageNetV2.

Images lie in folders named by WordNet ids. Labels follow the order of the ids; names are those of the CLIP authors,
which the package open_clip ships.
"""

from collections.abc import Sequence
from pathlib import Path

from tenfold.data.classification import Split
from tenfold.data.files.readers.image_lists import ImageLists, folder_images, require_folder, subfolders
from tenfold.data.files.readers.official_lists import check_distinct, read_lines

_FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}

# open_clip's list repeats two names; class names must be unique.
_OWN_NAMES = {744: "projectile", 836: "sunglass"}


def imagenet_names() -> tuple[str, ...]:
    """Return the 1,000 names in label order."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES  # slow to import

    return tuple(_OWN_NAMES.get(label, name) for label, name in enumerate(IMAGENET_CLASSNAMES))


def imagenet_ids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids in label order."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def read_imagenet(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read ``train/<WordNet id>/`` and ``val/<WordNet id>/``; the official validation part is the test part.

    Raises:
        ValueError: A folder or a class is missing, or a folder is not a class.
    """
    return _read(root, parts, imagenet_ids(), imagenet_names(), strict=True)


def read_imagenet_100(root: Path, parts: Sequence[Split], classes_file: Path) -> ImageLists:
    """Read the classes of ``classes_file``, one WordNet id a line in label order, optionally followed by a name."""
    what = "one class a line, a WordNet id and optionally its name"
    known = dict(zip(imagenet_ids(), imagenet_names(), strict=True))
    ids, names = [], []
    for number, line in enumerate(read_lines(classes_file, what), start=1):
        wordnet_id, _, name = line.strip().partition(" ")
        if wordnet_id not in known:
            raise ValueError(
                f"{classes_file}, line {number}: {wordnet_id!r} is not a class of ImageNet; expected {what}"
            )
        ids.append(wordnet_id)
        names.append(name.strip() or known[wordnet_id])
    if not ids:
        raise ValueError(f"{classes_file} is empty: expected {what}")
    check_distinct(ids, classes_file, "class")
    check_distinct(names, classes_file, "class name")
    return _read(root, parts, tuple(ids), tuple(names), strict=False)


def read_imagenetv2(root: Path) -> ImageLists:
    """Read the matched-frequency images, in folders ``0`` to ``999`` named by label; only a test part."""
    folder = root / "imagenetv2-matched-frequency-format-val"
    what = "ImageNetV2's images (matched frequency), folders 0 to 999"
    names = imagenet_names()
    _check_folders(require_folder(folder, what), [str(label) for label in range(len(names))], what)
    # In numeric order: by name, "10" would come before "2".
    images = folder_images(folder, [str(label) for label in range(len(names))])
    return ImageLists(classes=names, parts={"test": images})


def _read(
    root: Path, parts: Sequence[Split], ids: tuple[str, ...], names: tuple[str, ...], *, strict: bool
) -> ImageLists:
    lists = {}
    for part in parts:
        if part in _FOLDERS:
            what = f"ImageNet's images in {len(ids)} folders named by WordNet ids"
            folder = require_folder(root / _FOLDERS[part], what)
            if strict:
                _check_folders(folder, ids, what)
            lists[part] = folder_images(folder, ids)
    return ImageLists(classes=names, parts=lists)


def _check_folders(folder: Path, expected: Sequence[str], what: str) -> None:
    there = set(subfolders(folder))
    missing, strange = [name for name in expected if name not in there], sorted(there - set(expected))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} class folders, first: {missing[0]}; expected {what}")
    if strange:
        raise ValueError(
            f"{folder} holds {len(strange)} folders that are not classes, first: {strange[0]}; expected {what}"
        )
