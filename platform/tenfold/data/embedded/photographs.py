"""Super-resolution data: photographs and the same ones downscaled."""

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
from tenfold.tasks import Pixels, Slot
from tenfold.types import Batch

_EMBEDDED: dict[Part, tuple[str, ...]] = {
    "train": ("astronaut.png", "coffee.png", "motorcycle_left.png", "ihc.png", "retina.jpg"),
    "val": ("rocket.jpg",),
    "test": ("chelsea.png", "hubble_deep_field.jpg"),
}
"""Photographs that scikit-image ships; parts share neither a photograph nor a scene."""
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class PhotographsConfig(GeneratedConfig):
    """Settings of the photographs and their crops."""

    name: str = "photographs"
    """Fixed; selects this data set."""
    root: str | None = None
    """Folder with ``{train,val,test}/`` of RGB images; None: the photographs that scikit-image ships."""
    crop: int = 32
    """Side of the crops in pixels, a multiple of ``scale``."""
    scale: int = 4
    """Downscaling factor from target to input, bicubic with antialiasing."""
    num_train: int = 1500
    """Crops for training, at seeded random positions."""
    num_val: int = 300
    """Crops for validation."""
    num_test: int = 600
    """Crops for the test."""
    seed: int = 0
    """Seed of the positions."""

    def __post_init__(self) -> None:
        if self.scale < 2 or self.crop < self.scale or self.crop % self.scale:
            raise ValueError(
                f"scale must be at least 2 and crop a multiple of it, got scale {self.scale} and crop {self.crop}"
            )
        super().__post_init__()


class Squares:
    """Square crops of photographs, cropped and downscaled when they are read.

    Args:
        images: uint8 ``(H, W, 3)`` each, at least ``crop`` pixels in both directions.
        places: Image, top and left of each crop, int64 ``(N, 3)``.
        crop, scale: See ``PhotographsConfig``.
    """

    def __init__(self, images: list[np.ndarray], places: np.ndarray, crop: int, scale: int) -> None:
        self._images, self._places, self._crop, self._scale = images, places, crop, scale

    def __len__(self) -> int:
        return len(self._places)

    def read(self, rows: "np.ndarray | Sequence[int]") -> Batch:
        """Return ``input (B, 3, S / scale, S / scale)`` and ``targets (B, 3, S, S)``, both in [0, 1]."""
        squares = torch.stack([self._square(*place) for place in self._places[rows]]).permute(0, 3, 1, 2).float() / 255
        return {"input": shrink(squares, self._scale), TARGETS: squares.contiguous()}

    def _square(self, image: int, top: int, left: int) -> Tensor:
        return torch.from_numpy(self._images[image][top : top + self._crop, left : left + self._crop])


def load_photographs(config: PhotographsConfig) -> RegressionData:
    """Load crops of the photographs of each part, about equally many of each photograph.

    Raises:
        ValueError: A folder is missing or holds no image, an image cannot be read or is smaller than ``crop``; with
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
        inputs=(Slot(name="input", dtype="float32", shape=(3, -1, -1), image=Pixels(max_value=1.0)),),
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
    """Downscale ``(B, 3, H, W)`` to ``(B, 3, H / scale, W / scale)``, bicubic with antialiasing, clamped to [0, 1]."""
    size = (images.shape[2] // scale, images.shape[3] // scale)
    return functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def _paths(config: PhotographsConfig, part: Part) -> list[Path]:
    if config.root is None:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        return [folder / name for name in _EMBEDDED[part]]
    folder = Path(config.root) / part
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: data.root must hold train/, val/ and test/ with images")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(_ENDINGS)})")
    return found


def _read(path: Path, crop: int) -> np.ndarray:
    try:
        image = decode_image(path.read_bytes(), max_pixels=Image.MAX_IMAGE_PIXELS or 89_478_485)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if min(image.shape[:2]) < crop:
        raise ValueError(f"{path} must be at least {crop} pixels high and wide, got {image.shape[1]}x{image.shape[0]}")
    return image


def _places(random: np.random.Generator, images: list[np.ndarray], num: int, crop: int) -> np.ndarray:
    rooms = np.array([[image.shape[0] - crop + 1, image.shape[1] - crop + 1] for image in images])
    chosen = random.integers(0, len(images), num)
    return np.column_stack([chosen, random.integers(0, rooms[chosen])])
