"""Predictor of a trained multi-label classifier: logits, probabilities and class activation maps."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map
from tenfold.models.activation_maps import check_class_labels, class_activation_maps, class_map_at
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier
from tenfold.tasks import multi_label

BuildClassifier = Callable[[Mapping[str, Any], ModelConfig, int, int], ImageClassifier]
"""Builds a network from the method's settings (plain values), the model's settings, num_classes and image size."""


def plain_classifier(
    method: Mapping[str, Any], model: ModelConfig, num_classes: int, image_size: int
) -> ImageClassifier:
    """Build the network with a linear head on the spatial mean of its feature map, whatever the method."""
    return build_classifier(model, num_classes, image_size)


def head_maps(model: ImageClassifier, features: Tensor, *, boosted: bool = True) -> Tensor:
    """Compute the class activation maps of all classes; see ``MultiLabelPredictor`` for the heads that have them.

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
    """Predicts logits and probabilities of every label of an image, and explains them by class activation maps.

    Args:
        model: A network with the plain head, or with a head that reads the feature map. The latter must have
            ``cam(features)``, the maps ``(B, K, h, w)`` whose spatial means are its logits,
            ``cam(features, boosted=False)``, the maps before the boost, and ``cam_at(features, labels)``, the former
            ``(B, h, w)`` for one class per image.
        classes: K names.
        device: Device of the network.
    """

    def __init__(self, model: ImageClassifier, classes: tuple[str, ...], device: str) -> None:
        self.model = model.to(device).eval()
        self.classes = classes
        self.preprocessing = model.preprocessing
        self.signature = multi_label(classes, model.preprocessing, explains=True)
        self._device = device

    def __call__(self, images: Tensor, *, explain: bool = False) -> dict[str, Tensor]:
        """Return ``logits`` and ``probs``, float32 ``(B, K)`` on the CPU, of uint8 images ``(B, S, S, 3)``.

        With ``explain``, the maps as well, as ``self.explain(images)``.
        """
        if explain:
            return self.explain(images)
        with torch.inference_mode():
            logits = self.model(images.to(self._device)).float().cpu()
        return {"probs": logits.sigmoid(), "logits": logits}

    def explain(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Predict, and return the class activation map of one class per image, in one forward pass.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            labels: Class to explain for each image, int64 ``(B,)``; None: the class with the highest logit.

        Returns:
            ``logits`` and ``probs`` as in ``__call__``; ``attributions`` float32 ``(B, S, S)``, each min-max normalised
            to [0, 1] (0 throughout for a constant map); ``explained`` int64 ``(B,)``.

        Raises:
            ValueError: If a label is not a class.
        """
        if labels is not None:
            check_class_labels(labels, len(images), len(self.classes))
        with torch.inference_mode():
            features, logits = self._features_and_logits(images)
            explained = logits.argmax(1) if labels is None else labels.to(self._device)
            maps = self._class_map_at(features, explained).float().cpu()
            # Normalised after resizing: the maximum of a coarse map falls between pixels.
            maps = normalize_score_map(resize_score_map(maps, self.preprocessing.image_size), "minmax")
        logits = logits.float().cpu()
        return {"probs": logits.sigmoid(), "logits": logits, "attributions": maps, "explained": explained.cpu()}

    def class_maps(self, images: Tensor, *, boosted: bool = True) -> Tensor:
        """Compute the class activation maps of all classes.

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
        return class_map_at(features, head.weight, None, labels)  # the normalisation cancels a bias


def load(bundle: Bundle, device: str = "cpu", build: BuildClassifier = plain_classifier) -> MultiLabelPredictor:
    """Load the predictor of a bundle.

    Raises:
        ValueError: If the weights don't fit the network that the bundle's settings name.
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
