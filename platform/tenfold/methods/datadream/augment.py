"""Training pool of real and synthetic images, and the augmentation of images read from it."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from tenfold.data.images import ArrayImages, ResizedImages
from tenfold.methods.datadream.few_shot import FewShotData
from tenfold.methods.datadream.image_store import image_source
from tenfold.types import Batch, ImageSource, Preprocessing

Augment = Literal["photo", "light", "none"]
IN_MEMORY = 1_000_000_000
"""Bytes up to which synthetic images are kept in memory."""


class TrainingPool:
    """Synthetic images and repeated real shots as one list, each row with its class and its domain.

    Args:
        few_shot: Classes and shots.
        synthetic: Image files of each class; None for real shots only.
        repeats: Number of times each shot is in the list; 0 for synthetic images only.
        preprocessing: Preprocessing of the classifier.
        augment: Augmentation of an image at each reading.

    Raises:
        ValueError: The list is empty, or a file cannot be read.
    """

    def __init__(
        self,
        few_shot: FewShotData,
        synthetic: list[list[Path]] | None,
        repeats: int,
        preprocessing: Preprocessing,
        augment: Augment,
    ) -> None:
        self._size = preprocessing.image_size
        self._augment, self._mirror = augment, few_shot.mirrorable
        self._photo = photo_transform(self._size, few_shot.mirrorable) if augment == "photo" else None
        files = [path for group in synthetic or [] for path in group]
        self._synthetic = _read_files(files, preprocessing) if files else None
        self._real = few_shot.images
        of_files = np.repeat(np.arange(len(synthetic or [])), [len(group) for group in synthetic or []])
        real_rows = np.tile(np.arange(len(few_shot.images)), repeats)
        self.labels = np.concatenate([of_files, few_shot.labels[real_rows]]).astype(np.int64)
        self.is_real = np.concatenate([np.zeros(len(files), bool), np.ones(len(real_rows), bool)])
        self._row = np.concatenate([np.arange(len(files)), real_rows]).astype(np.int64)
        if not len(self.labels):
            raise ValueError(
                f"the training pool must hold at least one image, got {len(files)} synthetic images and {repeats} "
                f"repeats of the shots; set method.images_per_class to at least method.num_shots"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, seed: int) -> Batch:
        """``images`` uint8 ``(B, S, S, 3)``, ``labels`` int64 and ``is_real`` bool ``(B,)``."""
        return {
            "images": self._images(rows, seed),
            "labels": torch.from_numpy(self.labels[rows]),
            "is_real": torch.from_numpy(self.is_real[rows]),
        }

    def _images(self, rows: np.ndarray, seed: int) -> Tensor:
        out = torch.empty((len(rows), self._size, self._size, 3), dtype=torch.uint8)
        for real, source in ((True, self._real), (False, self._synthetic)):
            places = np.flatnonzero(self.is_real[rows] == real)
            if source is None or not len(places):
                continue
            chosen = self._row[rows[places]]
            index = torch.from_numpy(places)
            if self._photo is None:
                out[index] = source.read(chosen)
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed + int(real))
                    for place, image in zip(places, source.read_raw(chosen), strict=True):
                        seen = self._photo(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
                        out[place] = seen.permute(1, 2, 0)
        if self._augment == "light":
            return lightly(out, torch.Generator().manual_seed(seed), mirror=self._mirror)
        return out


def photo_transform(size: int, mirror: bool) -> v2.Transform:
    """Build the paper's augmentation of uint8 ``(3, H, W)`` at full resolution, up to normalisation.

    It draws from PyTorch's global generator.
    """
    # A blur of radius 2 reaches six pixels; the window must fit small images, too.
    window = min(13, 2 * ((size - 1) // 2) - 1) if size > 3 else 1
    return v2.Compose(
        [
            v2.RandAugment(num_ops=2, magnitude=9),
            v2.RandomResizedCrop(size, scale=(0.25, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(0.5 if mirror else 0.0),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(window, (0.1, 2.0))], 0.2),
            v2.RandomSolarize(128, 0.2),
        ]
    )


def lightly(images: Tensor, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """Rotate, scale, shear and translate each image slightly, so that characters keep their class.

    Args:
        images: uint8 ``(B, S, S, 3)``.
        generator: Source of randomness.
        mirror: Whether images are mirrored, each with probability 0.5.
    """

    def draw(limit: float) -> Tensor:
        return limit * (2 * torch.rand(len(images), generator=generator) - 1)

    angle, slant = draw(math.radians(10)), draw(0.1)
    wide, high = 1 + draw(0.1), 1 + draw(0.1)
    shifts = torch.stack([draw(0.16), draw(0.16)], 1)  # in units of half the side, as in the sampling grid
    flip = torch.where(torch.rand(len(images), generator=generator) < 0.5, -1.0, 1.0) if mirror else 1.0
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([flip * cos / wide, (slant - sin) / wide, shifts[:, 0]], 1),
            torch.stack([flip * sin / high, cos / high, shifts[:, 1]], 1),
        ],
        1,
    )  # (B, 2, 3)
    pixels = images.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _read_files(files: list[Path], preprocessing: Preprocessing) -> ImageSource:
    """Source of image files of one size, kept in memory if they are small."""
    size, way = preprocessing.image_size, preprocessing
    source = image_source(files, preprocessing)
    height, width, _ = source.read_raw([0])[0].shape
    if height != width or len(files) * height * width * 3 > IN_MEMORY:
        return source
    array = ArrayImages(np.stack(source.read_raw(np.arange(len(files)))))
    return array if height == size else ResizedImages(array, size, resize=way.resize, interpolation=way.interpolation)
