"""Label matrices: ``formatted_{train,val}_images.npy``, ``_labels.npy`` and, where drawn, ``_labels_obs.npy``.

``_images`` holds N relative paths, ``_labels`` an ``(N, K)`` matrix in {0, 1}, ``_labels_obs`` one in {-1, 0, +1}
= observed negative, unobserved, observed positive. The "val" files are the official validation or test images and are
used as the test set. Partially annotated data sets have 1, 0, -1 = positive, negative, UNOBSERVED in ``_labels``, which
differs from ``_labels_obs``; this module converts both to the platform's coding.
"""

from pathlib import Path, PurePosixPath

import numpy as np
from scipy import sparse

from tenfold.data.files.readers.official_lists import Listing, OfficialLists, check_distinct, read_lines, require_file

_CHUNK_BYTES = 1 << 26


def has_matrices(root: Path) -> bool:
    """Return True if ``root`` holds a training list in this layout."""
    return (root / "formatted_train_images.npy").exists()


def read_matrices(
    root: Path,
    image_folder: Path,
    classes: tuple[str, ...] | None,
    *,
    num_classes: int | None = None,
    may_be_partial: bool = False,
    read_observed: bool = True,
) -> OfficialLists:
    """Read both lists.

    Args:
        root: Folder of the ``formatted_*`` files and of an optional ``classes.txt`` (one name a line).
        image_folder: Folder that the listed paths are relative to.
        classes: Names of the columns if there is no ``classes.txt``; None numbers them.
        num_classes: Expected number of columns where there are no names.
        may_be_partial: Whether -1 (unobserved) is a valid entry of ``_labels``.
        read_observed: Whether to read ``_labels_obs`` where it exists.

    Raises:
        ValueError: A missing file, or a wrong shape or value, with the path.
    """
    path = root / "classes.txt"
    if path.exists():
        classes = tuple(line.strip() for line in read_lines(path, "class names, one a line"))
        check_distinct(classes, path, "class")
    expected = num_classes if classes is None else len(classes)
    train = _read_list(root, "train", image_folder, expected, may_be_partial, read_observed)
    width = (train.full if train.full is not None else train.observed).shape[1]  # type: ignore[union-attr]
    test = _read_list(root, "val", image_folder, width, may_be_partial, read_observed)
    return OfficialLists(classes=classes or tuple(f"class_{k}" for k in range(width)), train=train, test=test)


def _read_list(
    root: Path, part: str, image_folder: Path, width: int | None, may_be_partial: bool, read_observed: bool
) -> Listing:
    names_path, labels_path = root / f"formatted_{part}_images.npy", root / f"formatted_{part}_labels.npy"
    names = _read_names(names_path)
    labels = _open(labels_path, f"a label matrix ({len(names)}, {width or 'K'})")
    if labels.ndim != 2 or len(labels) != len(names) or labels.shape[1] != (width or labels.shape[1]):
        raise ValueError(f"{labels_path}: expected shape ({len(names)}, {width or 'K'}), got {labels.shape}")
    observed_path = root / f"formatted_{part}_labels_obs.npy"
    observed = None
    if read_observed and observed_path.exists():
        observed = _open(observed_path, f"observed labels {labels.shape}")
        if observed.shape != labels.shape:
            raise ValueError(f"{observed_path}: expected shape {labels.shape}, got {observed.shape}")
    if may_be_partial and _has_unobserved(labels, labels_path):
        sparse_labels = _read_partial(labels, labels_path, observed, observed_path)
        return Listing(folder=image_folder, names=names, full=None, observed=sparse_labels)
    full = _as_int8(labels, labels_path, (0, 1))
    if observed is None:
        return Listing(folder=image_folder, names=names, full=full)
    seen = _as_int8(observed, observed_path, (-1, 0, 1))
    if ((seen == 1) & (full == 0)).any() or ((seen == -1) & (full == 1)).any():
        raise ValueError(f"{observed_path} contradicts {labels_path.name}: an observed label is not the true one")
    return Listing(folder=image_folder, names=names, full=full, observed=seen)


def _open(path: Path, what: str) -> np.ndarray:
    try:
        return np.load(require_file(path, what), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        if path.is_file():
            raise ValueError(f"{path} cannot be read as an array without pickles: expected {what} ({error})") from error
        raise


def _read_names(path: Path) -> list[str]:
    array = _open(path, "the images' relative paths, unicode (N,)")
    if array.ndim != 1 or array.dtype.kind != "U" or not len(array):
        raise ValueError(f"{path}: expected unicode paths (N,), got {array.dtype} {array.shape}")
    names: list[str] = array.tolist()
    outside = next((name for name in names if name.startswith("/") or ".." in PurePosixPath(name).parts), None)
    if outside is not None:
        raise ValueError(f"{path}: paths must be relative and inside the image folder, got {outside!r}")
    return names


def _chunks(length: int, row_bytes: int) -> list[slice]:
    step = max(1, _CHUNK_BYTES // max(row_bytes, 1))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _as_int8(array: np.ndarray, path: Path, allowed: tuple[int, ...]) -> np.ndarray:
    """Convert ``array`` to int8, in chunks: the published files are float64 and can be larger than memory."""
    out = np.empty(array.shape, dtype=np.int8)
    for rows in _chunks(len(array), array.dtype.itemsize * array.shape[1]):
        out[rows] = _checked(array, rows, path, allowed)
    return out


def _checked(array: np.ndarray, rows: slice, path: Path, allowed: tuple[int, ...]) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numbers, got {array.dtype}")
    values = np.asarray(array[rows])
    legal = np.zeros(values.shape, dtype=bool)
    for value in allowed:
        legal |= values == value
    if not legal.all():  # NaN equals nothing, so it is refused too
        row, column = np.argwhere(~legal)[0]
        where = f"row {rows.start + row}, column {column}"
        raise ValueError(f"{path}: labels must be in {set(allowed)}, got {values[row, column]} at {where}")
    return values.astype(np.int8)


def _has_unobserved(labels: np.ndarray, path: Path) -> bool:
    return any(
        (_checked(labels, rows, path, (-1, 0, 1)) < 0).any()
        for rows in _chunks(len(labels), labels.dtype.itemsize * labels.shape[1])
    )


def _read_partial(labels: np.ndarray, path: Path, observed: np.ndarray | None, observed_path: Path) -> sparse.csr_array:
    parts = []
    for rows in _chunks(len(labels), labels.dtype.itemsize * labels.shape[1]):
        coded = _checked(labels, rows, path, (-1, 0, 1))
        canonical = np.where(coded < 0, 0, np.where(coded == 1, 1, -1)).astype(np.int8)
        if observed is not None and not np.array_equal(observed[rows], canonical):
            raise ValueError(
                f"{observed_path} contradicts {path.name}, which determines the observed labels; delete it"
            )
        parts.append(sparse.csr_array(canonical))
    return sparse.vstack(parts, format="csr")
