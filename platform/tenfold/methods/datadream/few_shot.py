"""Few-shot data shared by all stages: the classes, their names in prompts, and their shots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tenfold.data.classification import ClassificationData
from tenfold.data.images import SubsetImages
from tenfold.hashing import text_sha256
from tenfold.methods.datadream.prompts import TEMPLATES, class_prompts
from tenfold.methods.datadream.shots import sample_k_shot
from tenfold.types import ImageSource

CHUNK = 64
"""Images decoded at a time when all of them are checked."""


@dataclass(frozen=True, kw_only=True)
class FewShotData:
    """C classes, n shots of each."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Names of the classes in prompts."""
    domain_word: str
    templates: tuple[str, ...]
    """P templates with slots for the domain word and the class name."""
    images: ImageSource
    """The C * n shots, class by class."""
    num_shots: int
    fingerprint: str
    """Hash of data set and rows, hence of the shots."""
    mirrorable: bool
    """Whether a mirrored image keeps its class."""

    @property
    def prompts(self) -> list[list[str]]:
        """P prompts of each class."""
        return class_prompts(self.names, self.domain_word, self.templates)

    @property
    def labels(self) -> np.ndarray:
        """Class of each shot, int64 ``(C * n,)``."""
        return np.repeat(np.arange(len(self.classes)), self.num_shots)

    def rows(self, label: int) -> np.ndarray:
        """Rows of a class in ``images``."""
        return np.arange(label * self.num_shots, (label + 1) * self.num_shots)

    def check(self) -> None:
        """Decode every shot once, so that a damaged file is found before hours of work.

        Raises:
            ValueError: An image cannot be read; the message names its file.
        """
        for start in range(0, len(self.images), CHUNK):
            self.images.read_raw(np.arange(start, min(start + CHUNK, len(self.images))))


def draw_few_shot(data: ClassificationData, num_shots: int, num_templates: int, seed: int) -> FewShotData:
    """Draw the shots from the training split.

    Raises:
        ValueError: The data set has no training split, a class has fewer images than ``num_shots``, or there are fewer
            templates than ``num_templates``.
    """
    if num_templates > len(TEMPLATES):
        raise ValueError(
            f"num_templates must be at most {len(TEMPLATES)}, the number of templates, got {num_templates}"
        )
    train = data.split("train")
    counts = np.bincount(train.labels, minlength=len(data.classes))
    if counts.min() < num_shots:
        label = int(counts.argmin())
        raise ValueError(
            f"num_shots must be at most {counts[label]}, the training images of class {data.classes[label]!r} of "
            f"{data.name}, got {num_shots}; set method.num_shots to {counts[label]} or less"
        )
    drawn = np.asarray(sample_k_shot(train.labels.tolist(), num_shots, seed))
    rows = drawn[np.argsort(train.labels[drawn], kind="stable")]  # the draw is in order of first appearance
    return FewShotData(
        classes=data.classes,
        names=data.prompt_names or data.classes,
        domain_word=data.domain_word,
        templates=TEMPLATES[:num_templates],
        images=SubsetImages(train.images, rows),
        num_shots=num_shots,
        fingerprint=text_sha256(f"{data.fingerprint} {rows.tolist()}"),
        mirrorable=data.mirrorable,
    )


def square(image: np.ndarray, size: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Resize the shorter side to ``size`` (bilinear, antialiased) and crop a square.

    Args:
        image: uint8 ``(H, W, 3)``.
        size: Side of the square.
        place: Position of the crop, in [0, 1] down and across; the centre by default.

    Returns:
        uint8 ``(size, size, 3)``.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round(place[0] * (height - size)), round(place[1] * (width - size))
    return resized[top : top + size, left : left + size]


def squares(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Centre crop of each image, uint8 ``(B, size, size, 3)``."""
    return np.stack([square(image, size) for image in images])
