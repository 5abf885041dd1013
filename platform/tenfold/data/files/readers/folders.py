"""Images in one folder per class, and prepared few-shot folders."""

from collections.abc import Sequence
from pathlib import Path

from tenfold.data.classification import SPLITS, Split
from tenfold.data.files.readers.image_lists import (
    ImageList,
    ImageLists,
    folder_images,
    image_list,
    image_names,
    require_folder,
    subfolders,
)


def read_folders(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read ``{train,val,test}/<class>/``, or ``<class>/`` with all images as the test part.

    Classes are sorted by name; they are those of ``train``, or of ``test`` if there is no ``train``.

    Raises:
        ValueError: No class folder, an empty one, no ``test`` beside ``train`` or ``val``, or a class in another part
            that these do not have.
    """
    there: list[Split] = [part for part in SPLITS if (root / part).is_dir()]
    if not there:
        classes = tuple(subfolders(root))
        if not classes:
            raise ValueError(f"{root} holds no folder: expected train/, val/, test/, or one folder a class")
        return ImageLists(classes=classes, parts={"test": folder_images(root, classes)})
    require_folder(root / "test", "the test part, one folder a class")
    leading = root / ("train" if "train" in there else "test")
    classes = tuple(subfolders(leading))
    if not classes:
        raise ValueError(f"{leading} holds no folder: expected one folder a class")
    lists = {}
    for part in (part for part in parts if part in there):
        names = subfolders(root / part)
        strange = sorted(set(names) - set(classes))
        if strange:
            raise ValueError(f"{root / part} holds the class {strange[0]!r}, which {leading} does not have")
        kept = folder_images(root / part, names)  # val and test may lack a class
        place = [classes.index(name) for name in names]
        paths = [str(path) for path in kept.images]
        lists[part] = image_list([(path, place[label]) for path, label in zip(paths, kept.labels, strict=True)])
    return ImageLists(classes=classes, parts=lists)


def read_few_shots(folder: Path, classes: Sequence[str]) -> ImageList:
    """Read a prepared few-shot folder, ``<class>/<file>``: classes in label order, files in natural order.

    A class name with a slash is a nested folder. Files are decoded, and damaged ones refused, on reading.

    Raises:
        ValueError: The folder, a class or its images are missing, or a folder is not a class.
    """
    require_folder(folder, "prepared shots, one folder a class")
    pairs: list[tuple[str, int]] = []
    missing = []
    for label, name in enumerate(classes):
        place = folder / name
        files = image_names(place) if place.is_dir() else []
        if not files:
            missing.append(name)
        pairs.extend((f"{place}/{file}", label) for file in files)
    if missing:
        raise ValueError(f"{folder} has no shots of {len(missing)} of {len(classes)} classes, first: {missing[0]!r}")
    known = {name.partition("/")[0] for name in classes}
    strange = [name for name in subfolders(folder) if name not in known]
    if strange:
        raise ValueError(f"{folder} holds {strange[0]!r}, which is not a class of the data set")
    return image_list(pairs)
