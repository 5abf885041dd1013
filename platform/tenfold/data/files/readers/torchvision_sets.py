"""Data sets in torchvision's layout: its classes read the lists; nothing is downloaded or decoded.

This module checks what torchvision does not: each list file, line by line, and that the parts have the same class
indices (DTD and Oxford pets derive them from each part separately).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.io.matlab import MatReadError
from torchvision import datasets

from tenfold.data.classification import Split
from tenfold.data.files.readers.image_lists import (
    ImageLists,
    check_lines,
    folder_images,
    image_list,
    require_folder,
    subfolders,
)
from tenfold.data.files.readers.official_lists import require_file

# Exceptions that torchvision's readers raise on lists that are missing, truncated or malformed.
_BROKEN = (RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, MatReadError)

EUROSAT_NAMES = (
    "annual crop land",
    "forest",
    "brushland or shrubland",
    "highway or road",
    "industrial buildings or commercial buildings",
    "pasture land",
    "permanent crop land",
    "residential buildings or homes or apartments",
    "river",
    "lake or sea",
)
"""Prompt names of the classes of EuroSAT, by the CLIP authors, in label order."""


def read_dtd(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Describable Textures, partition 1, from ``dtd/dtd/labels`` and ``dtd/dtd/images``."""
    for part in parts:
        check_lines(root / "dtd/dtd/labels" / f"{part}1.txt", r"[^/\s]+/[^/]+", "DTD's list, lines 'class/file'")
    return _read(root, parts, lambda part: datasets.DTD(root, split=part, partition=1), "DTD")


