"""A model small enough to check by hand, in a real bundle; imported by name in the replicas."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from serve.settings import ServedModel
from tenfold.bundle import PROBE_FILE, Bundle, load_bundle, save_bundle
from tenfold.types import Preprocessing, Task

LOADER = "tests.serving.stand_ins:load_predictor"
CLASSES = ("red", "green", "blue")
SIZE = 8
POISON = 251
"""A picture whose first value is this makes the predictor raise, if the bundle says so."""


class ColourPredictor:
    """Logits are a linear map of the mean colour; ``batch_size`` tells how many pictures shared the call."""

    def __init__(self, bundle: Bundle) -> None:
        metadata = bundle.metadata
        self.task, self.classes, self.preprocessing = metadata.task, metadata.classes, metadata.preprocessing
        self._weight = bundle.tensors()["weight"]
        self._delay_s = float(bundle.config["delay_s"])
        self._poisonable = bool(bundle.config["poisonable"])

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        time.sleep(self._delay_s)
        if self._poisonable and bool((images[:, 0, 0, 0] == POISON).any()):
            raise ValueError("a poisoned picture")
        logits = images.double().mean(dim=(1, 2)).div(255).float() @ self._weight
        batch_size = torch.full((len(images), 1), float(len(images)))
        return {"probs": logits.sigmoid(), "logits": logits, "batch_size": batch_size}


def load_predictor(bundle: Bundle, device: str = "cpu") -> ColourPredictor:
    return ColourPredictor(bundle)


def make_bundle(
    folder: Path,
    *,
    seed: int = 0,
    size: int = SIZE,
    delay_s: float = 0.0,
    poisonable: bool = False,
    shift: float = 0.0,
    classes: tuple[str, ...] = CLASSES,
    task: Task = Task.MULTI_LABEL,
) -> Bundle:
    """``shift`` is added to the probe's logits: above the tolerance, it makes a model that is not the trained one."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, len(classes), generator=generator)
    images = torch.randint(0, 250, (4, size, size, 3), dtype=torch.uint8, generator=generator)
    logits = images.double().mean(dim=(1, 2)).div(255).float() @ weight
    return save_bundle(
        folder,
        config={"delay_s": delay_s, "poisonable": poisonable},
        tensors={"weight": weight},
        method="colour",
        task=task,
        classes=classes,
        preprocessing=Preprocessing(image_size=size),
        metrics={"mAP": 0.5},
        data_name="none",
        data_fingerprint="0" * 64,
        files={PROBE_FILE: save({"images": images, "logits": logits + shift})},
    )


def served(bundle: Bundle, name: str = "colour", version: str = "1", **options: object) -> ServedModel:
    return ServedModel(name=name, version=version, folder=str(bundle.folder), loader=LOADER, **options)  # type: ignore[arg-type]


def expected_logits(folder: Path | str, images: Tensor) -> Tensor:
    """What the predictor must answer, computed apart from all of serving."""
    return ColourPredictor(load_bundle(folder))(images)["logits"]
