"""Scenes as a multi-label data set."""

from tenfold.data.embedded.handwriting.build import HandwritingFolder, build
from tenfold.data.embedded.handwriting.config import HandwritingConfig, Split
from tenfold.data.embedded.handwriting.splits import CANVAS
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.data.images import ArrayImages
from tenfold.data.multilabel import MultiLabelData, MultiLabelSplit
from tenfold.data.partial_labels import observe_labels
from tenfold.hashing import text_sha256


def load_scenes(config: HandwritingConfig) -> MultiLabelData:
    """Load 64x64 scenes labelled with the digits they hold, building them if the cache lacks them.

    Observed labels of all three splits are drawn the same way (``num_pos``, ``num_neg``, ``label_seed``).

    Raises:
        OSError: If the cache folder cannot be written.
    """
    folder = build("scenes", config)
    draw = f"{folder.fingerprint}/{config.num_pos}/{config.num_neg}/{config.label_seed}"
    return MultiLabelData(
        name=config.name,
        classes=DIGIT_WORDS,
        train=_split(folder, config, "train"),
        val=_split(folder, config, "val"),
        test=_split(folder, config, "test"),
        image_size=CANVAS,
        fingerprint=text_sha256(draw),
    )


def _split(folder: HandwritingFolder, config: HandwritingConfig, split: Split) -> MultiLabelSplit:
    arrays = folder.split(split)
    full = arrays["labels"]
    observed = observe_labels(full, config.num_pos, config.num_neg, config.label_seed)
    return MultiLabelSplit(images=ArrayImages(arrays["images"]), full=full, observed=observed)
