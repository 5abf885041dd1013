"""Pictures with one class each for training, and with the truth about places where there is any.

Sets that know where their objects are and plain sets of labelled pictures become the same ``Pictures``. What happens
to a training picture is drawn on the device for a whole batch at once.
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
class Pictures:
    """A data set as this method takes it."""

    name: str
    classes: tuple[str, ...]
    train: LocalisationSplit
    """Pictures of the size asked for, for cutting out."""
    val: LocalisationSplit | None
    test: LocalisationSplit
    image_size: int
    fingerprint: str
    mirrorable: bool
    superclasses: Mapping[int, tuple[int, ...]] | None
    cues: CueTruth | None
    """Of the test part."""

    def parts(self) -> dict[str, LocalisationSplit]:
        """Parts that are measured, by name."""
        return {"test": self.test} if self.val is None else {"val": self.val, "test": self.test}


def load_pictures(
    data: Any, preprocessing: Preprocessing, *, train_size: int | None = None, holdout_fraction: float | None = None
) -> Pictures:
    """Read a data set: with the truth about places if it has any, else its classes alone.

    Args:
        data: Settings of the data set.
        preprocessing: Of the network.
        train_size: Side of the training pictures; None: that of the network.
        holdout_fraction: Share of each class's training pictures that validates where the data have no validation
            part; None: there is then none.

    Raises:
        ValueError: The data have neither places nor single labels, no training part, or their files are missing or
            malformed.
    """
    if DATA[data.name].localisation is None:
        return _without_places(data, preprocessing, train_size, holdout_fraction)
    loaded = load_localisation(data, preprocessing, train_size)
    shared = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(Pictures)}
    return Pictures(**shared)


def augment(images: Tensor, size: int, *, mirror: bool, shift: int = 0) -> Tensor:
    """Cut a random square out of every picture, move it, and mirror every second one.

    Draws come from torch's global stream on the CPU, which every checkpoint holds.

    Args:
        images: uint8 ``(B, T, T, 3)``.
        size: Side S of the square, at most T.
        mirror: Whether pictures may be mirrored.
        shift: Most pixels, less than T, by which the square may reach beyond the picture, which goes on there as if
            reflected.

    Returns:
        uint8 ``(B, S, S, 3)``.

    Raises:
        ValueError: Pictures smaller than the square.
    """
    batch, height, width, _ = images.shape
    if min(height, width) < size:
        raise ValueError(f"training pictures must be at least {size} pixels wide and high, got {width} x {height}")
    if (height, width) == (size, size) and not mirror and not shift:
        return images
    down = _reflected(torch.randint(-shift, height - size + shift + 1, (batch, 1)) + torch.arange(size), height)
    across = _reflected(torch.randint(-shift, width - size + shift + 1, (batch, 1)) + torch.arange(size), width)
    if mirror:
        across = torch.where(torch.rand(batch, 1) < 0.5, across.flip(1), across)
    picture = torch.arange(batch, device=images.device)[:, None, None]
    return images[picture, down.to(images.device)[:, :, None], across.to(images.device)[:, None, :]]


def _reflected(places: Tensor, length: int) -> Tensor:
    """Places outside 0..length - 1 as far inside; the border itself comes once."""
    inside = places.abs()
    return torch.where(inside < length, inside, 2 * (length - 1) - inside)


def read_batch(split: LocalisationSplit, rows: np.ndarray) -> Batch:
    """``images`` uint8 ``(B, T, T, 3)`` and ``labels`` int64 ``(B,)``."""
    return {"images": split.images.read(rows), "labels": shared_tensor(split.labels)[torch.from_numpy(rows)]}


def spread_rows(num_rows: int, limit: int | None) -> np.ndarray:
    """At most ``limit`` rows, evenly spread over all."""
    if limit is None or limit >= num_rows:
        return np.arange(num_rows)
    return (np.arange(limit) * num_rows) // limit


def _without_places(
    data: Any, preprocessing: Preprocessing, train_size: int | None, holdout_fraction: float | None
) -> Pictures:
    loaded = load_classification(data, preprocessing)
    if loaded.train is None:
        raise ValueError(f"data {data.name!r} has no training part: choose data to train on")
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
            f"{loaded.name} has no validation part: {len(held)} of its training pictures validate", stacklevel=2
        )
        val = _split(SubsetImages(train.images, held), train.labels[held])
        fingerprint = content_hash({"data": fingerprint, "holdout_fraction": holdout_fraction})
    return Pictures(
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
    """Rows to train on and rows to validate on, ascending; always the same for the same labels.

    Of every class its share, rounded to whole pictures; one picture of it is always trained on.
    """
    draw = np.random.default_rng(0)
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(round(fraction * len(rows)), len(rows) - 1)])
    chosen = np.sort(np.concatenate(held))
    if not len(chosen):
        raise ValueError(f"holdout_fraction {fraction} leaves no picture to validate on: set a greater one")
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _rows_of(split: ClassificationSplit, rows: np.ndarray) -> LocalisationSplit:
    if len(rows) == len(split):
        return _split(split.images, split.labels)
    return _split(SubsetImages(split.images, rows), split.labels[rows])


def _split(images: ImageSource, labels: np.ndarray) -> LocalisationSplit:
    return LocalisationSplit(images=images, labels=labels)
