"""Official lists of images and labels before any split or draw: the type that every multi-label reader returns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One official list of N images over K classes.

    Either ``full`` is known, and ``observed`` is drawn from it or read from a file; or the data set is partially
    annotated: ``full`` is None and ``observed`` is sparse.
    """

    folder: Path
    """Folder that ``names`` are relative to."""
    names: list[str]
    """Paths of the images inside ``folder``."""
    full: np.ndarray | None
    """int8 ``(N, K)`` in {0, 1}; None for partial annotations."""
    observed: np.ndarray | csr_array | None = None
    """int8 ``(N, K)`` in {-1, 0, +1} (observed negative, unobserved, observed positive); None: to be drawn."""

    def paths(self) -> list[str]:
        """Return the full paths of the images."""
        prefix = f"{self.folder}/"
        return [prefix + name for name in self.names]


@dataclass(frozen=True, kw_only=True)
class OfficialLists:
    """The official lists of a data set."""

    classes: tuple[str, ...]
    train: Listing
    test: Listing
    val: Listing | None = None
    """None where a validation part is split off ``train``."""


def require_file(path: Path, what: str) -> Path:
    """Return ``path``, or raise a ValueError that says ``what`` was expected if it is not a file."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected {what}")
    return path


def read_lines(path: Path, what: str) -> list[str]:
    """Read the lines of a text file without blank ones; raises ValueError if it is missing or not text."""
    try:
        text = require_file(path, what).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: expected {what}") from error
    return [line for line in text.splitlines() if line.strip()]


def check_distinct(values: list[str] | tuple[str, ...], path: Path, what: str) -> None:
    """Raise a ValueError if a value is repeated in ``values``, which were read from ``path``."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{path} names the {what} {value!r} twice")
        seen.add(value)


def read_numbered(path: Path, what: str, *, distinct: bool = True) -> list[str]:
    """Read the values of lines 'number value', numbers 1, 2, ...; raises ValueError, with the line, otherwise."""
    pairs = [line.split(maxsplit=1) for line in read_lines(path, what)]
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2 or pair[0] != str(number):
            raise ValueError(f"{path}, line {number}: expected {what}, got {' '.join(pair)!r}")
    values = [pair[1].strip() for pair in pairs]
    if not values:
        raise ValueError(f"{path} is empty: expected {what}")
    if distinct:
        check_distinct(values, path, "entry")
    return values
