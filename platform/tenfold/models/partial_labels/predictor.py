"""A trained multi-label classifier, ready to answer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier
from tenfold.types import Task

BuildClassifier = Callable[[Mapping[str, Any], ModelConfig, int, int], ImageClassifier]
"""The method's settings as plain values, the network's settings, number of classes, picture size: to the network."""


def plain_classifier(
    method: Mapping[str, Any], model: ModelConfig, num_classes: int, image_size: int
) -> ImageClassifier:
    """The network with a linear head on the mean of its feature map, whatever the method."""
    return build_classifier(model, num_classes, image_size)


class MultiLabelPredictor:
    """Logits and probabilities of every label of a picture."""

    task = Task.MULTI_LABEL

    def __init__(self, model: ImageClassifier, classes: tuple[str, ...], device: str) -> None:
        self.model = model.to(device).eval()
        self.classes = classes
        self.preprocessing = model.preprocessing
        self._device = device

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probs``, float32 ``(B, K)`` on the CPU, for uint8 pictures ``(B, S, S, 3)``."""
        with torch.inference_mode():
            logits = self.model(images.to(self._device)).float().cpu()
        return {"probs": logits.sigmoid(), "logits": logits}


def load(bundle: Bundle, device: str = "cpu", build: BuildClassifier = plain_classifier) -> MultiLabelPredictor:
    """The network that a bundle describes, with its weights.

    Raises:
        ValueError: The weights don't fit the network that the bundle's settings name.
    """
    settings = {**bundle.config["model"], "pretrained": False, "checkpoint": None}
    metadata = bundle.metadata
    classes, size = metadata.classes, bundle.preprocessing.image_size
    model = build(bundle.config["method"], ModelConfig(**settings), len(classes), size)
    try:
        model.load_state_dict(bundle.tensors())
    except RuntimeError as error:
        raise ValueError(f"the weights in {bundle.folder} don't fit model {settings['name']!r}: {error}") from error
    return MultiLabelPredictor(model, classes, device)
