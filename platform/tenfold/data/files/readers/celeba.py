"""CelebA in torchvision's layout: ``celeba/list_attr_celeba.txt`` and ``celeba/img_align_celeba/``.

torchvision's own class is not used: it insists on the checksums of five lists, four of which are not needed here. The
attributes are those that it returns for the split ``all``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.files.readers.image_lists import require_folder
from tenfold.data.files.readers.official_lists import check_distinct, read_lines

_LIST = "the number of images, a line of attribute names, and lines 'image value ...' with values -1 or 1"


@dataclass(frozen=True, kw_only=True)
class CelebAAttributes:
    """All N images with their A attributes, in the order of the list."""

    folder: Path
    """Folder that ``names`` are relative to."""
    names: list[str]
    attributes: tuple[str, ...]
    present: np.ndarray
    """int8 ``(N, A)`` in {0, 1}."""


def read_celeba(root: Path) -> CelebAAttributes:
    """Read the attributes of all images.

    Raises:
        ValueError: The list or the folder of images is missing, or the list is malformed; with its path and line.
    """
    path = root / "celeba/list_attr_celeba.txt"
    lines = read_lines(path, _LIST)
    folder = require_folder(root / "celeba/img_align_celeba", "CelebA's aligned images, unpacked")
    count = lines[0].strip() if lines else ""
    if not count.isdecimal() or len(lines) < 3:
        raise ValueError(f"{path}, line 1: expected {_LIST}, got {count[:60]!r}")
    attributes = tuple(lines[1].split())
    check_distinct(attributes, path, "attribute")
    names: list[str] = []
    present = np.empty((len(lines) - 2, len(attributes)), dtype=np.int8)
    for number, line in enumerate(lines[2:], start=3):
        name, *values = line.split()
        if len(values) != len(attributes) or not {*values} <= {"-1", "1"}:
            raise ValueError(
                f"{path}, line {number}: expected an image and {len(attributes)} values -1 or 1, got {line[:60]!r}"
            )
        names.append(name)
        present[number - 3] = [value == "1" for value in values]
    if len(names) != int(count):
        raise ValueError(f"{path}: expected {count} images as line 1 says, got {len(names)}; is it truncated?")
    check_distinct(names, path, "image")
    return CelebAAttributes(folder=folder, names=names, attributes=attributes, present=present)
