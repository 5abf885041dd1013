"""A trained classifier, ready to answer; one that is CLIP also names classes that the caller brings along."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.methods.datadream.classifiers import scratch_network
from tenfold.methods.datadream.settings import Config
from tenfold.models.clip import Clip, ClipConfig, load_clip
from tenfold.models.clip_lora import adapt_clip, load_lora_tensors, merge_lora
from tenfold.models.image_classifier import ImageClassifier
from tenfold.types import Task

REFERENCE_FILE = "clip.json"
"""Which CLIP the adapters belong to, and the sentence that names a class."""
PROTOTYPES, LOG_SCALE, ADAPTER = "prototypes", "log_scale", "adapter."
"""Names in a bundle's tensors."""


class DataDreamPredictor:
    """CLIP with its adapters merged: logits and probabilities of its classes, or of any that have sentences.

    Args:
        clip: Frozen.
        classes: K names.
        prototypes: Unit vectors ``(K, D)``.
        log_scale: Logarithm of the factor on cosines, ``()``.
        prompt_template: One sentence with ``{}`` for the name.
    """

    task = Task.CLASSIFICATION

    def __init__(
        self, clip: Clip, classes: tuple[str, ...], prototypes: Tensor, log_scale: Tensor, prompt_template: str
    ) -> None:
        self.clip = clip.eval()
        self.classes = classes
        self.preprocessing = clip.preprocessing
        self.prompt_template = prompt_template
        self.prototypes = prototypes.float().cpu()
        self._scale = float(log_scale.double().exp())

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probs``, float32 ``(B, K)`` on the CPU, for uint8 pictures ``(B, S, S, 3)``."""
        return self.classify(self.embed(images), self.prototypes)

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors float32 ``(B, D)`` on the CPU for uint8 ``(B, S, S, 3)``."""
        return self.clip.embed_images(images).cpu()

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """Prototypes float32 ``(K, D)`` on the CPU of classes by their sentences; what was read before is remembered.

        Raises:
            ValueError: No class, or one without a sentence.
        """
        if not prompts:
            raise ValueError("prompts must name at least one class, got none")
        for name, texts in prompts.items():
            if isinstance(texts, str) or not texts:
                raise ValueError(f"class {name!r} needs a list of at least one sentence, got {texts!r}")
        rows = self.clip.embed_texts([text for texts in prompts.values() for text in texts]).cpu()
        groups = rows.split([len(texts) for texts in prompts.values()])
        return torch.nn.functional.normalize(torch.stack([group.mean(0) for group in groups]), dim=-1)

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probs`` ``(B, K)`` of embeddings ``(B, D)`` for prototypes ``(K, D)``."""
        logits = self._scale * embeddings @ prototypes.T
        return {"probs": logits.softmax(dim=-1), "logits": logits}


class ScratchPredictor:
    """A convolutional network that knows its own classes."""

    task = Task.CLASSIFICATION

    def __init__(self, network: ImageClassifier, classes: tuple[str, ...], device: str) -> None:
        self.network = network.to(device).eval()
        self.classes = classes
        self.preprocessing = network.preprocessing
        self._device = device

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probs``, float32 ``(B, K)`` on the CPU, for uint8 pictures ``(B, S, S, 3)``."""
        with torch.inference_mode():
            logits = self.network(images.to(self._device)).float().cpu()
        return {"probs": logits.softmax(dim=-1), "logits": logits}


def load(bundle: Bundle, device: str = "cpu") -> DataDreamPredictor | ScratchPredictor:
    """The classifier that a bundle describes.

    Raises:
        ValueError: The CLIP that the bundle names can't be loaded or has other weights than in training, or the
            bundle's tensors don't fit.
    """
    settings = dict(bundle.config["method"])
    settings.pop("name", None)
    config = Config(**settings)
    tensors, metadata = bundle.tensors(), bundle.metadata
    if config.classifier != "clip":
        network = scratch_network(config.classifier, len(metadata.classes), bundle.preprocessing.image_size)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"the weights in {bundle.folder} don't fit {config.classifier}: {error}") from error
        return ScratchPredictor(network, metadata.classes, device)
    reference = json.loads(bundle.file(REFERENCE_FILE).read_text())
    model: dict[str, Any] = bundle.config["model"]
    clip = load_clip(ClipConfig(**model), device)
    if clip.fingerprint != reference["fingerprint"]:
        raise ValueError(
            f"{bundle.folder} was trained on CLIP {model['name']!r} (pretrained {model['pretrained']!r}) with weights "
            f"{reference['fingerprint'][:12]}, but here that name has weights {clip.fingerprint[:12]}: "
            f"bring back the weights of the training, or train again"
        )
    adapter = {name.removeprefix(ADAPTER): value for name, value in tensors.items() if name.startswith(ADAPTER)}
    if adapter:
        adapt_clip(
            clip,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=0.0,
            image_tower=config.adapt_image_tower,
            text_tower=config.adapt_text_tower,
        )
        load_lora_tensors(clip, adapter)
        merge_lora(clip)
    return DataDreamPredictor(
        clip, metadata.classes, tensors[PROTOTYPES], tensors[LOG_SCALE], reference["prompt_template"]
    )
