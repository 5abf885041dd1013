"""Predictors of a trained classifier; one based on CLIP also takes classes of the caller."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.methods.datadream.classifiers import add_adapters, scratch_network
from tenfold.methods.datadream.settings import Config
from tenfold.models.clip import Clip, ClipConfig, load_clip
from tenfold.models.clip_lora import load_lora_tensors, merge_lora
from tenfold.models.image_classifier import ImageClassifier
from tenfold.tasks import classification, prompts_by_class

REFERENCE_FILE = "clip.json"
"""Fingerprint of the CLIP that the adapters belong to, and the prompt template."""
PROTOTYPES, LOG_SCALE, ADAPTER = "prototypes", "log_scale", "adapter."
"""Names of a bundle's tensors."""


class DataDreamPredictor:
    """CLIP with merged adapters: logits and probabilities of its own classes, or of any classes given by prompts.

    Args:
        clip: Frozen CLIP.
        classes: Names of the K classes.
        prototypes: Unit vectors ``(K, D)``.
        log_scale: Logarithm of the inverse temperature, ``()``.
        prompt_template: Prompt with ``{}`` for the class name.
    """

    def __init__(
        self, clip: Clip, classes: tuple[str, ...], prototypes: Tensor, log_scale: Tensor, prompt_template: str
    ) -> None:
        self.clip = clip.eval()
        self.classes = classes
        self.preprocessing = clip.preprocessing
        self.prompt_template = prompt_template
        self.signature = classification(classes, clip.preprocessing, prompt_template=prompt_template)
        self.prototypes = prototypes.float().cpu()
        self._scale = float(log_scale.double().exp())

    def __call__(
        self,
        images: Tensor,
        classes: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        prompt_classes: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """``logits`` and ``probs``, float32 ``(B, K)`` on the CPU, for uint8 images ``(B, S, S, 3)``.

        Args:
            images: The batch.
            classes, prompts, prompt_classes: Classes of the caller, as in ``prompts_by_class``; none of them given:
                the model's own.

        Raises:
            ValueError: As in ``prompts_by_class``.
        """
        asked = prompts_by_class(self.prompt_template, classes, prompts, prompt_classes)
        return self.classify(self.embed(images), self.prototypes if asked is None else self.prototypes_of(asked))

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors, float32 ``(B, D)`` on the CPU, for uint8 images ``(B, S, S, 3)``."""
        return self.clip.embed_images(images).cpu()

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """Prototypes, float32 ``(K, D)`` on the CPU, of classes given by prompts; text embeddings are cached.

        Raises:
            ValueError: There is no class, or one has no prompt.
        """
        if not prompts:
            raise ValueError("prompts must hold at least one class, got none")
        for name, texts in prompts.items():
            if isinstance(texts, str) or not texts:
                raise ValueError(f"prompts of class {name!r} must be a list of at least one text, got {texts!r}")
        rows = self.clip.embed_texts([text for texts in prompts.values() for text in texts]).cpu()
        groups = rows.split([len(texts) for texts in prompts.values()])
        return torch.nn.functional.normalize(torch.stack([group.mean(0) for group in groups]), dim=-1)

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probs`` ``(B, K)`` of embeddings ``(B, D)`` for prototypes ``(K, D)``."""
        logits = self._scale * embeddings @ prototypes.T
        return {"probs": logits.softmax(dim=-1), "logits": logits}


class ScratchPredictor:
    """A convolutional network with a fixed set of classes."""

    def __init__(self, network: ImageClassifier, classes: tuple[str, ...], device: str) -> None:
        self.network = network.to(device).eval()
        self.classes = classes
        self.preprocessing = network.preprocessing
        self.signature = classification(classes, network.preprocessing)
        self._device = device

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``probs``, float32 ``(B, K)`` on the CPU, for uint8 images ``(B, S, S, 3)``."""
        with torch.inference_mode():
            logits = self.network(images.to(self._device)).float().cpu()
        return {"probs": logits.softmax(dim=-1), "logits": logits}


def load(bundle: Bundle, device: str = "cpu") -> DataDreamPredictor | ScratchPredictor:
    """Load the classifier of a bundle.

    Raises:
        ValueError: The CLIP that the bundle names cannot be loaded or has other weights than in training, or the
            bundle's tensors do not fit.
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
            raise ValueError(f"the weights in {bundle.folder} must fit {config.classifier}: {error}") from error
        return ScratchPredictor(network, metadata.classes, device)
    reference = json.loads(bundle.file(REFERENCE_FILE).read_text())
    model: dict[str, Any] = bundle.config["model"]
    clip = load_clip(ClipConfig(**model), device)
    if clip.fingerprint != reference["fingerprint"]:
        raise ValueError(
            f"CLIP {model['name']!r} (pretrained {model['pretrained']!r}) must have the weights that {bundle.folder} "
            f"was trained with ({reference['fingerprint'][:12]}), got {clip.fingerprint[:12]}; restore those weights "
            f"or train again"
        )
    adapter = {name.removeprefix(ADAPTER): value for name, value in tensors.items() if name.startswith(ADAPTER)}
    if adapter:
        add_adapters(clip, config, dropout=0.0)
        load_lora_tensors(clip, adapter)
        merge_lora(clip)
    return DataDreamPredictor(
        clip, metadata.classes, tensors[PROTOTYPES], tensors[LOG_SCALE], reference["prompt_template"]
    )
