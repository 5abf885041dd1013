"""A trained multi-label classifier, ready to answer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map
from tenfold.models.activation_maps import check_class_labels, class_activation_maps, class_map_at
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier
from tenfold.types import Task

BuildClassifier = Callable[[Mapping[str, Any], ModelConfig, int, int], ImageClassifier]
"""The method's settings as plain values, the network's settings, number of classes, picture size: to the network."""


def plain_classifier(
    method: Mapping[str, Any], model: ModelConfig, num_classes: int, image_size: int
) -> ImageClassifier:
    """The network with a linear head on the mean of its feature map, whatever the method."""
    return build_classifier(model, num_classes, image_size)


def head_maps(model: ImageClassifier, features: Tensor, *, boosted: bool = True) -> Tensor:
    """Scores of every class at every place of a feature map; ``MultiLabelPredictor`` says which heads have them.

    Args:
        model: The network.
        features: ``(B, D, h, w)``.
        boosted: The maps whose mean over space is the logits; False: those before the head's boost, if it has one.

    Returns:
        float32 ``(B, K, h, w)``, the bias included.
    """
    head: Any = model.head
    if model.reads_map:
        return head.cam(features, boosted=boosted).float()
    return class_activation_maps(features, head.weight, head.bias).float()


class MultiLabelPredictor:
    """Logits and probabilities of every label of a picture, and where in it they come from.

    Args:
        model: A network with the plain head, or with a head that reads the feature map. The latter must have
            ``cam(features)``, the maps ``(B, K, h, w)`` that its logits are means of, ``cam(features, boosted=False)``,
            those maps before a boost, and ``cam_at(features, labels)``, the former ``(B, h, w)`` of one class each.
        classes: K names.
        device: Where it computes.
    """

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

    def explain(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """What a call gives, and the class activation map of one class of each picture, in one forward pass.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            labels: Class to explain for each picture, int64 ``(B,)``; None: the one with the highest logit.

        Returns:
            ``logits`` and ``probs`` as of a call; ``attributions`` float32 ``(B, S, S)``, each from 0 at its weakest
            place to 1 at its strongest (0 throughout where all places are alike); ``explained`` int64 ``(B,)``.

        Raises:
            ValueError: A label that is no class.
        """
        if labels is not None:
            check_class_labels(labels, len(images), len(self.classes))
        with torch.inference_mode():
            features, logits = self._features_and_logits(images)
            explained = logits.argmax(1) if labels is None else labels.to(self._device)
            maps = self._class_map_at(features, explained).float().cpu()
            # Stretched at the end: the strongest place of a coarse map falls between pixels.
            maps = normalize_score_map(resize_score_map(maps, self.preprocessing.image_size), "minmax")
        logits = logits.float().cpu()
        return {"probs": logits.sigmoid(), "logits": logits, "attributions": maps, "explained": explained.cpu()}

    def class_maps(self, images: Tensor, *, boosted: bool = True) -> Tensor:
        """Scores of every class at every place, as the head gives them.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            boosted: The maps whose mean over space is the logits; False: those before the head's boost, if it has one.

        Returns:
            float32 ``(B, K, h, w)`` on the predictor's device, the bias included.
        """
        with torch.inference_mode():
            return head_maps(self.model, self.model.feature_map(images.to(self._device)), boosted=boosted)

    def _features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.feature_map(images.to(self._device))
        return features, self.model.head(features if self.model.reads_map else features.mean((2, 3)))

    def _class_map_at(self, features: Tensor, labels: Tensor) -> Tensor:
        head: Any = self.model.head
        if self.model.reads_map:
            return head.cam_at(features, labels)
        return class_map_at(features, head.weight, None, labels)  # a bias would not outlive the normalisation


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
