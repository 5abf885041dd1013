"""Handwritten digits with printed letters and blends of two digits, 28x28 like MNIST and notMNIST."""

import numpy as np

from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.data.embedded.handwriting.build import HandwritingFolder, build
from tenfold.data.embedded.handwriting.config import HandwritingConfig, Split
from tenfold.data.embedded.handwriting.sources import SOURCE_SIZE
from tenfold.data.embedded.handwriting.splits import IMAGE_SIDE
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.data.images import ArrayImages
from tenfold.data.uncertainty import UncertaintyData, blend_pairs
from tenfold.hashing import text_sha256

_BORDER = (IMAGE_SIDE - SOURCE_SIZE) // 2


def load_uncertain_digits(config: HandwritingConfig) -> UncertaintyData:
    """Load 3,000 / 750 / 1,250 digits, ``num_test`` letters A-J as out-of-distribution, and blends of test digits.

    ``blends`` are pixel averages of any two test digits, ``confusable`` those of similar digits of classes that are
    easily confused.

    Raises:
        OSError: The cache folder cannot be written.
    """
    digits, letters, confusable = (build(task, config) for task in ("digits", "letters", "ambiguous"))
    parts = {part: _split(digits, part) for part in ("train", "val", "test")}
    together = "/".join(folder.fingerprint for folder in (digits, letters, confusable))
    return UncertaintyData(
        inside=ClassificationData(
            name=config.name,
            classes=DIGIT_WORDS,
            train=parts["train"],
            val=parts["val"],
            test=parts["test"],
            image_size=SOURCE_SIZE,
            fingerprint=text_sha256(together),
        ),
        outside={"letters": ArrayImages(_uncovered(letters.split("test")["images"]))},
        ambiguous={
            "blends": blend_pairs(parts["test"], config.seed),
            "confusable": ArrayImages(_uncovered(confusable.split("test")["images"])),
        },
    )


def _split(folder: HandwritingFolder, part: Split) -> ClassificationSplit:
    arrays = folder.split(part)
    return ClassificationSplit(images=ArrayImages(_uncovered(arrays["images"])), labels=np.array(arrays["labels"]))


def _uncovered(images: np.ndarray) -> np.ndarray:
    """Crop the border that pads 28 pixels to 32."""
    return np.ascontiguousarray(images[:, _BORDER:-_BORDER, _BORDER:-_BORDER])
