"""Table of data sets: name in a configuration, class of its settings and loader functions, imported lazily."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.data.classification import ClassificationData
from tenfold.data.concepts import ConceptData
from tenfold.data.localisation import LocalisationData
from tenfold.data.multilabel import MultiLabelData
from tenfold.data.regression import RegressionData
from tenfold.data.uncertainty import UncertaintyData
from tenfold.types import Preprocessing, load_name


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Import paths of a data set's settings and loaders."""

    config: str
    """``module:class`` of the settings."""
    multilabel: str | None = None
    """``module:function`` from settings to ``MultiLabelData``; None: not multi-label data."""
    classification: str | None = None
    """``module:function`` from settings, preprocessing and parts to ``ClassificationData``; None: not such data."""
    uncertainty: str | None = None
    """``module:function`` from settings to ``UncertaintyData``; None: no out-of-distribution images are known."""
    regression: str | None = None
    """``module:function`` from settings to ``RegressionData``; None: no real-valued targets."""
    localisation: str | None = None
    """``module:function`` from settings, preprocessing and the size of training images to ``LocalisationData``; None:
    no boxes or masks."""
    concepts: str | None = None
    """``module:function`` from settings, preprocessing and the size of training images to ``ConceptData``; None: no
    concepts."""

    def config_class(self) -> type:
        """Import the class of the settings."""
        return load_name(self.config)


_FILES = DataSet(
    config="tenfold.data.files.multilabel:MultiLabelFilesConfig",
    multilabel="tenfold.data.files.multilabel:load_multilabel_files",
)
_LABELLED_FILES = DataSet(
    config="tenfold.data.files.classification:ClassificationFilesConfig",
    classification="tenfold.data.files.classification:load_classification_files",
)
_LOCATED_FILES = DataSet(
    config="tenfold.data.files.localisation:LocalisationFilesConfig",
    classification="tenfold.data.files.localisation:load_localisation_classes",
    localisation="tenfold.data.files.localisation:load_localisation_files",
)
DATA: dict[str, DataSet] = {
    "handwriting": DataSet(
        config="tenfold.data.embedded.handwriting.config:HandwritingConfig",
        multilabel="tenfold.data.embedded.handwriting.multilabel:load_scenes",
        classification="tenfold.data.embedded.handwriting.classification:load_digits",
        localisation="tenfold.data.embedded.handwriting.localisation:load_cue_scenes",
        uncertainty="tenfold.data.embedded.handwriting.uncertainty:load_uncertain_digits",
        concepts="tenfold.data.embedded.handwriting.concept_data:load_concept_task",
    ),
    "mnist": DataSet(
        config="tenfold.data.files.mnist:MnistConfig",
        classification="tenfold.data.files.mnist:load_mnist",
        uncertainty="tenfold.data.files.mnist:load_uncertain_mnist",
    ),
    **{
        name: DataSet(
            config=f"tenfold.data.embedded.physics.{name}:{config}Config",
            regression=f"tenfold.data.embedded.physics.{name}:load_{name}",
        )
        for name, config in (("lorenz", "Lorenz"), ("nbody", "NBody"), ("molecules", "Molecules"))
    },
    "qm9": DataSet(config="tenfold.data.files.qm9:Qm9Config", regression="tenfold.data.files.qm9:load_qm9"),
    "photographs": DataSet(
        config="tenfold.data.embedded.photographs:PhotographsConfig",
        regression="tenfold.data.embedded.photographs:load_photographs",
    ),
    "phantoms": DataSet(
        config="tenfold.data.embedded.phantoms:PhantomsConfig",
        regression="tenfold.data.embedded.phantoms:load_phantoms",
    ),
    "slices": DataSet(
        config="tenfold.data.files.pairs:SlicesConfig", regression="tenfold.data.files.pairs:load_slices"
    ),
    "pairs": DataSet(config="tenfold.data.files.pairs:PairsConfig", regression="tenfold.data.files.pairs:load_pairs"),
    "table": DataSet(config="tenfold.data.files.tables:TableConfig", regression="tenfold.data.files.tables:load_table"),
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
    "cub_localisation": _LOCATED_FILES,
    "imagenet_localisation": _LOCATED_FILES,
    "openimages_localisation": _LOCATED_FILES,
    **{
        name: DataSet(
            config=f"tenfold.data.files.concepts:{config}Config", concepts=f"tenfold.data.files.concepts:load_{name}"
        )
        for name, config in (("cub_concepts", "CubConcepts"), ("awa2", "Awa2"), ("celeba", "CelebA"))
    },
    "concept_predictions": DataSet(
        config="tenfold.data.files.concept_predictions:ConceptPredictionsConfig",
        concepts="tenfold.data.files.concept_predictions:load_concept_predictions",
    ),
}


