"""Weakly supervised localisation data from disk: CUB, ImageNet and OpenImages with boxes or masks.

Train has class labels only; val (a small set with boxes or masks, for model selection) and test are annotated. Choe et
al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020; CUB's cues: Kim et al., "Keep CALM
and Improve Visual Feature Attribution", ICCV 2021.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.classification import SPLITS, ClassificationData, ClassificationSplit, Split, check_splits
from tenfold.data.files.checks import check_disjoint, check_settings, require_root
from tenfold.data.files.readers.cub import read_cub_cues
from tenfold.data.files.readers.imagenet import imagenet_names
from tenfold.data.files.readers.masks import MaskImages
from tenfold.data.files.readers.official_lists import read_numbered
from tenfold.data.files.readers.superclasses import read_superclasses
from tenfold.data.files.readers.wsol_lists import (
    ImageIndex,
    MaskFiles,
    read_boxes,
    read_labels,
    read_mask_files,
    read_sizes,
)
from tenfold.data.images import FileImages, cache_images, file_table
from tenfold.data.localisation import CueTruth, LocalisationData, LocalisationSplit, scale_boxes
from tenfold.hashing import bytes_sha256
from tenfold.types import ImageSource, Preprocessing


@dataclass(frozen=True)
class _Layout:
    """Layout of a data set, as paths relative to the root."""

    lists: str
    """Folder of the lists in the metadata."""
    images: Mapping[Split, tuple[str, ...]]
    """Image folder of each part: the first of these that exists."""
    masks: bool = False
    """Whether objects are annotated by masks instead of boxes."""


_LAYOUTS = {
    "cub_localisation": _Layout(
        "CUB", {"train": ("CUB/images", "CUB"), "val": ("CUBV2", "CUB"), "test": ("CUB/images", "CUB")}
    ),
    "imagenet_localisation": _Layout(
        "ILSVRC", {"train": ("ILSVRC",), "val": ("ImageNetV2", "ILSVRC"), "test": ("ILSVRC",)}
    ),
    "openimages_localisation": _Layout("OpenImages", dict.fromkeys(SPLITS, ("OpenImages",)), masks=True),
}
NAMES = tuple(_LAYOUTS)
"""Data sets that have a reader here."""


@dataclass(frozen=True, kw_only=True)
class LocalisationFilesConfig:
    """Name and location of the data set."""

    name: str
    """One of ``NAMES``."""
    root: str
    """Folder that holds ``CUB/images`` and ``CUBV2``, or ``ILSVRC`` and ``ImageNetV2`` (or ``ILSVRC/val2``), or
    ``OpenImages`` (images and masks)."""
    metadata: str | None = None
    """Folder of the lists, ``<data set>/<part>/*.txt`` for CUB, ILSVRC or OpenImages, absolute or relative to ``root``;
    None: ``metadata`` in ``root``."""
    superclasses: str | None = None
    """Superclass file, absolute or relative to ``root``: JSON of a name to a list of classes, or text of lines
    'class,superclass'. None: all classes of CUB form one superclass, the others have none."""
    mirrorable: bool = True
    """Whether horizontal flips preserve the class."""
    cache: str | None = None
    """Cache folder of decoded validation and test images (N * image_size^2 * 3 bytes); None decodes on every read."""
    num_workers: int = 8
    """Decoding threads."""
    progress: bool = True

    def __post_init__(self) -> None:
        check_settings(self.name, NAMES, self.root, self.num_workers)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Lists of one part, in pixels of the stored images."""

    names: list[str]
    paths: list[str]
    labels: np.ndarray
    sizes: np.ndarray | None = None
    boxes: tuple[np.ndarray, ...] | None = None
    masks: tuple[MaskFiles, ...] | None = None
    folder: Path

    def mask_paths(self) -> list[str]:
        """Return the paths of all mask files."""
        names = [name for files in self.masks or () for name in (*files.objects, files.ignored) if name]
        return [str(self.folder / name) for name in names]


def load_localisation_files(
    config: LocalisationFilesConfig, preprocessing: Preprocessing, train_size: int | None = None
) -> LocalisationData:
    """Load all parts, check their lists and that every file exists; images are decoded lazily unless cached.

    Images are stretched to squares; boxes are scaled with them, truncated to whole pixels, and masks are resized by
    nearest neighbour. CUB's cues are read if ``CUB/segmentations`` exists, which is used for nothing else.

    Args:
        config: Settings of the data set.
        preprocessing: The network's; its size is that of val and test.
        train_size: Side of the training images before random crops; None: the network's size.

    Raises:
        ValueError: Anything missing or malformed, with its path and line; a network that crops its images, which boxes
            would not fit; ``train_size`` below 1.
        OSError: No room for the cache.
    """
    if preprocessing.resize != "stretch":
        raise ValueError(
            f"preprocessing must have resize='stretch' for {config.name}, whose boxes and masks are stretched with the "
            f"images, got {preprocessing.resize!r}"
        )
    size = preprocessing.image_size
    train_size = size if train_size is None else train_size
    root = require_root(config.root, config.name)
    classes, parts = _read(config, root, SPLITS, truth=True)
    test = parts["test"]
    cub = root / "CUB"
    cues: CueTruth | None = None
    if config.name == "cub_localisation" and (cub / "segmentations").is_dir():
        assert test.sizes is not None  # read with the boxes
        cues = read_cub_cues(cub, test.names, test.sizes, len(classes), size=size, num_workers=config.num_workers)
    superclasses: Mapping[int, tuple[int, ...]] | None = None
    if config.superclasses is not None:
        superclasses = read_superclasses(root / config.superclasses, classes)
    elif config.name == "cub_localisation":
        superclasses = dict.fromkeys(range(len(classes)), tuple(range(len(classes))))
    return LocalisationData(
        name=config.name,
        classes=classes,
        train=_split(config, preprocessing, parts["train"], train_size, keep=False),
        val=_split(config, preprocessing, parts["val"], size, keep=True),
        test=_split(config, preprocessing, test, size, keep=True),
        image_size=size,
        fingerprint=_fingerprint(config.name, classes, parts, superclasses, cues),
        mirrorable=config.mirrorable,
        superclasses=superclasses,
        cues=cues,
    )


def load_localisation_classes(
    config: LocalisationFilesConfig, preprocessing: Preprocessing, splits: Sequence[str] = ("train", "val", "test")
) -> ClassificationData:
    """Load the same images as single-label data, resized for the network; boxes and masks are not needed.

    Raises:
        ValueError: As in ``load_localisation_files``; no part, or an unknown one.
        OSError: No room for the cache.
    """
    wanted = tuple(part for part in SPLITS if part in (*check_splits(splits), "test"))
    classes, parts = _read(config, require_root(config.root, config.name), wanted, truth=False)
    loaded = {
        part: ClassificationSplit(
            images=_images(config, preprocessing, listed, preprocessing.image_size, keep=part != "train"),
            labels=listed.labels,
        )
        for part, listed in parts.items()
    }
    return ClassificationData(
        name=config.name,
        classes=classes,
        train=loaded.get("train"),
        val=loaded.get("val"),
        test=loaded["test"],
        image_size=preprocessing.image_size,
        fingerprint=_fingerprint(config.name, classes, parts, None, None),
        concept="bird" if config.name == "cub_localisation" else None,
        mirrorable=config.mirrorable,
    )


def _read(
    config: LocalisationFilesConfig, root: Path, wanted: Sequence[Split], *, truth: bool
) -> tuple[tuple[str, ...], dict[Split, _Part]]:
    """Return the class names and the lists of the parts."""
    layout = _LAYOUTS[config.name]
    lists = root / (config.metadata or "metadata") / layout.lists
    if not lists.is_dir():
        raise ValueError(f"{lists} is not a folder: expected the lists of {config.name}, {', '.join(SPLITS)}/*.txt")
    classes = _class_names(config.name, root)
    if classes is None:
        # Without a list of names: the training part has every class.
        training = lists / "train"
        labels = read_labels(training, ImageIndex(training), None)
        classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    parts = {
        part: _read_part(layout, root, lists / part, part, len(classes), truth=truth and part != "train")
        for part in wanted
    }
    check_disjoint(config.name, {part: listed.paths for part, listed in parts.items()})
    return classes, parts


def _class_names(name: str, root: Path) -> tuple[str, ...] | None:
    if name == "imagenet_localisation":
        return imagenet_names()
    path = root / "CUB/classes.txt"
    if name == "cub_localisation" and path.is_file():
        return tuple(read_numbered(path, "lines 'class_id name', ids 1, 2, ..."))
    return None


def _read_part(layout: _Layout, root: Path, lists: Path, part: Split, num_classes: int, *, truth: bool) -> _Part:
    images = ImageIndex(lists)
    places = [root / place for place in layout.images[part]]
    folder = next((place for place in places if place.is_dir()), places[0])
    labels = read_labels(lists, images, num_classes)
    sizes = read_sizes(lists, images) if truth and not layout.masks else None
    return _Part(
        names=images.names,
        paths=[f"{folder}/{name}" for name in images.names],
        labels=labels,
        sizes=sizes,
        boxes=None if sizes is None else read_boxes(lists, images, sizes),
        masks=read_mask_files(lists, images) if truth and layout.masks else None,
        folder=folder,
    )


def _split(
    config: LocalisationFilesConfig, preprocessing: Preprocessing, part: _Part, size: int, *, keep: bool
) -> LocalisationSplit:
    boxes, masks = None, None
    if part.boxes is not None and part.sizes is not None:
        boxes = tuple(scale_boxes(each, wh, size) for each, wh in zip(part.boxes, part.sizes, strict=True))
    if part.masks is not None:
        masks = MaskImages(
            [[str(part.folder / name) for name in files.objects] for files in part.masks],
            [str(part.folder / files.ignored) if files.ignored else None for files in part.masks],
            size,
            config.num_workers,
        )
    images = _images(config, preprocessing, part, size, keep=keep)
    return LocalisationSplit(images=images, labels=part.labels, boxes=boxes, masks=masks)


def _images(
    config: LocalisationFilesConfig, preprocessing: Preprocessing, part: _Part, size: int, *, keep: bool
) -> ImageSource:
    """Return the images of a part; ``keep`` caches decoded ones if there is a cache."""
    files = FileImages(
        part.paths,
        size,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        num_workers=config.num_workers,
    )
    return cache_images(files, config.cache, progress=config.progress) if keep and config.cache is not None else files


def _fingerprint(
    name: str,
    classes: tuple[str, ...],
    parts: Mapping[Split, _Part],
    superclasses: Mapping[int, tuple[int, ...]] | None,
    cues: CueTruth | None,
) -> str:
    """Return the SHA-256 of lists, labels, annotations and file sizes, independent of the location."""
    groups = None if superclasses is None else [superclasses[label] for label in range(len(classes))]

    def chunks() -> Iterator[bytes]:
        yield json.dumps([name, classes, groups]).encode()
        for part, listed in parts.items():
            yield f"\0{part}\0".encode() + "\0".join(listed.names).encode()
            yield file_table(listed.paths)[0].tobytes() + listed.labels.tobytes()
            yield from (boxes.tobytes() for boxes in listed.boxes or ())
            yield json.dumps(listed.masks).encode() + file_table(listed.mask_paths())[0].tobytes()
        if cues is not None:
            yield "\0".join(cues.attribute_names).encode() + cues.class_attribute_percent.tobytes()
            yield from (array.tobytes() for array in (*cues.part_ids, *cues.part_xy))

    return bytes_sha256(chunks())
