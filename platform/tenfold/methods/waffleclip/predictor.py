"""Zero-shot predictor: CLIP with the prototypes of a bundle, or with classes of the caller."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tenfold.bundle import Bundle
from tenfold.methods.waffleclip.scoring import class_scores, prototypes
from tenfold.methods.waffleclip.settings import Aggregate
from tenfold.models.clip import Clip, ClipConfig, load_clip
from tenfold.tasks import classification, prompts_by_class

REFERENCE_FILE = "clip.json"
"""Fingerprint of the CLIP that the prototypes belong to, and the prompt template."""
SETS_KEPT = 64
"""Size of the LRU cache of prototypes of callers' classes."""


class WaffleClipPredictor:
    """Zero-shot classification by class prototypes; thread-safe.

    Args:
        clip: Frozen CLIP, moved to the device.
        classes: Names of the model's own K classes.
        tensors: ``prototypes (K, D)``; for the aggregate ``max`` instead ``prompt_embeddings (M, D)``, class by class,
            and ``prompt_counts (K,)``.
        aggregate: Aggregation of the scores of a class's prompts.
        prompt_template: Prompt with ``{}`` for the class name.
        device: Device of the towers.
    """

    def __init__(
        self,
        clip: Clip,
        classes: tuple[str, ...],
        tensors: Mapping[str, Tensor],
        aggregate: Aggregate,
        prompt_template: str,
        device: str,
    ) -> None:
        self.clip = clip.to(device)
        self.classes = classes
        self.preprocessing = clip.preprocessing
        self.prompt_template = prompt_template
        self.signature = classification(classes, clip.preprocessing, prompt_template=prompt_template)
        self.aggregate = aggregate
        self.tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        self._scale = clip.log_scale.float().cpu().exp()
        self._device = device
        self._asked: OrderedDict[tuple[tuple[str, ...], ...], Tensor] = OrderedDict()
        self._lock = threading.Lock()

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
        if asked is None:
            return self.answer(self.embed(images))
        return self.classify(self.embed(images), self.prototypes_of(asked))

    def answer(self, embeddings: Tensor) -> dict[str, Tensor]:
        """``probs`` and ``logits``, float32 ``(B, K)``, of the model's own classes, for embeddings ``(B, D)``."""
        if self.aggregate == "max":
            counts = self.tensors["prompt_counts"].tolist()
            return self._outputs(class_scores(embeddings, self.tensors["prompt_embeddings"], counts, "max"))
        return self.classify(embeddings, self.tensors["prototypes"])

    def embed(self, images: Tensor) -> Tensor:
        """Unit rows, float32 ``(B, D)`` on the CPU, for uint8 images ``(B, S, S, 3)``."""
        with torch.inference_mode():
            return self.clip.embed_images(images.to(self._device)).float().cpu()

    def prototypes_of(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """Prototypes, float32 ``(K, D)`` on the CPU, of the caller's classes, in the order of the mapping.

        A prototype is the mean over a class's prompts, normalised if the model's own are (``merged``). It is the mean
        for the aggregate ``max``, too, since a maximum has no prototype. Results are kept in an LRU cache.

        Raises:
            ValueError: There is no class, a class has no prompts, or a prompt is not a text.
        """
        key = tuple(tuple(texts) if not isinstance(texts, str) else () for texts in prompts.values())
        for name, texts in zip(prompts, key, strict=True):
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"prompts of class {name!r} must be a list of at least one text, none empty, got {prompts[name]!r}"
                )
        if not key:
            raise ValueError("prompts must hold at least one class, got none")
        with self._lock:
            if key in self._asked:
                self._asked.move_to_end(key)
                return self._asked[key]
        # Outside the lock, so that other threads do not wait for the text tower.
        made = self.clip.embed_texts([text for texts in key for text in texts]).float().cpu()
        found = prototypes(made, [len(texts) for texts in key], "merged" if self.aggregate == "merged" else "mean")
        with self._lock:
            self._asked[key] = found
            while len(self._asked) > SETS_KEPT:
                self._asked.popitem(last=False)
        return found

    def classify(self, embeddings: Tensor, prototypes: Tensor) -> dict[str, Tensor]:
        """``probs`` and ``logits``, float32 ``(B, K)``, for embeddings ``(B, D)`` and prototypes ``(K, D)``.

        Logits are the inner products times CLIP's learned inverse temperature. Means of prompts are shorter than 1 and
        are not normalised: the product with them is the mean cosine over the prompts.

        Raises:
            ValueError: The widths differ.
        """
        if embeddings.ndim != 2 or prototypes.ndim != 2 or embeddings.shape[1] != prototypes.shape[1]:
            raise ValueError(
                f"embeddings (B, D) and prototypes (K, D) must have one width D, got {tuple(embeddings.shape)} and "
                f"{tuple(prototypes.shape)}"
            )
        return self._outputs(embeddings @ prototypes.T)

    def _outputs(self, scores: Tensor) -> dict[str, Tensor]:
        logits = self._scale * scores
        return {"probs": logits.softmax(dim=-1), "logits": logits}


def load(bundle: Bundle, device: str = "cpu") -> WaffleClipPredictor:
    """Load the CLIP that a bundle names, with the bundle's prototypes.

    Raises:
        ValueError: The CLIP cannot be loaded, or has other weights than the one that the prototypes come from.
    """
    reference = json.loads(bundle.file(REFERENCE_FILE).read_text(encoding="utf-8"))
    clip = load_clip(ClipConfig(**bundle.config["model"]), device)
    if clip.fingerprint != reference["fingerprint"]:
        raise ValueError(
            f"CLIP {bundle.config['model']} must have the fingerprint {reference['fingerprint'][:12]}, with which the "
            f"prototypes in {bundle.folder} were computed, got {clip.fingerprint[:12]}; restore those weights, or run "
            f"the job again with these"
        )
    return WaffleClipPredictor(
        clip,
        bundle.metadata.classes,
        bundle.tensors(),
        bundle.config["method"]["aggregate"],
        reference["prompt_template"],
        device,
    )
