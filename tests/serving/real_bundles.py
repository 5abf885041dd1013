"""Bundles of the methods that explain, with weights as they were drawn: what is served is not whether they are good."""

from dataclasses import asdict
from pathlib import Path

import torch

from tenfold.bundle import Bundle, save_trained
from tenfold.methods.boostlu.predictor import boosted_classifier
from tenfold.methods.boostlu.settings import Config as BoostConfig
from tenfold.methods.calm.network import calm_classifier
from tenfold.methods.calm.predictor import CalmPredictor
from tenfold.methods.calm.settings import Config as CalmConfig
from tenfold.methods.large_loss.settings import Config as LargeLossConfig
from tenfold.models.image_classifier import ModelConfig
from tenfold.models.partial_labels.predictor import BuildClassifier, MultiLabelPredictor, plain_classifier
from tenfold.types import ExplainingPredictor

EXPLAINING_METHODS = ("large_loss", "boostlu", "calm")
LOADER = "tenfold.catalog:load_predictor"
_PARTIAL_LABELS: dict[str, tuple[type, BuildClassifier]] = {
    "large_loss": (LargeLossConfig, plain_classifier),
    "boostlu": (BoostConfig, boosted_classifier),
}


def make_real_bundle(
    folder: Path, method: str, *, network: str = "small_cnn", image_size: int = 32, num_classes: int = 3
) -> Bundle:
    """An untrained model of ``EXPLAINING_METHODS``, saved as a training saves it."""
    torch.manual_seed(0)
    model_config = ModelConfig(name=network, pretrained=False)
    classes = tuple(f"class {k}" for k in range(num_classes))
    if method == "calm":
        calm = CalmConfig()
        settings = asdict(calm)
        model = calm_classifier(calm, model_config, num_classes, image_size)
        predictor: ExplainingPredictor = CalmPredictor(model, calm, classes, "cpu")
    else:
        config_class, build = _PARTIAL_LABELS[method]
        settings = asdict(config_class())
        model = build(settings, model_config, num_classes, image_size)
        predictor = MultiLabelPredictor(model, classes, "cpu")
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return save_trained(
        folder,
        predictor,
        torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8),
        config={"method": settings, "model": asdict(model_config)},
        tensors=model.state_dict(),
        method=method,
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
    )
