"""MNIST in torchvision's layout, with notMNIST and FashionMNIST as out-of-distribution data."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision import datasets

from tenfold.data.classification import ClassificationData, ClassificationSplit, check_splits
from tenfold.data.domains import DOMAINS
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS, LETTERS
from tenfold.data.images import ArrayImages, ResizedImages, decode_image
from tenfold.data.uncertainty import UncertaintyData, blend_pairs
from tenfold.hashing import bytes_sha256
from tenfold.types import ImageSource, Preprocessing

SIDE = 28
_BROKEN = (RuntimeError, OSError, ValueError, AssertionError)


@dataclass(frozen=True, kw_only=True)
class MnistConfig:
    """Location of MNIST and of its out-of-distribution data."""

    name: str = "mnist"
    """Fixed; selects this data set."""
    root: str
    """Folder with ``MNIST/raw/train-images-idx3-ubyte`` and its three siblings, in torchvision's layout."""
    notmnist: str | None = None
    """Folder of notMNIST: ``Test/{A..J}/<name>.png`` of 28x28 grey pixels; None: not used."""
    fashion: str | None = None
    """Folder with ``FashionMNIST/raw/``, in torchvision's layout; None: not used."""
    num_val: int = 5000
    """Training digits held out for validation and calibration."""
    seed: int = 0
    """Seed of that split and of the blends."""

    def __post_init__(self) -> None:
        if self.name != "mnist":
            raise ValueError(f"name must be 'mnist', got {self.name!r}")
        if self.num_val < 1 or self.seed < 0:
            raise ValueError(f"num_val must be at least 1 and seed at least 0, got {self.num_val} and {self.seed}")


def load_mnist(
    config: MnistConfig, preprocessing: Preprocessing, splits: Sequence[str] = ("train", "val", "test")
) -> ClassificationData:
    """Load the digits as single-label data, grey as RGB, white on black.

    Raises:
        ValueError: Files that are missing or not MNIST, with their folder; too few digits for ``num_val``.
    """
    parts = check_splits(splits)
    pixels, labels = _read(Path(config.root), datasets.MNIST, train=True)
    order = np.random.default_rng(config.seed).permutation(len(labels))
    if config.num_val >= len(labels):
        raise ValueError(f"num_val must be less than the {len(labels)} training digits, got {config.num_val}")
    rows = {"val": order[: config.num_val], "train": order[config.num_val :]}
    test_pixels, test_labels = _read(Path(config.root), datasets.MNIST, train=False)
    arrays = (pixels, labels, test_pixels, test_labels)

    def part(grey: np.ndarray, classes: np.ndarray) -> ClassificationSplit:
        return ClassificationSplit(images=_as_images(grey, preprocessing), labels=classes)

    return ClassificationData(
        name=config.name,
        classes=DIGIT_WORDS,
        train=part(pixels[rows["train"]], labels[rows["train"]]) if "train" in parts else None,
        val=part(pixels[rows["val"]], labels[rows["val"]]) if "val" in parts else None,
        test=part(test_pixels, test_labels),
        image_size=preprocessing.image_size,
        fingerprint=bytes_sha256([f"{config.seed}/{config.num_val}".encode(), *(each.tobytes() for each in arrays)]),
        domain_word=DOMAINS[config.name].word,
        concept=DOMAINS[config.name].concept,
    )


def load_uncertain_mnist(config: MnistConfig) -> UncertaintyData:
    """Load MNIST with the configured out-of-distribution sets and ambiguous blends of two digits.

    Raises:
        ValueError: As in ``load_mnist``; neither notMNIST nor FashionMNIST is configured, or a folder lacks them.
    """
    as_stored = Preprocessing(image_size=SIDE)
    outside: dict[str, ImageSource] = {}
    if config.notmnist is not None:
        outside["notmnist"] = _as_images(read_notmnist(Path(config.notmnist)), as_stored)
    if config.fashion is not None:
        outside["fashion"] = _as_images(_read(Path(config.fashion), datasets.FashionMNIST, train=False)[0], as_stored)
    if not outside:
        raise ValueError(
            "data.notmnist or data.fashion must name a folder, got none; out-of-distribution images are needed"
        )
    inside = load_mnist(config, as_stored)
    blends = blend_pairs(inside.test, config.seed)
    return UncertaintyData(inside=inside, outside=outside, ambiguous={"blends": blends})


def read_notmnist(root: Path, part: str = "Test") -> np.ndarray:
    """Read all letters of ``root/Test/{A..J}/*.png``; a file that cannot be decoded is skipped with a warning.

    Returns:
        uint8 ``(N, 28, 28)``.

    Raises:
        ValueError: A folder is missing, an image has another size, or none can be read.
    """
    images: list[np.ndarray] = []
    for letter in LETTERS:
        folder = root / part / letter
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is missing: expected notMNIST, {part}/A to {part}/J with PNG files of 28x28 pixels"
            )
        for path in sorted(folder.glob("*.png")):
            try:
                image = decode_image(path.read_bytes())
            except ValueError as error:
                warnings.warn(f"{path} is skipped: {error}", stacklevel=2)
                continue
            if image.shape[:2] != (SIDE, SIDE):
                raise ValueError(f"{path} must be {SIDE}x{SIDE} pixels, got {image.shape[1]}x{image.shape[0]}")
            images.append(image[..., 0])
    if not images:
        raise ValueError(f"{root / part} holds no PNG file that can be decoded")
    return np.stack(images)


def _read(root: Path, kind: type[datasets.MNIST], *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read grey images uint8 ``(N, 28, 28)`` and labels int64 ``(N,)``."""
    folder = root / kind.__name__ / "raw"
    try:
        stored = kind(str(root), train=train, download=False)
    except _BROKEN as error:
        raise ValueError(
            f"{folder} must hold {kind.__name__} in torchvision's layout "
            f"({'train' if train else 't10k'}-images-idx3-ubyte and its labels): {error}"
        ) from error
    pixels, labels = stored.data.numpy(), stored.targets.numpy().astype(np.int64)
    if pixels.shape[1:] != (SIDE, SIDE) or len(pixels) != len(labels) or not len(labels):
        raise ValueError(f"{folder}: expected images of {SIDE}x{SIDE} with a label each, got {pixels.shape}")
    return pixels, labels


def _as_images(grey: np.ndarray, preprocessing: Preprocessing) -> ImageSource:
    images = ArrayImages(np.repeat(grey[..., None], 3, axis=-1))
    if preprocessing.image_size == SIDE:
        return images
    return ResizedImages(
        images, preprocessing.image_size, resize=preprocessing.resize, interpolation=preprocessing.interpolation
    )
