"""Single-label image data: the type that every loader returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tenfold.types import ImageSource, check_label_range

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ClassificationSplit:
    """One part (train, val or test) of a data set."""

    images: ImageSource
    """N images; ``read`` returns them at the network's size, ``read_raw`` at their own."""
    labels: np.ndarray
    """Class of each image, int64 ``(N,)``."""

    def __post_init__(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), one for each image, "
                f"got {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """A data set ready for few-shot learning or zero-shot classification.

    Raises:
        ValueError: No classes, a name that is empty or repeated, a label out of range, an empty part, or a class
            without a training image. In val and test a class may be absent: its accuracy is then undefined.
    """

    name: str
    classes: tuple[str, ...]
    """K names as the data set stores them, in label order."""
    train: ClassificationSplit | None = None
    """None where the data set has no such part, or it was not requested."""
    val: ClassificationSplit | None = None
    test: ClassificationSplit
    image_size: int
    fingerprint: str
    """Hex digest of the stored images and their labels; resizing, which depends on the network, does not enter."""
    domain_word: str = ""
    """Domain of the images, for prompts, with a trailing space ("satellite "); may be empty."""
    concept: str | None = None
    """High-level concept of the classes ("bird"); None where there is none."""
    prompt_names: tuple[str, ...] | None = None
    """Names for prompts, in label order, where ``classes`` are not natural words; None: ``classes`` are used."""
    prepared_shots: bool = False
    """Whether ``train`` is a prepared few-shot folder in natural order: the first n images of a class are its shots."""
    sort_case_insensitive: bool = False
    """Whether labels follow the case-insensitive order of the names, not the order of a descriptor file's keys."""
    mirrorable: bool = False
    """Whether horizontal flips preserve the class (photographs; not handwriting)."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"{self.name} has no classes")
        if "" in self.classes:
            raise ValueError(f"{self.name}: the name of class {self.classes.index('')} is empty")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"{self.name} names the class {twice!r} twice")
        if self.prompt_names is not None and len(self.prompt_names) != len(self.classes):
            raise ValueError(
                f"{self.name} needs a prompt name for each of {len(self.classes)} classes, got {len(self.prompt_names)}"
            )
        for part, split in self.splits().items():
            check_part(self.name, part, split.labels, self.classes)

    def splits(self) -> Mapping[Split, ClassificationSplit]:
        """Return the parts that are present, by name."""
        parts: dict[Split, ClassificationSplit | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {part: split for part, split in parts.items() if split is not None}

    def split(self, part: Split) -> ClassificationSplit:
        """Return a part by its name.

        Raises:
            ValueError: The data set has no such part, or it was not requested.
        """
        there = self.splits()
        if part not in there:
            raise ValueError(f"{self.name} has no {part} part here; it has {', '.join(there)}")
        return there[part]


def check_splits(splits: Sequence[str]) -> tuple[Split, ...]:
    """Return the requested parts in the order train, val, test.

    Raises:
        ValueError: No part, or an unknown one.
    """
    unknown = [part for part in splits if part not in SPLITS]
    if unknown or not splits:
        raise ValueError(f"splits must be some of {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}")
    return tuple(part for part in SPLITS if part in splits)


def check_part(name: str, part: str, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse an empty part, a label out of range and, for training, a class without an image.

    Args:
        name: Name of the data set, for the message.
        part: ``train``, ``val`` or ``test``.
        labels: int64 ``(N,)``.
        classes: K names.

    Raises:
        ValueError: Any of these.
    """
    if not len(labels):
        raise ValueError(f"{name}: the {part} part holds no image")
    check_label_range(labels, len(classes), f"{name}: {part} labels")
    counts = np.bincount(labels, minlength=len(classes))
    if part == "train" and not counts.all():
        absent = [classes[label] for label in np.flatnonzero(counts == 0).tolist()]
        raise ValueError(
            f"{name}: {len(absent)} of {len(classes)} classes have no training image, first: {absent[0]!r}"
        )
