"""Images and labels of the official parts of a data set: the type that every single-label reader returns."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tenfold.data.classification import Split
from tenfold.data.files.readers.official_lists import read_lines

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes of image files, in lower case."""


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """N images with their labels."""

    images: list[str] | np.ndarray
    """Paths of files, or decoded images uint8 ``(N, S, S, 3)``."""
    labels: np.ndarray
    """int64 ``(N,)``."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class ImageLists:
    """Classes and parts of a data set."""

    classes: tuple[str, ...]
    """Names as stored, in label order."""
    parts: Mapping[Split, ImageList] = field(default_factory=dict)
    prompt_names: tuple[str, ...] | None = None
    """Names for prompts, where ``classes`` are not natural words."""


def image_list(pairs: "list[tuple[str, int]]") -> ImageList:
    """Build an image list from pairs of path and label."""
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return ImageList(images=[path for path, _ in pairs], labels=labels)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts ``9.jpg`` before ``10.jpg``: runs of digits compare as numbers."""
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces)


def require_folder(path: Path, what: str) -> Path:
    """Return ``path``, or raise a ValueError that says ``what`` was expected if it is not a folder."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: expected {what}")
    return path


def subfolders(path: Path) -> list[str]:
    """Return the sorted names of the folders in ``path``, without those that begin with a dot."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def image_names(folder: Path) -> list[str]:
    """Return the names of the image files in ``folder``, in natural order, without those that begin with a dot."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]
    return sorted((name for name in names if not name.startswith(".")), key=natural_key)


def folder_images(folder: Path, class_folders: "list[str] | tuple[str, ...]") -> ImageList:
    """List all images in ``folder/<class>/``, class by class; the label is the index in ``class_folders``.

    Raises:
        ValueError: A class has no folder, or no image in it.
    """
    pairs: list[tuple[str, int]] = []
    for label, name in enumerate(class_folders):
        place = require_folder(folder / name, f"the images of class {name!r}")
        names = image_names(place)
        if not names:
            raise ValueError(f"{place} holds no image of class {name!r}; expected files {', '.join(EXTENSIONS)}")
        pairs.extend((f"{place}/{file}", label) for file in names)
    return image_list(pairs)


def check_lines(path: Path, pattern: str, what: str) -> None:
    """Raise a ValueError with the line unless every line of a text file matches ``pattern``, described by ``what``."""
    lines = read_lines(path, what)
    if not lines:
        raise ValueError(f"{path} is empty: expected {what}")
    matches = re.compile(pattern).fullmatch
    for number, line in enumerate(lines, start=1):
        if not matches(line.strip()):
            raise ValueError(f"{path}, line {number}: expected {what}, got {line.strip()!r}")
