"""Multi-label data sets from disk: lists, observed labels, split, images and fingerprint in one call.

The order is that of the published experiments: labels are drawn on the whole official training list and on the test
list, each with the same seed; then a validation part is split off the training list; then both are subsampled.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from tenfold.data.array_cache import cached_array
from tenfold.data.files.checks import require_root
from tenfold.data.files.readers import coco, cub, voc
from tenfold.data.files.readers.matrices import has_matrices, read_matrices
from tenfold.data.files.readers.official_lists import Listing, OfficialLists
from tenfold.data.files.readers.openimages import read_openimages, read_openimages_labels
from tenfold.data.images import FileImages, SubsetImages, cache_images, file_table
from tenfold.data.multilabel import MultiLabelData, MultiLabelSplit
from tenfold.data.partial_labels import observe_labels, subsample, train_val_split
from tenfold.hashing import bytes_sha256
from tenfold.types import ImageSource

_LOG = logging.getLogger(__name__)

# Folders that the paths of formatted_*_images.npy are relative to, and the number of columns.
_MATRIX_FOLDERS = {"coco": ".", "nuswide": "Flickr", "cub": "CUB_200_2011/images", "openimages": ".", "matrices": "."}
_MATRIX_FOLDERS["voc"] = "VOCdevkit/VOC2012/JPEGImages"
_NUM_CLASSES = {"coco": 80, "voc": 20, "nuswide": 81, "cub": 312, "openimages": 5000}

# Partial annotations are dense int8 in memory up to this many bytes, and memory-mapped above.
_MAX_DENSE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class MultiLabelFilesConfig:
    """Name, location, split and label draw of the data set."""

    name: str
    """coco, voc, nuswide, cub, openimages, or matrices (any data set as ``formatted_*.npy`` label matrices)."""
    root: str
    """Folder of the data set; ``formatted_*.npy`` files in it take precedence over the original annotations."""
    image_size: int = 448
    val_fraction: float = 0.2
    """Share of the official training list that becomes validation; OpenImages has its own validation list."""
    split_seed: int = 1200
    num_pos: int = 1
    """Positive labels observed in each image; -1 for all."""
    num_neg: int = 0
    """Negative labels observed in each image; -1 for all."""
    label_seed: int = 1200
    observed_files: bool = True
    """Whether to use ``formatted_*_labels_obs.npy`` where it exists instead of drawing."""
    subset_fraction: float = 1.0
    """Share of the training and validation images to keep; the test set stays whole."""
    image_folder: str | None = None
    """Folder that the paths in ``formatted_*_images.npy`` are relative to; None: the default place under ``root``."""
    classes_file: str | None = None
    """OpenImages: file of label ids, one a line; None: ``classes-trainable.txt`` under ``root``."""
    missing_images: str = "error"
    """Action for listed images that are not on disk: error, or drop (some of OpenImages are no longer online)."""
    cache: str | None = None
    """Cache folder of decoded images, and of labels too large for memory."""
    cache_images: bool = True
    """Whether images go into ``cache`` (N * image_size^2 * 3 bytes); False decodes them on every read."""
    num_workers: int = 8
    """Decoding threads."""
    progress: bool = True

    def __post_init__(self) -> None:
        if self.name not in _MATRIX_FOLDERS:
            raise ValueError(f"name must be one of {sorted(_MATRIX_FOLDERS)}, got {self.name!r}")
        if not self.root:
            raise ValueError("root must be the data set's folder, got an empty string")
        for name, lowest in (("image_size", 1), ("num_workers", 1), ("num_pos", -1), ("num_neg", -1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in ("split_seed", "label_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} must be in 0..2^32 - 1, got {getattr(self, name)}")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie strictly between 0 and 1, got {self.val_fraction}")
        if not 0 < self.subset_fraction <= 1:
            raise ValueError(f"subset_fraction must lie in (0, 1], got {self.subset_fraction}")
        if self.missing_images not in ("error", "drop"):
            raise ValueError(f"missing_images must be error or drop, got {self.missing_images!r}")


def load_multilabel_files(config: MultiLabelFilesConfig) -> MultiLabelData:
    """Load lists and labels, check that every image exists, draw observed labels and split.

    Images are decoded lazily unless cached. For OpenImages ``full`` holds -1 where an image has no annotation. Its
    dense labels above 1 GiB are memory maps in ``config.cache``: 2 bytes for each image and class, that is 34 GB for
    the 3.4 million training images and 5,000 classes, written once.

    Raises:
        ValueError: Anything missing or malformed, with its path and what was expected.
        OSError: No room for the cache.
    """
    root = require_root(config.root, config.name)
    lists = _read_lists(config, root)
    # The draw comes first: it covers the whole official list, whatever is kept of it.
    train, train_sizes = _existing(config, _with_observed(config, lists.train))
    test, test_sizes = _existing(config, _with_observed(config, lists.test))
    if lists.val is None:
        val, val_sizes = train, train_sizes
        train_rows, val_rows = train_val_split(len(train.names), config.val_fraction, config.split_seed)
    else:
        val, val_sizes = _existing(config, lists.val)
        train_rows, val_rows = np.arange(len(train.names)), np.arange(len(val.names))
    train_rows, val_rows = subsample(train_rows, val_rows, config.subset_fraction, config.subset_fraction)
    parts = {
        "train": _Part(train, train_rows, train_sizes),
        "val": _Part(val, val_rows, val_sizes),
        "test": _Part(test, np.arange(len(test.names)), test_sizes),
    }
    for name, part in parts.items():
        if not part.rows.size:
            raise ValueError(f"{root}: the {name} part is empty; increase val_fraction or subset_fraction")

    fingerprint = _fingerprint(config, lists.classes, parts)
    sources = _image_sources(config, parts)
    splits = {name: _split(config, part, sources[name]) for name, part in parts.items()}
    return MultiLabelData(
        name=config.name,
        classes=lists.classes,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        image_size=config.image_size,
        mirrorable=True,
        fingerprint=fingerprint,
    )


class _Part(NamedTuple):
    listing: Listing
    rows: np.ndarray
    """Rows of ``listing`` that belong to the part."""
    sizes: np.ndarray
    """Size in bytes of every image file of ``listing``."""


def _read_lists(config: MultiLabelFilesConfig, root: Path) -> OfficialLists:
    if not (has_matrices(root) or config.name in ("nuswide", "matrices")):
        readers: dict[str, Callable[[], OfficialLists]] = {
            "coco": lambda: coco.read_coco(root),
            "voc": lambda: voc.read_voc(root),
            "cub": lambda: cub.read_cub(root, _optional_path(config.cache)),
            "openimages": lambda: read_openimages(root, _optional_path(config.classes_file)),
        }
        return readers[config.name]()
    return read_matrices(
        root,
        Path(config.image_folder) if config.image_folder else root / _MATRIX_FOLDERS[config.name],
        _matrix_classes(config, root),
        num_classes=_NUM_CLASSES.get(config.name),
        may_be_partial=config.name in ("openimages", "matrices"),
        read_observed=config.observed_files,
    )


def _optional_path(path: str | None) -> Path | None:
    return Path(path) if path else None


def _matrix_classes(config: MultiLabelFilesConfig, root: Path) -> tuple[str, ...] | None:
    if (root / "classes.txt").exists():
        return None  # the reader reads the names from there
    if config.name == "cub":
        return cub.read_cub_classes(root)
    if config.name == "openimages":
        return read_openimages_labels(root, _optional_path(config.classes_file))[1]
    return {"coco": coco.CLASSES, "voc": voc.CLASSES}.get(config.name)


def _with_observed(config: MultiLabelFilesConfig, listing: Listing) -> Listing:
    if listing.full is None:
        return listing
    if listing.observed is None:
        try:
            drawn = observe_labels(listing.full, config.num_pos, config.num_neg, config.label_seed)
        except ValueError as error:
            raise ValueError(f"{config.root}: cannot draw observed labels: {error}") from error
        return replace(listing, observed=drawn)
    asked = (config.num_pos, config.num_neg, config.label_seed)
    if asked != (1, 0, 1200):
        raise ValueError(
            f"num_pos, num_neg, label_seed must be (1, 0, 1200) where {config.root} has formatted_*_labels_obs.npy, "
            f"got {asked}; set observed_files to false to draw"
        )
    return listing


def _existing(config: MultiLabelFilesConfig, listing: Listing) -> tuple[Listing, np.ndarray]:
    """Return the listing without missing images, and the file sizes, int64 ``(N,)``."""
    sizes, _ = file_table(listing.paths(), allow_missing=config.missing_images == "drop")
    rows = np.flatnonzero(sizes >= 0)
    if len(rows) == len(sizes):
        return listing, sizes
    _LOG.warning(
        "%d of %d listed images under %s are missing and skipped", len(sizes) - len(rows), len(sizes), listing.folder
    )
    kept = replace(
        listing,
        names=[listing.names[row] for row in rows],
        full=None if listing.full is None else listing.full[rows],
        observed=None if listing.observed is None else listing.observed[rows],
    )
    return kept, sizes[rows]


def _image_sources(config: MultiLabelFilesConfig, parts: dict[str, _Part]) -> dict[str, ImageSource]:
    """Return subsets of one source for each listing, so that another split needs no new cache."""
    sources: dict[str, ImageSource] = {}
    for name, part in parts.items():
        if name in sources:
            continue
        sharing = {other: rows for other, (listing, rows, _) in parts.items() if listing is part.listing}
        used = np.unique(np.concatenate(list(sharing.values())))
        paths = part.listing.paths()
        files = FileImages([paths[row] for row in used], config.image_size, num_workers=config.num_workers)
        base: ImageSource = files
        if config.cache is not None and config.cache_images:
            base = cache_images(files, config.cache, progress=config.progress)
        for other, rows in sharing.items():
            sources[other] = SubsetImages(base, np.searchsorted(used, rows))
    return sources


def _split(config: MultiLabelFilesConfig, part: _Part, images: ImageSource) -> MultiLabelSplit:
    full, observed = _labels(part)
    if full is None:
        full, observed = _dense(config, observed)
    return MultiLabelSplit(images=images, full=full, observed=observed)


def _labels(part: _Part) -> tuple[np.ndarray | None, np.ndarray | csr_array]:
    """Return full (None if partially annotated) and observed labels of the part's rows."""
    full, observed = part.listing.full, part.listing.observed
    assert observed is not None  # read or drawn by _with_observed
    return None if full is None else full[part.rows], observed[part.rows]


