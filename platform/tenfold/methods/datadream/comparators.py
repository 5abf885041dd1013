"""What DataDream is compared with: synthetic pictures that start from real ones, captions for them, CLIP's filter.

IsSynth (He et al., "Is synthetic data from generative models ready for image recognition?", ICLR 2023) noises a real
picture and lets the un-adapted generator finish it. DISEF (da Costa et al., "Diversified in-domain synthesis with
efficient fine-tuning for few-shot classification", 2023) does so with captions of the pictures. Both leave out what
CLIP takes for another class.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data.images import FileImages
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.methods.datadream.few_shot import FewShotData
from tenfold.methods.datadream.losses import text_prototypes
from tenfold.methods.datadream.prompts import TEMPLATES, class_prompts
from tenfold.models.clip import Clip

Captioner = Callable[[FewShotData, int], list[list[str]]]
"""Provider of captions for disef: few-shot data and a class to at least one caption of each of its shots."""
CAPTIONS_PER_SHOT = 4
"""Sentences that the offline captioner gives of each shot."""
MAX_NEW_TOKENS = 40


def captioner(name: str, clip: Clip, device: torch.device) -> Captioner:
    """The captioner that the settings name.

    Args:
        name: ``templates``, or an image-to-text model for transformers: a folder or an id of the hub.
        clip: Ranks the sentences, for ``templates``.
        device: Where the captioning model runs.

    Raises:
        ValueError: The model can't be loaded.
    """
    if name == "templates":
        return lambda few_shot, label: _nearest_sentences(clip, few_shot, label)
    return ModelCaptioner(name, device)


def _nearest_sentences(clip: Clip, few_shot: FewShotData, label: int) -> list[list[str]]:
    """Of the 27 sentences about a class, those that CLIP finds nearest to each shot, best first."""
    sentences = class_prompts([few_shot.names[label]], few_shot.domain_word, TEMPLATES)[0]
    pictures = clip.embed_images(few_shot.images.read(few_shot.rows(label)))  # (n, D)
    ranked = (pictures @ clip.embed_texts(sentences).T).argsort(dim=1, descending=True)  # (n, 27)
    return [[sentences[place] for place in row[:CAPTIONS_PER_SHOT]] for row in ranked.tolist()]


class ModelCaptioner:
    """Captions by an image-to-text model of transformers (BLIP, GIT, ViT-GPT2 ...), after the class's own prompt.

    Args:
        name: Folder or id of the hub.
        device: Where it runs.

    Raises:
        ValueError: It can't be loaded.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"captioner {name!r} is no image-to-text model that transformers can load here: {error}; "
                f"give a folder or an id of the hub, or set method.captioner=templates"
            ) from error
        self._model = model.to(device).eval()
        self._device = device

    def __call__(self, few_shot: FewShotData, label: int) -> list[list[str]]:
        pictures = few_shot.images.read_raw(few_shot.rows(label))
        inputs = self._processor(images=pictures, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = [text.strip() for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
        prompt = few_shot.prompts[label][0]
        return [[f"{prompt}, {text}" if text else prompt] for text in texts]


@torch.no_grad()
def zero_shot_prototypes(clip: Clip, few_shot: FewShotData) -> Tensor:
    """Unit vectors ``(C, D)`` of the classes by CLIP as it is."""
    prompts = few_shot.prompts
    flat = clip.embed_texts([text for texts in prompts for text in texts])
    return text_prototypes(flat.view(len(prompts), len(prompts[0]), -1))


def clip_filter(
    run: Run, clip: Clip, few_shot: FewShotData, paths: Sequence[Sequence[Path]], keep: float
) -> list[list[Path]]:
    """Leave out pictures that CLIP takes for another class.

    Args:
        run: The machine; every worker must call it.
        clip: As it is, not adapted.
        few_shot: The classes.
        paths: Pictures of each class.
        keep: Share of a class that stays in any case: those with the highest probability of their class.

    Returns:
        What is left of each class, in the order of ``paths``, at least one picture.
    """
    prep = clip.preprocessing
    files = FileImages(
        [path for group in paths for path in group],
        prep.image_size,
        resize=prep.resize,
        interpolation=prep.interpolation,
    )
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
