"""Predictor of a trained multi-label classifier with a boosted head."""

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
    """Build the network with a ``BoostedCAMHead`` of the method's factor and mode."""

    def head(channels: int, classes: int) -> BoostedCAMHead:
        return BoostedCAMHead(channels, classes, method["boost"], method["boost_mode"])

    return build_classifier(model, num_classes, image_size, head)


def load(bundle: Bundle, device: str = "cpu") -> MultiLabelPredictor:
    """Load the predictor of a bundle, with its factor and mode.

    Raises:
        ValueError: If the weights don't fit the network that the bundle's settings name.
    """
    return load_multilabel_predictor(bundle, device, boosted_classifier)
