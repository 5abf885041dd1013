"""Predictor of a trained CALM or CAM classifier: logits, probabilities and attribution maps."""

import json
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.methods.calm.attribution import attribution_map
from tenfold.methods.calm.distributions import log_class_likelihood
from tenfold.methods.calm.network import calm_classifier, calm_head
from tenfold.methods.calm.settings import Config
from tenfold.metrics.localisation.maps import Normalization, normalize_score_map, resize_score_map
from tenfold.models.activation_maps import check_class_labels, class_map_at
from tenfold.models.image_classifier import ImageClassifier, ModelConfig
from tenfold.tasks import classification

SUPERCLASSES_FILE = "superclasses.json"
"""Maps each class index to the classes of its superclass; present if the training data had superclasses."""


class CalmPredictor:
    """Predicts logits and probabilities of every class, and explains them by attribution maps.

    Args:
        model: A network of ``calm_classifier``.
        config: Settings of its training.
        classes: C names.
        device: Device of the network.
        superclasses: Maps each class to the classes of its superclass, itself included; None if unknown.

    Raises:
        ValueError: If the settings need superclasses and there are none.
    """

    def __init__(
        self,
        model: ImageClassifier,
        config: Config,
        classes: tuple[str, ...],
        device: str,
        superclasses: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        check_superclasses_known(config, superclasses)
        self.model = model.to(device).eval()
        self.config = config
        self.classes = classes
        self.superclasses = superclasses
        self.preprocessing = model.preprocessing
        self.signature = classification(classes, model.preprocessing, explains=True)
        self._device = device

    def __call__(self, images: Tensor, *, explain: bool = False) -> dict[str, Tensor]:
        """Return ``logits`` and ``probs``, float32 ``(B, C)`` on the CPU, of uint8 images ``(B, S, S, 3)``.

        With ``explain``, the maps as well, as ``self.explain(images)``.
        """
        if explain:
            return self.explain(images)
        with torch.inference_mode():
            logits = self.model(images.to(self._device)).float().cpu()
        return {"probs": logits.softmax(dim=1), "logits": logits}

    def explain(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Predict, and return the attribution map of one class per image, in one forward pass.

        Args:
            images: uint8 ``(B, S, S, 3)``.
            labels: Class to explain for each image, int64 ``(B,)``; None: the most probable class.

        Returns:
            ``logits`` and ``probs`` as in ``__call__``; ``attributions`` float32 ``(B, S, S)``: probabilities divided
            by the maximum of the image (raw class scores of ``cam`` are min-max normalised), 0 throughout for a
            constant map; ``explained`` int64 ``(B,)``.

        Raises:
            ValueError: If a label is not a class.
        """
        if labels is not None:
            check_class_labels(labels, len(images), len(self.classes))
        with torch.inference_mode():
            features = self.model.feature_map(images.to(self._device))
            logits, maps, explained = self._explain(features, labels)
            maps = normalize_score_map(resize_score_map(maps.float(), self.preprocessing.image_size), self.stretching)
            logits = logits.float().cpu()
        return {
            "probs": logits.softmax(dim=1),
            "logits": logits,
            "attributions": maps.cpu(),
            "explained": explained.cpu(),
        }

    @property
    def stretching(self) -> Normalization:
        """Normalisation of maps for display: only probabilities have a meaningful zero."""
        return "minmax" if self.config.map_mode.startswith("vanilla") else "max"

    def _explain(self, features: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, maps ``(B, h, w)`` and explained classes."""
        head, mode = calm_head(self.model), self.config.map_mode
        if head.mode == "cam" and mode == "vanilla":  # the scores of one class instead of all
            logits = head.logits(features)
            explained = logits.argmax(1) if labels is None else labels.to(self._device)
            return logits, class_map_at(features, head.conv_last.weight, head.conv_last.bias, explained), explained
        f, a = head(features)
        logits = head.logits(features) if head.mode == "cam" else log_class_likelihood(f, a, head.prior)
        explained = logits.argmax(1) if labels is None else labels.to(self._device)
        return logits, attribution_map(f, a, explained, mode, self.superclasses, head.prior), explained


def check_superclasses_known(config: Config, superclasses: Mapping[int, tuple[int, ...]] | None) -> None:
    """Check that there are superclasses if the attribution needs them.

    Raises:
        ValueError: If ``attribution`` is a superclass mode and the data have no superclasses.
    """
    if "superclass" in config.map_mode and superclasses is None:
        raise ValueError(
            f"attribution {config.map_mode} needs data with superclasses; choose another mode, such as jointll"
        )


def load(bundle: Bundle, device: str = "cpu") -> CalmPredictor:
    """Load the predictor of a bundle.

    Raises:
        ValueError: If the weights don't fit the network that the bundle's settings name.
    """
    settings = {**bundle.config["model"], "pretrained": False, "checkpoint": None}
    config = config_of(bundle.config["method"])
    classes = bundle.metadata.classes
    model = calm_classifier(config, ModelConfig(**settings), len(classes), bundle.preprocessing.image_size)
    try:
        model.load_state_dict(bundle.tensors())
    except RuntimeError as error:
        raise ValueError(f"the weights in {bundle.folder} don't fit model {settings['name']!r}: {error}") from error
    superclasses = None
    if SUPERCLASSES_FILE in bundle.metadata.files:
        stored = json.loads(bundle.file(SUPERCLASSES_FILE).read_text())
        superclasses = {int(label): tuple(members) for label, members in stored.items()}
    return CalmPredictor(model, config, classes, device, superclasses)


def config_of(settings: Mapping[str, object]) -> Config:
    """Parse the settings of a bundle, in which tuples are stored as lists."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    values.pop("name", None)
    return Config(**cast(dict, values))