def read_food101(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Food-101 from ``food-101/meta/{train,test}.json`` and ``food-101/images``; no validation part."""
    parts = [part for part in parts if part != "val"]
    for part in parts:
        require_file(root / "food-101/meta" / f"{part}.json", "Food-101's list, JSON of class to images")
    return _read(root, parts, lambda part: datasets.Food101(root, split=part), "Food-101")


def read_flowers102(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Oxford Flowers 102 from ``flowers-102/``: ``jpg``, ``setid.mat``, ``imagelabels.mat``."""
    for name in ("setid.mat", "imagelabels.mat"):
        require_file(root / "flowers-102" / name, "a list of Oxford flowers 102, as published")
    return _read(root, parts, lambda part: datasets.Flowers102(root, split=part), "Oxford flowers 102")


def read_pets(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Oxford-IIIT Pets from ``oxford-iiit-pet/annotations/{trainval,test}.txt`` and ``images``.

    There is no validation part. The classes are in case-insensitive alphabetical order.
    """
    names = {"train": "trainval", "test": "test"}
    for part in (part for part in parts if part in names):
        path = root / "oxford-iiit-pet/annotations" / f"{names[part]}.txt"
        check_lines(path, r"\S+ [1-9]\d* [12] \d+", "the pets' list, lines 'image class species breed'")
    return _read(
        root,
        [part for part in parts if part in names],
        lambda part: datasets.OxfordIIITPet(root, split=names[part]),
        "Oxford-IIIT pets",
    )


def read_fgvc_aircraft(root: Path, parts: Sequence[Split], level: str = "variant") -> ImageLists:
    """Read FGVC Aircraft from ``fgvc-aircraft-2013b/data``: 100 variants or 70 families; train is trainval."""
    names = {"train": "trainval", "test": "test"}
    data = root / "fgvc-aircraft-2013b/data"
    require_file(data / {"variant": "variants.txt", "family": "families.txt"}[level], "the aircraft's classes")
    for part in (part for part in parts if part in names):
        path = data / f"images_{level}_{names[part]}.txt"
        check_lines(path, r"\S+ .+", f"the aircraft's list, lines 'image {level}'")
    return _read(
        root,
        [part for part in parts if part in names],
        lambda part: datasets.FGVCAircraft(root, split=names[part], annotation_level=level),
        "FGVC aircraft",
    )


def read_cars(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Stanford Cars from ``stanford_cars/``: ``devkit``, ``cars_train``, ``cars_test``; no validation part."""
    parts = [part for part in parts if part != "val"]
    base = root / "stanford_cars"
    lists = {"train": base / "devkit/cars_train_annos.mat", "test": base / "cars_test_annos_withlabels.mat"}
    for path in (base / "devkit/cars_meta.mat", *(lists[part] for part in parts)):
        require_file(path, "a list of Stanford cars, as published")
    return _read(root, parts, lambda part: datasets.StanfordCars(root, split=part), "Stanford cars")


def read_places365(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Places365 from ``categories_places365.txt``, ``places365_val.txt`` and ``val_256/``.

    The validation list is the test part, the only one.
    """
    check_lines(root / "categories_places365.txt", r"\S+ \d+", "the categories of Places365, lines 'name number'")
    check_lines(root / "places365_val.txt", r"\S+ \d+", "the validation list of Places365, lines 'image number'")
    numbered: list[dict[str, int]] = []

    def build(part: Split) -> Any:
        dataset = datasets.Places365(root, split="val", small=True)
        numbered.append(dataset.class_to_idx)
        # Its own `classes` are sorted by name; labels follow the numbers.
        dataset.classes = sorted(dataset.class_to_idx, key=dataset.class_to_idx.__getitem__)
        return dataset

    lists = _read(root, ["test"], build, "Places365")
    if sorted(numbered[0].values()) != list(range(len(lists.classes))):
        raise ValueError(f"{root / 'categories_places365.txt'}: the categories must be numbered 0, 1, 2, ...")
    # "/b/booth/indoor" -> "booth-indoor"
    names = tuple(name.lstrip("/").partition("/")[2].replace("/", "-") or name for name in lists.classes)
    return ImageLists(classes=lists.classes, parts=lists.parts, prompt_names=names)


def read_eurosat(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read EuroSAT from ``eurosat/2750/<class>/``; without official parts, all images are the test part."""
    require_folder(root / "eurosat/2750", "EuroSAT's images, one folder a class")
    lists = _read(root, ["test"], lambda part: datasets.EuroSAT(root), "EuroSAT")
    names = EUROSAT_NAMES if len(lists.classes) == len(EUROSAT_NAMES) else None
    return ImageLists(classes=lists.classes, parts=lists.parts, prompt_names=names)


def read_sun397(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read SUN397 from ``SUN397/ClassName.txt`` and ``<letter>/<class>/sun_*.jpg``; all images are the test part."""
    check_lines(root / "SUN397/ClassName.txt", r"/\w/\S+", "SUN397's classes, lines '/letter/name'")
    return _read(root, ["test"], lambda part: datasets.SUN397(root), "SUN397", in_order=True)


def read_caltech101(root: Path, parts: Sequence[Split]) -> ImageLists:
    """Read Caltech-101 from ``caltech101/101_ObjectCategories``, without background and ``Faces_easy``.

    All images are the test part.
    """
    folder = root / "caltech101/101_ObjectCategories"
    # torchvision would create a missing folder, and numbers the files instead of reading their names.
    require_folder(folder, "Caltech-101's images, one folder a class")
    classes = tuple(name for name in subfolders(folder) if name not in ("BACKGROUND_Google", "Faces_easy"))
    if not classes:
        raise ValueError(f"{folder} holds no class folder: expected Caltech-101's images, one folder a class")
    return ImageLists(classes=classes, parts={"test": folder_images(folder, classes)})


def _read(
    root: Path, parts: Sequence[Split], build: Callable[[Split], Any], title: str, *, in_order: bool = False
) -> ImageLists:
    """Run torchvision's reader for each part; ``in_order`` sorts images that it lists in arbitrary order."""
    lists, classes = {}, None
    for part in parts:
        try:
            dataset = build(part)
        except _BROKEN as error:
            raise ValueError(
                f"{root}: the {part} part of {title} cannot be read ({type(error).__name__}: {error}); expected "
                f"torchvision's layout of it, with the files as published"
            ) from error
        names = tuple(str(name) for name in dataset.classes)
        if classes is not None and names != classes:
            differing = sorted(set(names) ^ set(classes))
            raise ValueError(
                f"{root}: the parts of {title} must have the same classes, but {part} differs in "
                f"{', '.join(differing[:5]) or 'their order'}; is a list truncated?"
            )
        classes = names
        pairs = _pairs(dataset)
        lists[part] = image_list(sorted(pairs) if in_order else pairs)
    return ImageLists(classes=classes or (), parts=lists)


def _pairs(dataset: Any) -> list[tuple[str, int]]:
    """Return paths and labels of a torchvision data set, whose attribute has one of four names."""
    for name in ("samples", "_samples", "imgs"):
        if hasattr(dataset, name):
            return [(str(path), int(label)) for path, label in getattr(dataset, name)]
    paths = dataset._image_files if hasattr(dataset, "_image_files") else dataset._images
    return [(str(path), int(label)) for path, label in zip(paths, dataset._labels, strict=True)]
