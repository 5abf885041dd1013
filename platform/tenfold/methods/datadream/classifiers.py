"""Networks of stage C: CLIP with adapters, or a convolutional network from scratch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.methods.datadream.losses import clip_logits, text_prototypes
from tenfold.methods.datadream.settings import Config
from tenfold.models.clip import Clip
from tenfold.models.clip_lora import adapt_clip, load_lora_tensors, lora_tensors
from tenfold.models.image_classifier import ImageClassifier, ModelConfig, build_classifier

SCRATCH = {"resnet50": "torchvision:resnet50", "small_cnn": "small_cnn"}
"""Architectures from scratch, by their names in ``models.image_classifier``."""


class PromptedClip(nn.Module):
    """CLIP as a classifier of C classes given by their prompts.

    Its state dict holds the adapted weights alone.

    Args:
        clip: CLIP, with adapters (``add_adapters``) or without.
        prompts: P prompts of each class.
        learn_text: Whether the prototypes change in training; else they are computed once.
    """

    tokens: Tensor

    def __init__(self, clip: Clip, prompts: list[list[str]], *, learn_text: bool) -> None:
        super().__init__()
        self.clip = clip
        self.preprocessing = clip.preprocessing
        self.learn_text = learn_text
        tokens = clip.tokenize([text for texts in prompts for text in texts])
        self.register_buffer("tokens", tokens.view(len(prompts), len(prompts[0]), -1), persistent=False)
        self._frozen: Tensor | None = None

    def normalise(self, images: Tensor) -> Tensor:
        """Convert uint8 ``(B, S, S, 3)`` to normalised float ``(B, 3, S, S)``."""
        return self.clip.normalise(images)

    def prototypes(self, classes: Tensor | None = None) -> Tensor:
        """Unit vectors ``(C', D)`` of all or of some classes ``(C',)``, with gradients if the text tower learns."""
        if self.learn_text:
            return self._prototypes(self.tokens if classes is None else self.tokens[classes])
        if self._frozen is None:
            with torch.no_grad():
                self._frozen = self._prototypes(self.tokens)
        frozen = self._frozen.to(self.tokens.device)
        return frozen if classes is None else frozen[classes]

    def forward(self, pixels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Logits ``(B, C')`` of normalised images for all or some classes; each prototype is computed once."""
        features = self.clip.image_features(pixels).float()
        return clip_logits(features, self.prototypes(classes).float(), self.clip.log_scale, validate=False)

    def scorer(self) -> Callable[[Tensor], Tensor]:
        """Function from uint8 images to logits ``(B, C)``, with the prototypes of the current weights."""
        with torch.no_grad():
            prototypes = self.prototypes().float()
        scale = self.clip.log_scale

        def score(images: Tensor) -> Tensor:
            features = self.clip.image_features(self.clip.normalise(images)).float()
            return clip_logits(features, prototypes, scale, validate=False)

        return score

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return lora_tensors(self.clip)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        load_lora_tensors(self.clip, state_dict)

    def _prototypes(self, tokens: Tensor) -> Tensor:
        num_classes, num_prompts, length = tokens.shape
        features = self.clip.text_features(tokens.reshape(-1, length)).float()
        return text_prototypes(features.view(num_classes, num_prompts, -1), validate=False)


class ScratchClassifier(nn.Module):
    """A convolutional network trained from scratch, with the interface of ``PromptedClip``."""

    def __init__(self, network: ImageClassifier) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = network.preprocessing

    def normalise(self, images: Tensor) -> Tensor:
        return self.network.normalise(images)

    def forward(self, pixels: Tensor, classes: Tensor | None = None) -> Tensor:
        logits = self.network.head(self.network.backbone(pixels).mean((2, 3)))
        return logits if classes is None else logits[:, classes]

    def scorer(self) -> Callable[[Tensor], Tensor]:
        return self.network


def scratch_network(name: str, num_classes: int, image_size: int) -> ImageClassifier:
    """Initialise a network: Xavier-uniform convolutions, batch norm weight 1 and bias 0, head from Normal(0, 0.01).

    Args:
        name: One of ``SCRATCH``.
        num_classes: Number of classes C.
        image_size: Side of its images, which are centre-cropped as for CLIP.
    """
    network = build_classifier(ModelConfig(name=SCRATCH[name]), num_classes, image_size)
    network.preprocessing = replace(network.preprocessing, resize="crop", interpolation="bicubic")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    head: Any = network.head
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return network


def add_adapters(clip: Clip, config: Config, *, dropout: float) -> None:
    """Add the adapters that the settings describe to CLIP, in place.

    Raises:
        ValueError: CLIP has towers that cannot be adapted.
    """
    adapt_clip(
        clip,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=dropout,
        image_tower=config.adapt_image_tower,
        text_tower=config.adapt_text_tower,
    )


def build_network(config: Config, clip: Clip, prompts: list[list[str]]) -> PromptedClip | ScratchClassifier:
    """Build the network that the settings name; a ``clip`` that is to be trained gets its adapters in place.

    Raises:
        ValueError: CLIP has towers that cannot be adapted.
    """
    if config.classifier != "clip":
        return ScratchClassifier(scratch_network(config.classifier, len(prompts), clip.preprocessing.image_size))
    if config.scheme != "zero_shot":
        add_adapters(clip, config, dropout=config.lora_dropout)
    return PromptedClip(clip, prompts, learn_text=config.scheme != "zero_shot" and config.adapt_text_tower)
