"""Baselines IsSynth and DISEF: captions of real images, and filtering of synthetic images by CLIP.

IsSynth (He et al., "Is synthetic data from generative models ready for image recognition?", ICLR 2023) adds noise to a
real image and denoises it with the generator without adapters. DISEF (da Costa et al., "Diversified in-domain synthesis
with efficient fine-tuning for few-shot classification", 2023) does so with captions of the images as prompts. Both
discard images that CLIP assigns to another class.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.methods.datadream.few_shot import FewShotData
from tenfold.methods.datadream.image_store import image_source
from tenfold.methods.datadream.losses import text_prototypes
from tenfold.methods.datadream.prompts import TEMPLATES, class_prompts
from tenfold.models.clip import Clip

Captioner = Callable[[FewShotData, int], list[list[str]]]
"""Function from few-shot data and a class to at least one caption of each of its shots."""
CAPTIONS_PER_SHOT = 4
"""Captions of each shot by the offline captioner."""
MAX_NEW_TOKENS = 40


def captioner(name: str, clip: Clip, device: torch.device) -> Captioner:
    """Build the captioner that the settings name.

    Args:
        name: ``templates``, or an image-to-text model for transformers: a folder or an id on the hub.
        clip: Ranks the prompts, for ``templates``.
        device: Device of the captioning model.

    Raises:
        ValueError: The model cannot be loaded.
    """
    if name == "templates":
        return lambda few_shot, label: _nearest_prompts(clip, few_shot, label)
    return ModelCaptioner(name, device)


def _nearest_prompts(clip: Clip, few_shot: FewShotData, label: int) -> list[list[str]]:
    """Prompts nearest to each shot by CLIP, best first, among the 27 of its class."""
    prompts = class_prompts([few_shot.names[label]], few_shot.domain_word, TEMPLATES)[0]
    images = clip.embed_images(few_shot.images.read(few_shot.rows(label)))  # (n, D)
    ranked = (images @ clip.embed_texts(prompts).T).argsort(dim=1, descending=True)  # (n, 27)
    return [[prompts[place] for place in row[:CAPTIONS_PER_SHOT]] for row in ranked.tolist()]


class ModelCaptioner:
    """Captions by an image-to-text model of transformers (BLIP, GIT, ViT-GPT2 ...), appended to the class's own prompt.

    Args:
        name: Folder, or id on the hub.
        device: Device of the model.

    Raises:
        ValueError: The model cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"captioner must be an image-to-text model that transformers can load, got {name!r}: {error}; "
                f"set method.captioner to a folder or an id on the hub, or to templates"
            ) from error
        self._model = model.to(device).eval()
        self._device = device

    def __call__(self, few_shot: FewShotData, label: int) -> list[list[str]]:
        images = few_shot.images.read_raw(few_shot.rows(label))
        inputs = self._processor(images=images, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = [text.strip() for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
        prompt = few_shot.prompts[label][0]
        return [[f"{prompt}, {text}" if text else prompt] for text in texts]


@torch.no_grad()
def zero_shot_prototypes(clip: Clip, few_shot: FewShotData) -> Tensor:
    """Prototypes ``(C, D)`` of the classes by CLIP without adapters, unit vectors."""
    prompts = few_shot.prompts
    flat = clip.embed_texts([text for texts in prompts for text in texts])
    return text_prototypes(flat.view(len(prompts), len(prompts[0]), -1))


def clip_filter(
    run: Run, clip: Clip, few_shot: FewShotData, paths: Sequence[Sequence[Path]], keep: float
) -> list[list[Path]]:
    """Discard images that CLIP assigns to another class.

    Args:
        run: The machine; every worker must call it.
        clip: CLIP without adapters.
        few_shot: The classes.
        paths: Image files of each class.
        keep: Fraction of a class that is kept in any case: the images with the highest probability of their class.

    Returns:
        Remaining files of each class, in the order of ``paths``, at least one.
    """
    files = image_source([path for group in paths for path in group], clip.preprocessing)
    prototypes = zero_shot_prototypes(clip, few_shot)
    scale = clip.log_scale.exp()
    logits = predict_images(run, lambda images: scale * clip.embed_images(images) @ prototypes.T, files)
    labels = np.repeat(np.arange(len(paths)), [len(group) for group in paths])
    right = logits.argmax(1).numpy() == labels
    own = logits.softmax(1).numpy()[np.arange(len(labels)), labels]
    kept = []
    for label, group in enumerate(paths):
        mine = labels == label
        order = np.argsort(-own[mine], kind="stable")
        stays = right[mine].copy()
        stays[order[: max(1, int(np.ceil(keep * len(group))))]] = True
        kept.append([path for path, stay in zip(group, stays, strict=True) if stay])
    return kept
