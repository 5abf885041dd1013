"""Bundles of a tiny colour model, and their way into a store."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from tenfold.bundle import Bundle, save_bundle
from tenfold.tasks import multi_label
from tenfold.tracking.registry import Registered, register
from tenfold.tracking.runs import Tracker
from tenfold.types import Preprocessing

PREDICTOR = '''
"""Mean colour times a weight, in a package that only PYTHONPATH knows."""
from tenfold.bundle import load_bundle

class Predictor:
    def __init__(self, bundle):
        self.signature = bundle.metadata.signature
        self.weight = bundle.tensors()["weight"]

    def __call__(self, images):
        logits = images.float().mean(dim=(1, 2)) / 255 @ self.weight.T
        return {"probs": logits.sigmoid(), "logits": logits}

def load(folder, device="cpu"):
    return Predictor(load_bundle(folder))
'''
LOADER = "colour_predictor:load"


def make_bundle(folder: Path, seed: int = 0, **changes: Any) -> Bundle:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 3, generator=generator)
    images = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8, generator=generator)
    probe = {"images": images, "logits": images.float().mean(dim=(1, 2)) / 255 @ weight.T}
    arguments: dict[str, Any] = {
        "config": {"made_for": str(folder)},  # two tests never share a digest, and so a cached copy
        "tensors": {"weight": weight},
        "method": "large_loss",
        "signature": multi_label(("one", "two"), Preprocessing(image_size=4)),
        "metrics": {"map": 0.5},
        "data_name": "scenes",
        "data_fingerprint": "f1",
        "files": {"probe.safetensors": to_safetensors(probe)},
    }
    return save_bundle(folder / f"bundle-{seed}", **{**arguments, **changes})


def log_and_register(
    tracker: Tracker, folder: Path, name: str, value: float, seed: int = 0, **changes: Any
) -> Registered:
    model_uri = tracker.log_bundle(make_bundle(folder, seed).folder, name, LOADER)
    arguments: dict[str, Any] = {"metric": "map", "mode": "max", "data_fingerprint": "f1"}
    return register(tracker.uri, model_uri, name, run_id=tracker.run_id, value=value, **{**arguments, **changes})
