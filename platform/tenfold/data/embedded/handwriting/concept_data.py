"""Pairs, scenes and sums as data of a concept bottleneck: binary concepts in groups, and a class."""

from dataclasses import dataclass

import numpy as np

from tenfold.data.concepts import ConceptData, ConceptSplit
from tenfold.data.embedded.handwriting.build import build
from tenfold.data.embedded.handwriting.concepts import (
    PAIR_CONCEPT_GROUPS,
    PAIR_CONCEPT_MATRIX,
    PAIR_CONCEPTS,
    SCENE_CONCEPT_GROUPS,
    SCENE_CONCEPTS,
    sum_concept_groups,
    sum_concepts,
)
from tenfold.data.embedded.handwriting.config import HandwritingConfig, Split
from tenfold.data.embedded.handwriting.vocabulary import TEXTURES
from tenfold.data.images import ArrayImages, resize_image
from tenfold.hashing import text_sha256
from tenfold.types import Preprocessing


def load_concept_task(
    config: HandwritingConfig, preprocessing: Preprocessing, train_size: int | None = None
) -> ConceptData:
    """Load the concept task ``config.concept_task``, building its pictures if the cache lacks them.

    Images are stretched to the network's size once, here, and kept in memory; ``read_raw`` returns the stored ones
    (32x64 pairs, 64x64 scenes, 96x128 sums by default).

    Args:
        config: Settings of the data.
        preprocessing: The network's; its size is that of val and test.
        train_size: Side of the training images before random crops, at least 1; None: the network's size.

    Raises:
        ValueError: ``train_size`` below 1; a network that would crop pictures which are not square; costs of a group
            that the task does not have.
        OSError: The cache folder cannot be written.
    """
    size = preprocessing.image_size
    if train_size is not None and train_size < 1:
        raise ValueError(f"train_size must be at least 1, got {train_size}")
    task, folder = _task(config), build(config.concept_task, config)
    height, width = folder.split("test")["images"].shape[1:3]
    if preprocessing.resize != "stretch" and height != width:
        raise ValueError(
            f"resize must be stretch for {config.concept_task}, whose pictures of {height}x{width} pixels lose digits "
            f"when they are cropped, got {preprocessing.resize!r}; choose another network, or concept_task scenes"
        )

    def split(part: Split, side: int) -> ConceptSplit:
        arrays = folder.split(part)
        return ConceptSplit(
            images=_stretched(arrays["images"], side, preprocessing),
            concepts=np.array(arrays["concepts"]),
            labels=_scene_labels(arrays) if config.concept_task == "scenes" else np.array(arrays["labels"]),
        )

    return ConceptData(
        name=config.name,
        concepts=task.concepts,
        classes=task.classes,
        train=split("train", size if train_size is None else train_size),
        val=split("val", size),
        test=split("test", size),
        image_size=size,
        fingerprint=text_sha256(f"{config.concept_task}/{folder.fingerprint}"),
        groups=task.groups,
        exclusive=task.exclusive,
        costs=config.costs or {},
        class_concepts=task.class_concepts,
    )


@dataclass(frozen=True)
class _Task:
    concepts: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    exclusive: tuple[str, ...]
    classes: tuple[str, ...]
    class_concepts: np.ndarray | None = None


def _task(config: HandwritingConfig) -> _Task:
    if config.concept_task == "pairs":
        numbers = tuple(f"{label:02d}" for label in range(100))
        return _Task(PAIR_CONCEPTS, PAIR_CONCEPT_GROUPS, (), numbers, PAIR_CONCEPT_MATRIX)
    if config.concept_task == "scenes":
        counts = ["1 object", *(f"{count} objects" for count in range(2, config.max_digits + 1))]
        classes = tuple(f"{count} on {texture}" for count in counts for texture in TEXTURES)
        return _Task(SCENE_CONCEPTS, SCENE_CONCEPT_GROUPS, ("background", "count"), classes)
    groups = sum_concept_groups(config.operands)
    largest = sum(count - 1 for count in config.operands)
    return _Task(sum_concepts(config.operands), groups, tuple(groups), tuple(map(str, range(largest + 1))))


def _scene_labels(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the class of each scene, int64 ``(N,)``: number of objects, then background."""
    return (arrays["counts"].astype(np.int64) - 1) * len(TEXTURES) + arrays["textures"]


def _stretched(pictures: np.ndarray, size: int, preprocessing: Preprocessing) -> ArrayImages:
    """Return pictures ``(N, H, W, 3)`` that ``read`` gives at one size and ``read_raw`` at their own."""
    if pictures.shape[1:3] == (size, size):
        return ArrayImages(pictures)
    resized = np.empty((len(pictures), size, size, 3), dtype=np.uint8)
    for row, picture in zip(resized, pictures, strict=True):
        row[:] = resize_image(picture, size, interpolation=preprocessing.interpolation)
    return ArrayImages(resized, pictures)
