"""Data of CALM: single-label images, with ground-truth object locations where available, and their augmentation.

Localisation and classification data sets are both loaded as ``ImageData``. Augmentation is drawn for a whole batch.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data.catalog import DATA, load_classification, load_localisation
from tenfold.data.classification import ClassificationSplit
from tenfold.data.images import SubsetImages, shared_tensor
from tenfold.data.localisation import CueTruth, LocalisationSplit
from tenfold.hashing import content_hash
from tenfold.types import Batch, ImageSource, Preprocessing


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Splits of a data set, with its classes and annotations."""

    name: str
    classes: tuple[str, ...]
    train: LocalisationSplit
    """Training images of the requested size, before random cropping."""
    val: LocalisationSplit | None
    test: LocalisationSplit
    image_size: int
    fingerprint: str
    mirrorable: bool
    superclasses: Mapping[int, tuple[int, ...]] | None
    cues: CueTruth | None
    """Cue annotations of the test split."""

    def splits(self) -> dict[str, LocalisationSplit]:
        """Return the splits to evaluate, by name."""
        return {"test": self.test} if self.val is None else {"val": self.val, "test": self.test}


def load_image_data(
    data: Any, preprocessing: Preprocessing, *, train_size: int | None = None, holdout_fraction: float | None = None
) -> ImageData:
    """Load a data set, with ground-truth locations if it has them.

    Args:
        data: Settings of the data set.
        preprocessing: Preprocessing of the network.
        train_size: Side of the training images; None: that of the network.
        holdout_fraction: Share of each class's training images held out for validation if the data set has no
            validation split; None: no validation split then.

    Raises:
        ValueError: If the data set has neither locations nor single labels, no training split, or missing or malformed
            files.
    """
    if DATA[data.name].localisation is None:
        return _from_classification(data, preprocessing, train_size, holdout_fraction)
    loaded = load_localisation(data, preprocessing, train_size)
    shared = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(ImageData)}
    return ImageData(**shared)


def augment(images: Tensor, size: int, *, mirror: bool, shift: int = 0) -> Tensor:
    """Crop, shift and flip every image at random.

    Random numbers come from torch's global CPU generator, whose state is part of every checkpoint.

    Args:
        images: uint8 ``(B, T, T, 3)``.
        size: Side S of the crop, at most T.
        mirror: Whether images are flipped horizontally with probability 0.5.
        shift: Maximum number of pixels, less than T, by which the crop may exceed the image (reflection padding).

    Returns:
        uint8 ``(B, S, S, 3)``.

    Raises:
        ValueError: If images are smaller than the crop.
    """
    batch, height, width, _ = images.shape
    if min(height, width) < size:
        raise ValueError(f"training images must be at least {size} pixels wide and high, got {width} x {height}")
    if (height, width) == (size, size) and not mirror and not shift:
        return images
    down = _reflected(torch.randint(-shift, height - size + shift + 1, (batch, 1)) + torch.arange(size), height)
    across = _reflected(torch.randint(-shift, width - size + shift + 1, (batch, 1)) + torch.arange(size), width)
    if mirror:
        across = torch.where(torch.rand(batch, 1) < 0.5, across.flip(1), across)
    image = torch.arange(batch, device=images.device)[:, None, None]
    return images[image, down.to(images.device)[:, :, None], across.to(images.device)[:, None, :]]


def _reflected(places: Tensor, length: int) -> Tensor:
    """Reflect indices outside 0..length - 1, without repeating the border."""
    inside = places.abs()
    return torch.where(inside < length, inside, 2 * (length - 1) - inside)


def read_batch(split: LocalisationSplit, rows: np.ndarray) -> Batch:
    """Read ``images`` uint8 ``(B, T, T, 3)`` and ``labels`` int64 ``(B,)``."""
    return {"images": split.images.read(rows), "labels": shared_tensor(split.labels)[torch.from_numpy(rows)]}


def spread_rows(num_rows: int, limit: int | None) -> np.ndarray:
    """Return at most ``limit`` evenly spaced rows."""
    if limit is None or limit >= num_rows:
        return np.arange(num_rows)
    return (np.arange(limit) * num_rows) // limit


def _from_classification(
    data: Any, preprocessing: Preprocessing, train_size: int | None, holdout_fraction: float | None
) -> ImageData:
    loaded = load_classification(data, preprocessing)
    if loaded.train is None:
        raise ValueError(f"data {data.name!r} must have a training split to train on; choose another data set")
    train, fingerprint = loaded.train, loaded.fingerprint
    val = None if loaded.val is None else _split(loaded.val.images, loaded.val.labels)
    larger = train
    if train_size is not None and train_size != preprocessing.image_size:
        whole = dataclasses.replace(preprocessing, image_size=train_size)
        larger = load_classification(data, whole, ("train",)).split("train")
    kept = np.arange(len(train))
    if val is None and holdout_fraction is not None:
        kept, held = holdout(train.labels, holdout_fraction)
        warnings.warn(
            f"{loaded.name} has no validation split: {len(held)} of its training images are held out", stacklevel=2
        )
        val = _split(SubsetImages(train.images, held), train.labels[held])
        fingerprint = content_hash({"data": fingerprint, "holdout_fraction": holdout_fraction})
    return ImageData(
        name=loaded.name,
        classes=loaded.classes,
        train=_rows_of(larger, kept),
        val=val,
        test=_split(loaded.test.images, loaded.test.labels),
        image_size=loaded.image_size,
        fingerprint=fingerprint,
        mirrorable=loaded.mirrorable,
        superclasses=None,
        cues=None,
    )


def holdout(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into training and validation rows, ascending and deterministic for the same labels.

    Stratified by class, rounded to whole images; at least one image per class stays in training.
    """
    draw = np.random.default_rng(0)
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    chosen = np.sort(np.concatenate(held))
    if not len(chosen):
        raise ValueError(f"holdout_fraction must leave an image to validate on, got {fraction}; set a larger one")
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _rows_of(split: ClassificationSplit, rows: np.ndarray) -> LocalisationSplit:
    if len(rows) == len(split):
        return _split(split.images, split.labels)
    return _split(SubsetImages(split.images, rows), split.labels[rows])


def _split(images: ImageSource, labels: np.ndarray) -> LocalisationSplit:
    return LocalisationSplit(images=images, labels=labels)