def _dense(config: MultiLabelFilesConfig, labels: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Return ``full`` in {-1 = unobserved, 0, 1} and ``observed`` in {-1, 0, +1}, both int8 ``(N, K)``."""
    if 2 * labels.shape[0] * labels.shape[1] <= _MAX_DENSE_BYTES:
        observed = labels.toarray()
        return _full_coding(observed), observed
    if config.cache is None:
        size = 2 * labels.shape[0] * labels.shape[1] / 1e9
        raise ValueError(
            f"cache must be a folder with room for the dense labels {labels.shape}, {size:.1f} GB, got none"
        )
    arrays = (np.ascontiguousarray(array).tobytes() for array in (labels.indptr, labels.indices, labels.data))
    stem = Path(config.cache) / f"labels-{bytes_sha256([repr(labels.shape).encode(), *arrays])[:24]}"

    def write(coding: Callable[[np.ndarray], np.ndarray], name: str) -> np.ndarray:
        def fill(out: np.ndarray, start: int, stop: int) -> None:
            out[:] = coding(labels[start:stop].toarray())

        target = stem.with_name(f"{stem.name}-{name}.npy")
        return cached_array(
            target, labels.shape, np.int8, fill, chunk=8192, description=f"{name} labels", progress=config.progress
        )

    return write(_full_coding, "full"), write(lambda observed: observed, "observed")


def _full_coding(observed: np.ndarray) -> np.ndarray:
    return np.where(observed == 0, np.int8(-1), (observed > 0).astype(np.int8))


def _fingerprint(config: MultiLabelFilesConfig, classes: tuple[str, ...], parts: dict[str, _Part]) -> str:
    """Return the SHA-256 of lists, labels, image file sizes and settings, independent of the location."""
    where = ("root", "image_folder", "classes_file", "cache", "cache_images", "num_workers", "progress")
    settings = {key: value for key, value in asdict(config).items() if key not in where}

    def chunks() -> Iterator[bytes]:
        yield json.dumps([settings, classes], sort_keys=True).encode()
        for name, part in parts.items():
            yield f"\0{name}\0".encode()
            yield "\0".join(part.listing.names[row] for row in part.rows).encode()
            full, observed = _labels(part)
            sparse = csr_array(observed)
            for array in (
                part.sizes[part.rows],
                sparse.indptr,
                sparse.indices,
                sparse.data,
                *(() if full is None else (full,)),
            ):
                yield np.asarray(array, dtype=np.int64).tobytes()  # scipy's index type depends on the size

    return bytes_sha256(chunks())