def load_multilabel(config: Any) -> MultiLabelData:
    """Load the multi-label data set that a configuration names.

    Raises:
        ValueError: Unknown data set, one that is not multi-label, or files that are missing or malformed.
    """
    return load_name(_reader(config, "multilabel", "no multi-label annotations"))(config)


def load_classification(
    config: Any, preprocessing: Preprocessing, splits: Sequence[str] = ("train", "val", "test")
) -> ClassificationData:
    """Load the single-label data set that a configuration names.

    Args:
        config: Settings of the data set; ``config.name`` selects it.
        preprocessing: The network's; ``read`` returns images resized by it, ``read_raw`` the stored ones.
        splits: Parts to load; the test part is always loaded. A part that the data set does not have is None.

    Raises:
        ValueError: Unknown data set, one that is not single-label, an unknown part, or files that are missing or
            malformed, with their path and what was expected.
    """
    return load_name(_reader(config, "classification", "no single-label classes"))(config, preprocessing, splits)


def load_localisation(config: Any, preprocessing: Preprocessing, train_size: int | None = None) -> LocalisationData:
    """Load the single-label data set with boxes or masks of its objects that a configuration names.

    Args:
        config: Settings of the data set; ``config.name`` selects it.
        preprocessing: The network's; val and test images are stretched to its size.
        train_size: Side of the training images before random crops; None: the network's size.

    Raises:
        ValueError: Unknown data set, one without boxes and masks, or files that are missing or malformed, with their
            path and what was expected.
    """
    return load_name(_reader(config, "localisation", "neither boxes nor masks"))(config, preprocessing, train_size)


def load_concepts(config: Any, preprocessing: Preprocessing, train_size: int | None = None) -> ConceptData:
    """Load the data set with concepts and classes that a configuration names.

    Args:
        config: Settings of the data set; ``config.name`` selects it.
        preprocessing: The network's; val and test images are resized by it.
        train_size: Side of the training images before random crops; None: the network's size.

    Raises:
        ValueError: Unknown data set, one without concepts, or files that are missing or malformed, with their path and
            what was expected.
    """
    return load_name(_reader(config, "concepts", "no concepts"))(config, preprocessing, train_size)


def load_uncertainty(config: Any) -> UncertaintyData:
    """Load the data set with out-of-distribution and ambiguous images that a configuration names.

    Raises:
        ValueError: Unknown data set, one without out-of-distribution images, or files that are missing or malformed.
    """
    return load_name(_reader(config, "uncertainty", "no out-of-distribution images"))(config)


def load_regression(config: Any) -> RegressionData:
    """Load the data set with real-valued targets that a configuration names.

    Raises:
        ValueError: Unknown data set, one without real-valued targets, or files that are missing or malformed.
    """
    return load_name(_reader(config, "regression", "no real-valued targets"))(config)


def _reader(config: Any, kind: str, lack: str) -> str:
    """Return ``module:function`` of a data set's loader of one kind."""
    reader: str | None = getattr(DATA.get(config.name), kind, None)
    if reader is None:
        usable = ", ".join(name for name, data in DATA.items() if getattr(data, kind))
        raise ValueError(f"data must be one of {usable}, got {config.name!r}, which has {lack}")
    return reader
