"""Single-label image data with boxes or masks of the objects: the type that every loader returns.

Coordinates are pixels of the square image of side S that ``read`` returns; a box is x0, y0, x1, y1 with the ends
included, as in ``metrics.localisation``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from tenfold.data.classification import Split, check_part
from tenfold.types import ImageSource

IGNORED = 255
"""Value of mask pixels that count neither as object nor as background."""
NUM_CUB_POINTS = 15
"""Number of keypoints that CUB annotates, numbered from 1."""


class MaskSource(Protocol):
    """Masks by row; a large data set reads them lazily from files."""

    def __len__(self) -> int: ...

    def read(self, indices: "np.ndarray | Sequence[int]") -> np.ndarray:
        """Return uint8 ``(B, S, S)``: 1 object, 0 background, 255 ignored."""
        ...


class ArrayMasks:
    """Masks in an array or a memory map, uint8 ``(N, S, S)``.

    Raises:
        ValueError: Another dtype or shape.
    """

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[1] != array.shape[2]:
            raise ValueError(f"masks must be uint8 (N, S, S), got {array.dtype} {array.shape}")
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def read(self, indices: "np.ndarray | Sequence[int]") -> np.ndarray:
        """Return uint8 ``(B, S, S)``, a copy."""
        return np.asarray(self.array)[np.asarray(indices, dtype=np.int64)]


@dataclass(frozen=True, kw_only=True)
class LocalisationSplit:
    """One part (train, val or test) of a data set.

    Raises:
        ValueError: Labels, boxes or masks of another length than the images, or of another dtype or shape; a box that
            ends before it begins or begins left of or above the image; a mask with a value other than 0, 1 and 255
            (a lazy source checks its masks when it reads them).
    """

    images: ImageSource
    """N images."""
    labels: np.ndarray
    """Class of each image, int64 ``(N,)``."""
    boxes: tuple[np.ndarray, ...] | None = None
    """Boxes of the objects of every image, int64 ``(n, 4)`` each with n at least 1; None where there are none."""
    masks: np.ndarray | MaskSource | None = None
    """Masks of the objects: uint8 ``(N, S, S)`` in {0, 1, 255 = ignored}, or a source that reads such rows lazily
    (``read_masks`` handles both); None where there are none."""

    def __post_init__(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), one for each image, "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        for name, truth in (("boxes", self.boxes), ("masks", self.masks)):
            if truth is not None and len(truth) != len(self.images):
                raise ValueError(f"{name} must be as many as the {len(self.images)} images, got {len(truth)}")
        for row, boxes in enumerate(self.boxes or ()):
            _check_boxes(row, boxes)
        if isinstance(self.masks, np.ndarray):
            check_mask_values(ArrayMasks(self.masks).array, "masks")

    def __len__(self) -> int:
        return len(self.labels)

    def read_masks(self, indices: "np.ndarray | Sequence[int]") -> np.ndarray:
        """Return uint8 ``(B, S, S)`` in {0, 1, 255} for the given rows, in their order.

        Raises:
            ValueError: There are no masks, or a mask's file cannot be read.
        """
        if self.masks is None:
            raise ValueError("this part has no masks, only boxes")
        source = ArrayMasks(self.masks) if isinstance(self.masks, np.ndarray) else self.masks
        return source.read(indices)


@dataclass(frozen=True, kw_only=True)
class CueTruth:
    """Attributes that distinguish two bird species, and their locations in every test image, from CUB-200-2011.

    Shapes: C classes, A attributes, N images of the test part, V visible keypoints of an image.

    Raises:
        ValueError: Inconsistent shapes, percentages outside 0..100, or keypoints that are not CUB's.
    """

    class_attribute_percent: np.ndarray
    """Share of annotations that see each attribute in a class, float64 ``(C, A)`` in percent."""
    attribute_names: tuple[str, ...]
    """A names such as "has_bill_shape::dagger"."""
    part_ids: tuple[np.ndarray, ...]
    """Ids of the visible keypoints of every test image, int64 ``(V,)``, ascending in 1..15; V may be 0."""
    part_xy: tuple[np.ndarray, ...]
    """Their positions in the unresized image, float64 ``(V, 2)`` in pixels, x first."""
    image_wh: np.ndarray
    """Width and height of every unresized test image, int64 ``(N, 2)``."""
    foregrounds: MaskSource
    """Foreground masks of the resized test images, 0 or 1, ``(B, S, S)``."""

    def __post_init__(self) -> None:
        percent, names = self.class_attribute_percent, self.attribute_names
        if percent.ndim != 2 or percent.shape[1] != len(names):
            raise ValueError(f"class_attribute_percent must be (C, A) with A = {len(names)} names, got {percent.shape}")
        if percent.size and not (percent.min() >= 0 and percent.max() <= 100):
            raise ValueError(f"percentages must lie in 0..100, got {percent.min()} to {percent.max()}")
        lengths = [len(each) for each in (self.part_ids, self.part_xy, self.image_wh, self.foregrounds)]
        if len(set(lengths)) > 1 or self.image_wh.shape != (lengths[2], 2):
            raise ValueError(
                f"part_ids, part_xy, image_wh (N, 2) and foregrounds must have one length, got {lengths} "
                f"and image_wh {self.image_wh.shape}"
            )
        if len(self.image_wh) and self.image_wh.min() < 1:
            raise ValueError(f"image_wh must be at least 1, got {self.image_wh.min()}")
        for row, (ids, xy) in enumerate(zip(self.part_ids, self.part_xy, strict=True)):
            if ids.ndim != 1 or xy.shape != (len(ids), 2):
                raise ValueError(f"part_ids[{row}] must be (V,) and part_xy (V, 2), got {ids.shape} and {xy.shape}")
            if len(ids) and (ids[0] < 1 or ids[-1] > NUM_CUB_POINTS or (np.diff(ids) <= 0).any()):
                raise ValueError(f"part_ids[{row}] must ascend within 1..{NUM_CUB_POINTS}, got {ids.tolist()}")


@dataclass(frozen=True, kw_only=True)
class LocalisationData:
    """A data set ready for weakly supervised localisation: class labels for training, boxes or masks for evaluation.

    Raises:
        ValueError: No classes, a name that is empty or repeated, an empty part, a label out of range, a class without
            a training image, val or test without boxes and masks, a box outside its image, masks of another size,
            superclasses that do not partition the classes, or cues that are not those of the test part.
    """

    name: str
    classes: tuple[str, ...]
    """C names in label order."""
    train: LocalisationSplit
    """Training part; its images may be larger than ``image_size`` for random crops, and it needs no boxes or masks."""
    val: LocalisationSplit
    test: LocalisationSplit
    image_size: int
    """Side S in pixels of the images and masks of val and test, and the unit of their boxes."""
    fingerprint: str
    """Hex digest of the stored images, their labels and annotations; resizing does not enter."""
    mirrorable: bool = False
    """Whether horizontal flips preserve the class (photographs; not handwriting)."""
    superclasses: Mapping[int, tuple[int, ...]] | None = None
    """For every class, the classes of its superclass, itself included; None without superclasses."""
    cues: CueTruth | None = None
    """Discriminative cues of the test part; None where they are not annotated."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"{self.name} has no classes")
        if "" in self.classes:
            raise ValueError(f"{self.name}: the name of class {self.classes.index('')} is empty")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"{self.name} names the class {twice!r} twice")
        for part, split in self.splits().items():
            check_part(self.name, part, split.labels, self.classes)
        for part, split in (("val", self.val), ("test", self.test)):
            self._check_truth(part, split)
        if self.superclasses is not None:
            check_superclasses(self.superclasses, len(self.classes), self.name)
        self._check_cues()

    def splits(self) -> Mapping[Split, LocalisationSplit]:
        """Return the three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def _check_truth(self, part: str, split: LocalisationSplit) -> None:
        if split.boxes is None and split.masks is None:
            raise ValueError(f"{self.name}: the {part} part has neither boxes nor masks, so nothing can be measured")
        for row, boxes in enumerate(split.boxes or ()):
            if boxes[:, :2].max() >= self.image_size or boxes[:, 2:].max() > self.image_size:
                raise ValueError(
                    f"{self.name}: boxes of {part} image {row} must begin within and end at most at "
                    f"{self.image_size}, the side of the images; got {boxes.tolist()}"
                )
        if isinstance(split.masks, np.ndarray) and split.masks.shape[1] != self.image_size:
            raise ValueError(
                f"{self.name}: {part} masks must have the side of the images, {self.image_size}, "
                f"got {split.masks.shape[1]}"
            )

    def _check_cues(self) -> None:
        if self.cues is None:
            return
        if len(self.cues.image_wh) != len(self.test):
            raise ValueError(
                f"{self.name}: cues must be those of the {len(self.test)} test images, got {len(self.cues.image_wh)}"
            )
        if len(self.cues.class_attribute_percent) != len(self.classes):
            raise ValueError(
                f"{self.name}: class_attribute_percent must have a row for each of {len(self.classes)} classes, "
                f"got {len(self.cues.class_attribute_percent)}"
            )


def check_mask_values(masks: np.ndarray, what: str) -> np.ndarray:
    """Return ``masks``, or raise a ValueError that names ``what`` if one holds a value other than 0, 1 and 255."""
    # In blocks, so that a memory map is never loaded as a whole.
    for start in range(0, len(masks), 256):
        block = np.asarray(masks[start : start + 256])
        strange = block[(block > 1) & (block != IGNORED)]
        if strange.size:
            raise ValueError(f"{what} must hold only 0, 1 and {IGNORED} (ignored), got {int(strange[0])}")
    return masks


def check_superclasses(superclasses: Mapping[int, Sequence[int]], num_classes: int, where: str) -> None:
    """Raise a ValueError that names ``where`` unless the superclasses partition the classes."""
    for label in range(num_classes):
        group = superclasses.get(label)
        if group is None or label not in group:
            raise ValueError(f"{where}: superclasses must map class {label} to a group that holds it, got {group}")
    members = sorted(label for group in {tuple(group) for group in superclasses.values()} for label in group)
    if members != list(range(num_classes)):
        twice = next((one for one, other in pairwise(members) if one == other), None)
        fault = f"got {members[-1]}" if twice is None else f"but class {twice} is in two groups or is repeated"
        raise ValueError(f"{where}: superclasses must partition the classes 0..{num_classes - 1}, {fault}")


def scale_boxes(boxes: np.ndarray, from_wh: "np.ndarray | Sequence[int]", size: int) -> np.ndarray:
    """Scale boxes with images that are stretched to a square, truncated to whole pixels: int64 ``(n, 4)``.

    Args:
        boxes: ``(n, 4)``.
        from_wh: Width and height before the stretch, ``(2,)`` for all or ``(n, 2)``.
        size: Side of the square.
    """
    return (boxes.astype(np.float64) * size / np.tile(np.asarray(from_wh, dtype=np.float64), 2)).astype(np.int64)


def nearest_pixels(length: int, size: int) -> np.ndarray:
    """Return the source pixel of each resized pixel, floor(i * length / size), int64 ``(size,)``.

    This is OpenCV's nearest neighbour (Pillow's takes the centre of the pixel), by which the published masks of the
    protocol are resized.
    """
    return np.arange(size, dtype=np.int64) * length // size


class ResizedMasks:
    """Another source of masks at another size, resized by nearest neighbour on every read."""

    def __init__(self, source: MaskSource, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.source = source
        self.size = size

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: "np.ndarray | Sequence[int]") -> np.ndarray:
        """Return uint8 ``(B, size, size)``."""
        masks = self.source.read(indices)
        rows, columns = (nearest_pixels(length, self.size) for length in masks.shape[1:])
        return masks[:, rows[:, None], columns]


def _check_boxes(row: int, boxes: np.ndarray) -> None:
    if boxes.dtype != np.int64 or boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"boxes[{row}] must be int64 (n, 4) with n at least 1, got {boxes.dtype} {boxes.shape}")
    if boxes.min() < 0 or (boxes[:, 2] < boxes[:, 0]).any() or (boxes[:, 3] < boxes[:, 1]).any():
        raise ValueError(f"boxes[{row}] must have 0 <= x0 <= x1 and 0 <= y0 <= y1, got {boxes.tolist()}")
