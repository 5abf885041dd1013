"""The few-shot few_shot that all stages share: which pictures are the shots, what the classes are called."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tenfold.data.classification import ClassificationData
from tenfold.data.images import SubsetImages
from tenfold.methods.datadream.prompts import TEMPLATES, class_prompts
from tenfold.methods.datadream.shots import sample_k_shot
from tenfold.types import ImageSource

CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class FewShotData:
    """C classes, n shots of each."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """What the classes are called in prompts."""
    domain_word: str
    templates: tuple[str, ...]
    """P sentences with slots for domain word and name."""
    images: ImageSource
    """The C * n shots, class after class."""
    num_shots: int
    fingerprint: str
    """Of the drawn pictures: data set and rows."""
    mirrorable: bool

    @property
    def prompts(self) -> list[list[str]]:
        """P sentences of each class."""
        return class_prompts(self.names, self.domain_word, self.templates)

    @property
    def labels(self) -> np.ndarray:
        """Class of each shot, int64 ``(C * n,)``."""
        return np.repeat(np.arange(len(self.classes)), self.num_shots)

    def rows(self, label: int) -> np.ndarray:
        """Rows of ``images`` of one class."""
        return np.arange(label * self.num_shots, (label + 1) * self.num_shots)

    def check(self) -> None:
        """Decode every shot once, before work that takes hours meets a damaged file.

        Raises:
            ValueError: A picture can't be read; names its file.
        """
        for start in range(0, len(self.images), CHUNK):
            self.images.read_raw(np.arange(start, min(start + CHUNK, len(self.images))))


def draw_few_shot(data: ClassificationData, num_shots: int, num_templates: int, seed: int) -> FewShotData:
    """Draw the shots from the training part.

    Raises:
        ValueError: The data set has no training part, a class has fewer pictures than shots are wanted, or there are
            fewer templates than wanted.
    """
    if num_templates > len(TEMPLATES):
        raise ValueError(
            f"num_templates must be at most {len(TEMPLATES)}, the sentences there are, got {num_templates}"
        )
    train = data.split("train")
    counts = np.bincount(train.labels, minlength=len(data.classes))
    if counts.min() < num_shots:
        label = int(counts.argmin())
        raise ValueError(
            f"{data.name}: class {data.classes[label]!r} has {counts[label]} training pictures, "
            f"num_shots asks for {num_shots} of each class: set method.num_shots to {counts[label]} or less"
        )
    drawn = np.asarray(sample_k_shot(train.labels.tolist(), num_shots, seed))
    rows = drawn[np.argsort(train.labels[drawn], kind="stable")]  # the draw goes by order of first appearance
    return FewShotData(
        classes=data.classes,
        names=data.prompt_names or data.classes,
        domain_word=data.domain_word,
        templates=TEMPLATES[:num_templates],
        images=SubsetImages(train.images, rows),
        num_shots=num_shots,
        fingerprint=hashlib.sha256(f"{data.fingerprint} {rows.tolist()}".encode()).hexdigest(),
        mirrorable=data.mirrorable,
    )


def square(picture: np.ndarray, size: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Shorter side to ``size`` (bilinear, antialiased), then a square cut out.

    Args:
        picture: uint8 ``(H, W, 3)``.
        size: Side of the square.
        place: Where it is cut, in [0, 1] down and across; the middle by default.

    Returns:
        uint8 ``(size, size, 3)``.
    """
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    scale = size / min(height, width)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round(place[0] * (height - size)), round(place[1] * (width - size))
    return resized[top : top + size, left : left + size]


def squares(pictures: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The middle square of each picture, uint8 ``(B, size, size, 3)``."""
    return np.stack([square(picture, size) for picture in pictures])
