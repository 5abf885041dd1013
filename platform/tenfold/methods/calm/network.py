"""The head inside a classifier, and what is trained."""

from typing import cast

from torch import Tensor, nn

from tenfold.methods.calm.head import CalmHead
from tenfold.methods.calm.settings import Config
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier


class LogitsHead(nn.Module):
    """``CalmHead`` as the head of a classifier: a feature map to logits, whose softmax is p(y|x).

    Args:
        calm: Where the loss and the maps are.
    """

    def __init__(self, calm: CalmHead) -> None:
        super().__init__()
        self.calm = calm

    def forward(self, h: Tensor) -> Tensor:
        """``(B, D, h, w)`` to ``(B, C)``."""
        return self.calm.logits(h)


class TrainedClassifier(nn.Module):
    """Pictures and labels to the loss in one forward pass, which is what several workers synchronise.

    Args:
        classifier: The network that is kept.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss in nats of uint8 ``(B, S, S, 3)`` and int64 ``(B,)``."""
        return calm_head(self.classifier).loss(self.classifier.feature_map(images), labels)


def calm_classifier(config: Config, model: ModelConfig, num_classes: int, image_size: int) -> ImageClassifier:
    """The network with a fresh head.

    Raises:
        ValueError: As in ``build_classifier``; fewer than two classes.
    """

    def head(channels: int, classes: int) -> LogitsHead:
        calm = CalmHead(channels, classes, config.mode, config.prior, detach_normalizer=config.detach_normalizer)
        return LogitsHead(calm)

    return build_classifier(model, num_classes, image_size, head)


def calm_head(classifier: ImageClassifier) -> CalmHead:
    """Where a classifier of ``calm_classifier`` has its loss and its maps."""
    return cast(LogitsHead, classifier.head).calm
