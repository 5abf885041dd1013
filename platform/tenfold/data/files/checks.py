"""Checks shared by the data sets read from files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def check_settings(name: str, names: Sequence[str], root: str, num_workers: int) -> None:
    """Refuse settings that are invalid for every data set read from files.

    Raises:
        ValueError: ``name`` is not among ``names``, ``root`` is empty, or ``num_workers`` is below 1.
    """
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
    if not root:
        raise ValueError("root must be the data set's folder, got an empty string")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")


def require_root(root: str, name: str) -> Path:
    """Return the folder ``root`` of the data set ``name``.

    Raises:
        ValueError: There is no such folder.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root must be the folder of the data set {name}, got {folder}, which is not a folder")
    return folder


def check_disjoint(name: str, paths: Mapping[str, Iterable[str]]) -> None:
    """Refuse a data set whose parts share an image.

    Args:
        name: Name of the data set, for the message.
        paths: Image paths of each part.

    Raises:
        ValueError: A path is in two parts.
    """
    seen: dict[str, str] = {}
    for part, images in paths.items():
        for path in images:
            other = seen.setdefault(path, part)
            if other != part:
                raise ValueError(f"{name}: {path} is in the {other} part and in the {part} part")
