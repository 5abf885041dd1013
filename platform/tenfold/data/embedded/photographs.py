"""Super-resolution: photographs, and the same ones four times smaller."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tenfold.data.images import decode_image
from tenfold.data.regression import PARTS, TARGETS, GeneratedConfig, Part, RegressionData, digest_of, digest_of_files
from tenfold.types import Batch, TensorSchema

_EMBEDDED: dict[Part, tuple[str, ...]] = {
    "train": ("astronaut.png", "coffee.png", "motorcycle_left.png", "ihc.png", "retina.jpg"),
    "val": ("rocket.jpg",),
    "test": ("chelsea.png", "hubble_deep_field.jpg"),
}
"""Photographs that scikit-image ships; no part shares one, nor the two views of one scene."""
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class PhotographsConfig(GeneratedConfig):
    """Which photographs, and how they are cut."""

    name: str = "photographs"
    """Fixed; what selects this data set among the others."""
    root: str | None = None
    """Folder with ``{train,val,test}/`` of RGB images; None: the photographs that scikit-image ships."""
    crop: int = 32
    """Side in pixels of the squares that are learnt from, a multiple of ``scale``."""
    scale: int = 4
    """How much smaller the input is than the target, bicubic with antialiasing."""
    num_train: int = 1500
    """Squares cut for training, at seeded random places."""
    num_val: int = 300
    """Squares for validation."""
    num_test: int = 600
    """Squares for the test."""
    seed: int = 0
    """Of the places."""

    def __post_init__(self) -> None:
        if self.scale < 2 or self.crop < self.scale or self.crop % self.scale:
            raise ValueError(
                f"scale must be at least 2 and crop a multiple of it, got scale {self.scale} and crop {self.crop}"
            )
        super().__post_init__()


class Squares:
    """Squares of photographs, cut and made smaller when they are read.

    Args:
        images: uint8 ``(H, W, 3)`` each, at least ``crop`` pixels in both directions.
        places: Image, top and left of each square, int64 ``(N, 3)``.
        crop, scale: As in ``PhotographsConfig``.
    """

    def __init__(self, images: list[np.ndarray], places: np.ndarray, crop: int, scale: int) -> None:
        self._images, self._places, self._crop, self._scale = images, places, crop, scale

    def __len__(self) -> int:
        return len(self._places)

    def read(self, rows: "np.ndarray | Sequence[int]") -> Batch:
        """``input (B, 3, S / scale, S / scale)`` and ``targets (B, 3, S, S)``, both in [0, 1]."""
        squares = torch.stack([self._square(*place) for place in self._places[rows]]).permute(0, 3, 1, 2).float() / 255
        return {"input": shrink(squares, self._scale), TARGETS: squares.contiguous()}

    def _square(self, image: int, top: int, left: int) -> Tensor:
        return torch.from_numpy(self._images[image][top : top + self._crop, left : left + self._crop])


def load_photographs(config: PhotographsConfig) -> RegressionData:
    """Squares of the photographs of each part, from each photograph about as many as from any other.

    Raises:
        ValueError: A folder is missing or holds no image, an image can't be read or is smaller than ``crop``; with
            the path.
    """
    paths = {part: _paths(config, part) for part in PARTS}
    sources = {}
    for part in PARTS:
        images = [_read(path, config.crop) for path in paths[part]]
        random = np.random.default_rng([config.seed, PARTS.index(part)])
        sources[part] = Squares(
            images, _places(random, images, config.counts[part], config.crop), config.crop, config.scale
        )
    cut = (config.crop, config.scale, config.seed, config.counts)
    every = [path for part in PARTS for path in paths[part]]
    return RegressionData(
        name=config.name,
        network="cnn2d_sr",
        inputs=(TensorSchema(name="input", dtype="float32", shape=(3, -1, -1), max_value=1.0),),
        targets=("red", "green", "blue"),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of([path.name for path in every], cut)
        if config.root is None
        else digest_of_files(every, cut),
        max_value=1.0,
        upscale=config.scale,
    )


def shrink(images: Tensor, scale: int) -> Tensor:
    """Bicubic with antialiasing, cut to [0, 1]: ``(B, 3, H, W)`` to ``(B, 3, H / scale, W / scale)``."""
    size = (images.shape[2] // scale, images.shape[3] // scale)
    return functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def _paths(config: PhotographsConfig, part: Part) -> list[Path]:
    if config.root is None:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        return [folder / name for name in _EMBEDDED[part]]
    folder = Path(config.root) / part
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: data.root needs train/, val/ and test/ with images")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(_ENDINGS)})")
    return found


def _read(path: Path, crop: int) -> np.ndarray:
    try:
        image = decode_image(path.read_bytes(), max_pixels=Image.MAX_IMAGE_PIXELS or 89_478_485)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from error
    if min(image.shape[:2]) < crop:
        raise ValueError(f"{path} must be at least {crop} pixels high and wide, got {image.shape[1]}x{image.shape[0]}")
    return image


def _places(random: np.random.Generator, images: list[np.ndarray], num: int, crop: int) -> np.ndarray:
    rooms = np.array([[image.shape[0] - crop + 1, image.shape[1] - crop + 1] for image in images])
    chosen = random.integers(0, len(images), num)
    return np.column_stack([chosen, random.integers(0, rooms[chosen])])
