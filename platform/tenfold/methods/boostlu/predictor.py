"""A trained multi-label classifier with a boosted head, ready to answer."""

from collections.abc import Mapping
from typing import Any

from tenfold.bundle import Bundle
from tenfold.methods.boostlu.head import BoostedCAMHead
from tenfold.methods.large_loss.predictor import MultiLabelPredictor
from tenfold.methods.large_loss.predictor import load as load_multilabel_predictor
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier


def boosted_classifier(
    method: Mapping[str, Any], model: ModelConfig, num_classes: int, image_size: int
) -> ImageClassifier:
    """The network with a head that boosts the positive scores of its class activation maps before their mean."""

    def head(channels: int, classes: int) -> BoostedCAMHead:
        return BoostedCAMHead(channels, classes, method["boost"], method["boost_mode"])

    return build_classifier(model, num_classes, image_size, head)


def load(bundle: Bundle, device: str = "cpu") -> MultiLabelPredictor:
    """The network that a bundle describes, with its weights, its factor and its mode.

    Raises:
        ValueError: The weights don't fit the network that the bundle's settings name.
    """
    return load_multilabel_predictor(bundle, device, boosted_classifier)
