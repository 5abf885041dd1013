"""Bundles of real methods with untrained weights."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.bundle import Bundle, save_trained
from tenfold.methods.boostlu.predictor import boosted_classifier
from tenfold.methods.boostlu.settings import Config as BoostConfig
from tenfold.methods.calm.network import calm_classifier
from tenfold.methods.calm.predictor import CalmPredictor
from tenfold.methods.calm.settings import Config as CalmConfig
from tenfold.methods.large_loss.predictor import BuildClassifier, MultiLabelPredictor, plain_classifier
from tenfold.methods.large_loss.settings import Config as LargeLossConfig
from tenfold.methods.posterior_annealing.predictor import RegressionEnsemble
from tenfold.methods.posterior_annealing.settings import Config as PosteriorConfig
from tenfold.metrics.regression.recalibration import IsotonicCalibrator
from tenfold.models.image_classifier import ModelConfig
from tenfold.models.regressors.build import RegressorConfig, build_regressor
from tenfold.tasks import ExplainingPredictor, Pixels, Slot

EXPLAINING_METHODS = ("large_loss", "boostlu", "calm")
LOADER = "tenfold.catalog:load_predictor"
_PARTIAL_LABELS: dict[str, tuple[type, BuildClassifier]] = {
    "large_loss": (LargeLossConfig, plain_classifier),
    "boostlu": (BoostConfig, boosted_classifier),
}


def make_real_bundle(
    folder: Path, method: str, *, network: str = "small_cnn", image_size: int = 32, num_classes: int = 3
) -> Bundle:
    """Save an untrained model of one of ``EXPLAINING_METHODS`` as training does."""
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


SERIES = (Slot(name="input", dtype="float32", shape=(2, -1)),)
TABLE = (Slot(name="input", dtype="float32", shape=(3,)),)
IMAGE = (Slot(name="input", dtype="float32", shape=(3, -1, -1), image=Pixels(max_value=1.0)),)
MOLECULE = (
    Slot(name="features", dtype="float32", shape=(-1, 15)),
    Slot(name="positions", dtype="float32", shape=(-1, 3)),
    Slot(name="n_atoms", dtype="int64", shape=()),
)
_NETWORKS = {
    SERIES: RegressorConfig(name="cnn1d", widths=(4, 4, 4)),
    TABLE: RegressorConfig(name="mlp", widths=(8, 8)),
    IMAGE: RegressorConfig(name="cnn2d_sr_small", widths=(4, 4, 4), upscale=2),
    MOLECULE: RegressorConfig(name="egnn", widths=(8,), depth=2),
}


def draw_inputs(slots: tuple[Slot, ...], num: int = 3, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """A random batch of each input; axes of any length get ``length``."""
    random = torch.Generator().manual_seed(seed)
    drawn = {}
    for slot in slots:
        shape = (num, *(length if each < 0 else each for each in slot.shape))
        if slot.dtype == "int64":
            drawn[slot.name] = torch.randint(1, length + 1, shape, generator=random)
        else:
            drawn[slot.name] = torch.rand(shape, generator=random)
    return drawn


def make_regression_bundle(
    folder: Path,
    slots: tuple[Slot, ...],
    targets: tuple[str, ...],
    *,
    num_members: int = 1,
    calibrator: tuple[Tensor, Tensor] | None = None,
    **settings: Any,
) -> tuple[Bundle, RegressionEnsemble]:
    """Save an untrained regressor as training does; return the bundle and the predictor to compare with.

    ``calibrator`` holds the expected and observed proportions of an isotonic recalibration; ``settings`` are the
    method's.
    """
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {}
    network = replace(_NETWORKS[slots], dropout=settings.pop("dropout", 0.0))
    config = PosteriorConfig(**settings)
    networks = [build_regressor(network, slots, len(targets)) for _ in range(num_members)]
    mean, std = torch.linspace(-1, 1, len(targets)), torch.linspace(1, 2, len(targets))
    more = {} if calibrator is None else {"isotonic.expected": calibrator[0], "isotonic.observed": calibrator[1]}
    predictor = RegressionEnsemble(
        networks, inputs=slots, classes=targets, mean=mean, std=std, uncertainty=config.uncertainty,
        num_passes=config.num_passes, input_noise=config.input_noise,
        calibrator=None if calibrator is None else IsotonicCalibrator().fit(*(each.numpy() for each in calibrator)),
    )  # fmt: skip
    for member, each in enumerate(networks):
        weights |= {f"member{member}.{name}": value for name, value in each.state_dict().items()}
    bundle = save_trained(
        folder,
        predictor,
        draw_inputs(slots, seed=1),
        config={"method": asdict(config), "model": asdict(network) | {"widths": list(network.widths or ())}},
        tensors={
            **weights, "target.mean": mean, "target.std": std, "target.scale": torch.tensor(1.0), **more,
        },
        method="posterior_annealing",
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
    )  # fmt: skip
    return bundle, predictor
