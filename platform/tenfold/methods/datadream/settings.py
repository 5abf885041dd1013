"""Settings of DataDream and of the ways to train on few shots that it is compared with."""

from dataclasses import dataclass
from typing import Literal

Scheme = Literal["cls", "dset", "unadapted", "is_synth", "disef", "real", "zero_shot"]
ADAPTED = ("cls", "dset")
"""Schemes that adapt the generator."""
REGENERATING = ("is_synth", "disef")
"""Schemes that start from noised real pictures."""
GENERATING = ("cls", "dset", "unadapted", "is_synth", "disef")
"""Schemes with synthetic pictures."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training; a Config that exists is a valid one.

    Defaults are the paper's where it states them; how long and with which batches the classifier is trained are the
    job's own settings (``run.num_epochs`` 60 and ``run.batch_size`` 256 in the authors' second release).
    """

    scheme: Scheme = "cls"
    """``cls``: an adapter of the generator for each class; ``dset``: one for all; ``unadapted``: the generator as it
    is; ``is_synth``: real shots noised and finished by the un-adapted generator; ``disef``: the same with captions;
    ``real``: no synthetic pictures; ``zero_shot``: CLIP as it is, no training."""
    train_on: Literal["both", "synthetic"] = "both"
    """``both``: real shots and synthetic pictures; ``real`` and ``zero_shot`` have nothing to choose from."""
    num_shots: int = 16
    """Real pictures of each class, drawn from the training part by the seed of the run; at least 1."""
    num_templates: int = 1
    """How many of the 27 sentences are used, at least 1; the same in all three stages."""

    generator: str = "tiny"
    """``tiny``: the one shipped here; a model of the hub, or a local folder in diffusers' format."""
    generator_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the generator's frozen weights; ``auto`` is bf16 on a GPU that has it, fp16 on others, fp32 on a CPU."""
    generator_compile: bool = False
    """Compile the network for sampling: minutes at first, then faster."""
    generator_revision: str | None = None
    """Revision on the hub; None: its newest."""
    generator_variant: str | None = None
    """Variant of the weights' files (``fp16``); None: the plain ones."""

    adapt_rank: int = 16
    """Rank of the generator's adapters; alpha is the same, so their scale is 1."""
    adapt_text_encoder: bool = True
    """Whether the generator's text encoder is adapted, too."""
    adapt_epochs: int = 200
    """Passes over the shots of a class (cls) or of all classes (dset)."""
    adapt_batch_size: int = 8
    """Pictures of an optimiser step; over all workers together in dset."""
    adapt_learning_rate: float = 1e-4
    """At its highest, after the warm-up."""
    adapt_schedule: Literal[
        "cosine", "constant", "linear", "polynomial", "constant_with_warmup", "cosine_with_restarts"
    ] = "cosine"
    """How the rate goes on after the warm-up; ``constant`` has none."""
    adapt_warmup_steps: int = 100
    """Optimiser steps from 0 to the highest rate."""
    adapt_weight_decay: float = 1e-2
    adapt_clip_norm: float = 1.0
    """Largest norm of the gradient."""
    adapt_crop: Literal["random", "center"] = "random"
    """Square that is cut out of a picture that is no square."""

    images_per_class: int = 500
    """Synthetic pictures of each class; also decides how often the real shots are repeated in an epoch."""
    guidance_scale: float = 2.0
    """Classifier-free guidance, at least 1; 1 is none."""
    num_inference_steps: int = 50
    block_size: int = 25
    """Pictures of a class that are made together: one forward pass of the generator has twice as many."""
    noise_strength: float = 0.5
    """is_synth and disef: share of the noise that the real picture gets, in (0, 1]."""
    clip_filter: bool = True
    """is_synth and disef: leave out pictures that CLIP, as it is, takes for another class."""
    filter_keep: float = 0.25
    """But keep at least this share of each class, those that CLIP finds likeliest; in [0, 1]."""
    captioner: str = "templates"
    """disef: ``templates`` takes the sentences that CLIP finds nearest to each shot; else an image-to-text model of the
    hub or a local folder, for transformers."""

    classifier: Literal["clip", "resnet50", "small_cnn"] = "clip"
    """``clip``: adapters in CLIP; the others are trained from scratch."""
    lora_rank: int = 16
    """Rank of CLIP's adapters."""
    lora_alpha: float = 32.0
    """Their scale is alpha / rank."""
    lora_dropout: float = 0.1
    adapt_image_tower: bool = True
    """Whether CLIP's picture tower gets adapters."""
    adapt_text_tower: bool = True
    """Whether CLIP's text tower gets adapters; without, the prototypes are computed once."""
    classes_per_step: int | None = None
    """Classes whose prototypes are computed in a training step: those of the batch and random others; None: all. Saves
    most of the time where there are a thousand."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` has momentum 0.9."""
    learning_rate: float = 1e-4
    """At its highest, after the warm-up."""
    min_learning_rate: float = 1e-8
    """Where the warm-up begins and the cosine ends."""
    warmup_epochs: int = 6
    """At most as many as the run has."""
    weight_decay: float = 1e-4
    real_weight: float = 0.8
    """Share of the real rows in the loss, in [0, 1]; the synthetic ones have the rest."""
    mixing: float = 0.2
    """Probability that a batch is mixed by CutMix or MixUp, real and synthetic rows apart; 0: never."""
    augment: Literal["photo", "light", "none"] = "photo"
    """``photo``: the paper's, for photographs; ``light``: small shifts, turns and stretches, for characters."""
    num_loader_workers: int = 0
    """Processes that read and augment; 0: the training process itself."""

    export_open_clip: bool = False
    """Put CLIP with its adapters merged into the bundle, as a folder that open_clip loads; as large as CLIP is."""
    figures: bool = True
    """Draw pictures before and after adaptation and how near their features come to real ones; samples the un-adapted
    generator a little."""

    def __post_init__(self) -> None:
        for name in (
            "num_shots", "num_templates", "adapt_rank", "adapt_epochs", "adapt_batch_size", "images_per_class",
            "num_inference_steps", "block_size", "lora_rank",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("adapt_learning_rate", "adapt_clip_norm", "lora_alpha", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "adapt_warmup_steps", "adapt_weight_decay", "min_learning_rate", "warmup_epochs", "weight_decay",
            "num_loader_workers",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("real_weight", "mixing", "filter_keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 < self.noise_strength <= 1:
            raise ValueError(f"noise_strength must lie in (0, 1], got {self.noise_strength}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must lie in [0, 1), got {self.lora_dropout}")
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale must be at least 1, got {self.guidance_scale}")
        if self.classes_per_step is not None and self.classes_per_step < 2:
            raise ValueError(f"classes_per_step must be at least 2 or null, got {self.classes_per_step}")
        if self.scheme != "zero_shot" and self.classifier == "clip":
            self._check_adapted()
        if self.scheme == "zero_shot" and self.classifier != "clip":
            raise ValueError(f"scheme zero_shot is CLIP as it is: set classifier=clip, got {self.classifier!r}")
        if not self.generator or not self.captioner:
            raise ValueError("generator and captioner must name something, got an empty text")

    def _check_adapted(self) -> None:
        if not (self.adapt_image_tower or self.adapt_text_tower):
            raise ValueError("adapt_image_tower and adapt_text_tower are both false: nothing would be trained")

    @property
    def synthetic(self) -> bool:
        """Whether synthetic pictures are used."""
        return self.scheme in GENERATING

    @property
    def real(self) -> bool:
        """Whether the classifier is trained on real shots."""
        return self.scheme == "real" or (self.synthetic and self.train_on == "both")
