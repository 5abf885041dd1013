"""The one table of data sets: the name in a configuration, its settings, what it is read by. Imported lazily."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tenfold.data.multilabel import MultiLabelData


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where a data set's settings and reader are."""

    config: str
    """``module:class`` of its settings."""
    multilabel: str | None = None
    """``module:function`` from settings to ``MultiLabelData``; None: it is no multi-label data."""

    def config_class(self) -> type:
        return load_name(self.config)


_FILES = DataSet(
    config="tenfold.data.multilabel_files:MultiLabelFilesConfig",
    multilabel="tenfold.data.multilabel_files:load_multilabel_files",
)
DATA: dict[str, DataSet] = {
    "handwriting": DataSet(
        config="tenfold.data.handwriting.config:HandwritingConfig",
        multilabel="tenfold.data.handwriting.multilabel:load_scenes",
    ),
    "coco": _FILES,
    "voc": _FILES,
    "nuswide": _FILES,
    "cub": _FILES,
    "openimages": _FILES,
    "matrices": _FILES,
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


def load_name(name: str) -> Any:
    """The object at ``module:name``; only ever called with names of the tables of this project."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
