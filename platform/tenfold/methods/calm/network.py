"""Classifier with the CALM head, and its training wrapper."""

from typing import cast

from torch import Tensor, nn

from tenfold.methods.calm.head import CalmHead
from tenfold.methods.calm.settings import Config
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier


class LogitsHead(nn.Module):
    """Adapter of ``CalmHead`` as the head of a classifier: feature map to logits, whose softmax is p(y|x).

    Args:
        calm: Head with the loss and the maps.
    """

    def __init__(self, calm: CalmHead) -> None:
        super().__init__()
        self.calm = calm

    def forward(self, h: Tensor) -> Tensor:
        """Map features ``(B, D, h, w)`` to logits ``(B, C)``."""
        return self.calm.logits(h)


class TrainedClassifier(nn.Module):
    """Wrapper that maps images and labels to the loss in one forward pass, as DDP requires.

    Args:
        classifier: The network that is saved.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the scalar loss in nats of images uint8 ``(B, S, S, 3)`` and labels int64 ``(B,)``."""
        return calm_head(self.classifier).loss(self.classifier.feature_map(images), labels)


def calm_classifier(config: Config, model: ModelConfig, num_classes: int, image_size: int) -> ImageClassifier:
    """Build the network with a new head.

    Raises:
        ValueError: As in ``build_classifier``, or for fewer than two classes.
    """

    def head(channels: int, classes: int) -> LogitsHead:
        calm = CalmHead(channels, classes, config.mode, config.prior, detach_normalizer=config.detach_normalizer)
        return LogitsHead(calm)

    return build_classifier(model, num_classes, image_size, head)


def calm_head(classifier: ImageClassifier) -> CalmHead:
    """Return the ``CalmHead`` of a classifier of ``calm_classifier``."""
    return cast(LogitsHead, classifier.head).calm
