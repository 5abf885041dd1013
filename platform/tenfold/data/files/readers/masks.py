"""Mask files, read and resized lazily."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tenfold.data.localisation import IGNORED, nearest_pixels

# Exceptions that Pillow raises on damaged files.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, Image.DecompressionBombError)


class MaskImages:
    """Masks from one file for each object of an image and one for its ignored region.

    Each file is resized by nearest neighbour; pixels that are not black in an object's file are object, those that are
    not black only in the other file are ignored.

    Args:
        objects: Object files of every image, at least one.
        ignored: File of the ignored region of every image, or None.
        size: Side S of the masks that ``read`` returns.
        num_workers: Decoding threads.

    Raises:
        ValueError: On reading, a missing or damaged file, by its name.
    """

    def __init__(
        self, objects: Sequence[Sequence[str]], ignored: Sequence[str | None], size: int, num_workers: int = 8
    ) -> None:
        self.objects = tuple(tuple(each) for each in objects)
        self.ignored = tuple(ignored)
        self.size = size
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.objects)

    def read(self, indices: "np.ndarray | Sequence[int]") -> np.ndarray:
        """Return uint8 ``(B, S, S)``: 1 object, 0 background, 255 ignored."""
        return _read_all(self._one, indices, len(self), self.size, self.num_workers)

    def _one(self, row: int) -> np.ndarray:
        shown = np.zeros((self.size, self.size), dtype=bool)
        for path in self.objects[row]:
            shown |= self._bright(path)
        mask = shown.astype(np.uint8)
        ignored = self.ignored[row]
        if ignored is not None:
            mask[self._bright(ignored) & ~shown] = IGNORED
        return mask

    def _bright(self, path: str) -> np.ndarray:
        grey = np.asarray(read_grey(path))
        rows, columns = (nearest_pixels(length, self.size) for length in grey.shape)
        return grey[rows[:, None], columns] > 0


class Segmentations:
    """Masks from one grey file for every image, black outside the object, such as CUB's.

    A pixel belongs to the object if it is not black after bicubic resizing, which dilates the object slightly.

    Args:
        paths: File of every image.
        size: Side S of the masks that ``read`` returns.
        num_workers: Decoding threads.

    Raises:
        ValueError: On reading, a missing or damaged file, by its name.
    """

    def __init__(self, paths: Sequence[str], size: int, num_workers: int = 8) -> None:
        self.paths = tuple(paths)
        self.size = size
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: "np.ndarray | Sequence[int]") -> np.ndarray:
        """Return uint8 ``(B, S, S)`` in {0, 1}."""
        return _read_all(self._one, indices, len(self), self.size, self.num_workers)

    def _one(self, row: int) -> np.ndarray:
        resized = read_grey(self.paths[row]).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return (np.asarray(resized) > 0).astype(np.uint8)


def read_grey(path: str) -> Image.Image:
    """Read a PNG as an 8-bit grey image, without transparency.

    Raises:
        ValueError: A missing or damaged file, by its name.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read mask {path}: {error.strerror or error}") from error
    try:
        return Image.open(BytesIO(data), formats=["PNG"]).convert("L")
    except _BROKEN as error:
        raise ValueError(f"cannot decode mask {path}: expected a PNG ({type(error).__name__})") from error


def _read_all(
    read_one: Callable[[int], np.ndarray],
    indices: "np.ndarray | Sequence[int]",
    length: int,
    size: int,
    num_workers: int,
) -> np.ndarray:
    rows = np.asarray(indices, dtype=np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= length):
        raise IndexError(f"indices must be in 0..{length - 1}, got {rows.min()}..{rows.max()}")
    out = np.empty((len(rows), size, size), dtype=np.uint8)
    # A new pool each time: threads do not survive a fork, and starting them is cheap next to reading a batch of files.
    with ThreadPoolExecutor(num_workers, thread_name_prefix="masks") as pool:
        for place, mask in enumerate(pool.map(read_one, rows.tolist())):
            out[place] = mask
    return out
