"""The one table of data sets: the name in a configuration, its settings, what it is read by. Imported lazily."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tenfold.data.classification import ClassificationData
from tenfold.data.multilabel import MultiLabelData
from tenfold.types import Preprocessing


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where a data set's settings and reader are."""

    config: str
    """``module:class`` of its settings."""
    multilabel: str | None = None
    """``module:function`` from settings to ``MultiLabelData``; None: it is no multi-label data."""
    classification: str | None = None
    """``module:function`` from settings, preprocessing and parts to ``ClassificationData``; None: no such data."""

    def config_class(self) -> type:
        return load_name(self.config)


_FILES = DataSet(
    config="tenfold.data.multilabel_files:MultiLabelFilesConfig",
    multilabel="tenfold.data.multilabel_files:load_multilabel_files",
)
_LABELLED_FILES = DataSet(
    config="tenfold.data.classification_files:ClassificationFilesConfig",
    classification="tenfold.data.classification_files:load_classification_files",
)
DATA: dict[str, DataSet] = {
    "handwriting": DataSet(
        config="tenfold.data.handwriting.config:HandwritingConfig",
        multilabel="tenfold.data.handwriting.multilabel:load_scenes",
        classification="tenfold.data.handwriting.classification:load_digits",
    ),
    "coco": _FILES,
    "voc": _FILES,
    "nuswide": _FILES,
    "cub": _FILES,
    "openimages": _FILES,
    "matrices": _FILES,
    "imagenet": _LABELLED_FILES,
    "imagenetv2": _LABELLED_FILES,
    "imagenet_100": _LABELLED_FILES,
    "cub200": _LABELLED_FILES,
    "places365": _LABELLED_FILES,
    "dtd": _LABELLED_FILES,
    "food101": _LABELLED_FILES,
    "eurosat": _LABELLED_FILES,
    "pets": _LABELLED_FILES,
    "flowers102": _LABELLED_FILES,
    "fgvc_aircraft": _LABELLED_FILES,
    "cars": _LABELLED_FILES,
    "caltech101": _LABELLED_FILES,
    "sun397": _LABELLED_FILES,
    "stl10": _LABELLED_FILES,
    "folders": _LABELLED_FILES,
}


def load_multilabel(config: Any) -> MultiLabelData:
    """Read the multi-label data that a configuration names.

    Raises:
        ValueError: No such data, it is no multi-label data, or its files are missing or malformed.
    """
    entry = DATA.get(config.name)
    usable = [name for name, data in DATA.items() if data.multilabel]
    if entry is None or entry.multilabel is None:
        raise ValueError(f"data {config.name!r} has no multi-label reader; those that have: {', '.join(usable)}")
    return load_name(entry.multilabel)(config)


def load_classification(
    config: Any, preprocessing: Preprocessing, splits: Sequence[str] = ("train", "val", "test")
) -> ClassificationData:
    """Read the data with one class for each picture that a configuration names.

    Args:
        config: Settings of the data set, by its ``config.name``.
        preprocessing: Of the network; ``read`` gives pictures resized by it (``read_raw`` as they are stored).
        splits: Parts wanted; the test part is always read. A part that the data set does not have is None.

    Raises:
        ValueError: No such data, no data with one class for each picture, an unknown part, or files that are missing
            or malformed, with their path and what was expected.
    """
    entry = DATA.get(config.name)
    usable = [name for name, data in DATA.items() if data.classification]
    if entry is None or entry.classification is None:
        raise ValueError(f"data {config.name!r} has no reader of single labels; those that have: {', '.join(usable)}")
    return load_name(entry.classification)(config, preprocessing, splits)


def load_name(name: str) -> Any:
    """The object at ``module:name``; only ever called with names of the tables of this project."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
