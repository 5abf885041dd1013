"""Pre-training of the small networks on single digits, which takes the place of ImageNet for digit scenes.

The backbone learns to classify images of one digit, from the source digits of the training scenes and none of those of
validation and test. Runs with the same source digits share the result.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tenfold import __version__
from tenfold.data.catalog import load_multilabel
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.multilabel import MultiLabelSplit
from tenfold.engine.fit import Clock, FitPlan, fit
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.models.image_classifier import EMBEDDED_PRETRAINING, ImageClassifier, ModelConfig, build_classifier
from tenfold.types import Batch

NUM_EPOCHS = 8
BATCH_SIZE = 32
"""Batch over all workers together, so that more workers do not make the weights worse."""
LEARNING_RATE = 2e-3


def load_embedded_pretraining(run: Run, config: ModelConfig, data: Any, model: ImageClassifier) -> None:
    """Load the pre-trained backbone into a small network if its settings ask for it; leave other networks unchanged.

    Args:
        run: Context of the run.
        config: Settings of the network.
        data: Settings of the scenes; their seed selects the source digits for training.
        model: The network of those settings; changed in place.

    Raises:
        ValueError: The data set is not handwriting.
    """
    if config.name in EMBEDDED_PRETRAINING and config.pretrained and config.checkpoint is None:
        model.backbone.load_state_dict(pretrained_backbone(run, data, config.name))


def pretrained_backbone(run: Run, data: Any, name: str = "small_cnn") -> dict[str, Tensor]:
    """Train, or reuse, the backbone of ``small_cnn`` or ``dilated_cnn`` for handwriting scenes, and return its weights.

    Args:
        run: Context of the run.
        data: Settings of the scenes; their seed selects the source digits for training.
        name: Name of the network.

    Raises:
        ValueError: The data set is not handwriting.
    """
    if not isinstance(data, HandwritingConfig):
        raise ValueError(  # noqa: TRY004 - a setting of the user, not a programming error
            f"data must be handwriting for {name}, which is pre-trained on handwriting only, got {data.name!r}; "
            f"set model.pretrained=false, or another network such as model=resnet50"
        )
    single = replace(
        data, max_digits=1, cooccurrence=0.0, cooccurrence_test=None, num_train=4000, num_val=500, num_test=1
    )
    loaded = run.once_per_node(lambda: load_multilabel(single))
    key = {"data": loaded.fingerprint, "epochs": NUM_EPOCHS, "workers": run.world_size, "version": __version__}

    def work(folder: Path) -> None:
        batch_size = max(1, BATCH_SIZE // run.world_size)
        model = build_classifier(ModelConfig(name=name), len(loaded.classes), loaded.image_size)
        result = fit(
            run,
            model,
            _loss,
            run.loader(lambda rows: _read(loaded.train, rows), len(loaded.train.images), batch_size, shuffle=True),
            FitPlan(num_epochs=NUM_EPOCHS, monitor="val/accuracy", stage="pretrain"),
            optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=LEARNING_RATE),
            schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
            evaluate=lambda bare: {"val/accuracy": _accuracy(run, bare, loaded.val)},
        )
        if run.is_main:
            backbone = result.model.get_submodule("backbone").cpu().state_dict()
            save_file(backbone, folder / "backbone.safetensors")

    return load_file(run.stage(f"pretrain_{name}", key, work, seed=data.seed) / "backbone.safetensors")


def _read(split: MultiLabelSplit, rows: np.ndarray) -> Batch:
    return {"images": split.images.read(rows), "labels": torch.from_numpy(split.full[rows].argmax(1))}


def _loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
    return functional.cross_entropy(model(batch["images"]), batch["labels"])


def _accuracy(run: Run, model: nn.Module, split: MultiLabelSplit) -> float:
    return float((predict_images(run, model, split.images).argmax(1).numpy() == split.full.argmax(1)).mean())
