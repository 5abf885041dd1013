"""Handwritten digits as a single-label data set."""

from collections.abc import Sequence

from tenfold.data.classification import ClassificationData, ClassificationSplit, Split, check_splits
from tenfold.data.domains import DOMAINS
from tenfold.data.embedded.handwriting.build import HandwritingFolder, build
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.splits import IMAGE_SIDE
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.data.images import ArrayImages, ResizedImages
from tenfold.types import ImageSource, Preprocessing


def load_digits(
    config: HandwritingConfig, preprocessing: Preprocessing, splits: Sequence[str] = ("train", "val", "test")
) -> ClassificationData:
    """Load 3,000 / 750 / 1,250 handwritten digits, 32x32 white on black, building them if the cache lacks them.

    At a size other than 32 they are resized on every read. The test part is always loaded. Of the settings only
    ``seed`` (the split of the source digits) and ``cache`` matter.

    Raises:
        ValueError: ``splits`` is empty or holds an unknown part.
        OSError: The cache folder cannot be written.
    """
    parts = check_splits(splits)
    folder = build("digits", config)
    return ClassificationData(
        name=config.name,
        classes=DIGIT_WORDS,
        train=_split(folder, "train", preprocessing) if "train" in parts else None,
        val=_split(folder, "val", preprocessing) if "val" in parts else None,
        test=_split(folder, "test", preprocessing),
        image_size=preprocessing.image_size,
        fingerprint=folder.fingerprint,
        domain_word=DOMAINS[config.name].word,
        concept=DOMAINS[config.name].concept,
    )


def _split(folder: HandwritingFolder, split: Split, preprocessing: Preprocessing) -> ClassificationSplit:
    arrays = folder.split(split)
    images: ImageSource = ArrayImages(arrays["images"])
    if preprocessing.image_size != IMAGE_SIDE:
        images = ResizedImages(
            images, preprocessing.image_size, resize=preprocessing.resize, interpolation=preprocessing.interpolation
        )
    return ClassificationSplit(images=images, labels=arrays["labels"])
