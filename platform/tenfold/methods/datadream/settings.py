"""Settings of DataDream and its few-shot baselines."""

from dataclasses import dataclass
from typing import Literal

Scheme = Literal["cls", "dset", "unadapted", "is_synth", "disef", "real", "zero_shot"]
ADAPTED = ("cls", "dset")
"""Schemes that adapt the generator."""
REGENERATING = ("is_synth", "disef")
"""Schemes that start from noised real images."""
GENERATING = ("cls", "dset", "unadapted", "is_synth", "disef")
"""Schemes with synthetic images."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training, checked on construction.

    Defaults are the paper's where it states them. Epochs and batch size of the classifier are settings of the run
    (``run.num_epochs`` 60 and ``run.batch_size`` 256 in the authors' second release).
    """

    scheme: Scheme = "cls"
    """``cls``: an adapter of the generator for each class; ``dset``: one for all; ``unadapted``: the generator without
    adapters; ``is_synth``: real shots noised and then denoised by the generator without adapters; ``disef``: the same
    with captions; ``real``: no synthetic images; ``zero_shot``: CLIP without training."""
    train_on: Literal["both", "synthetic"] = "both"
    """``both``: real shots and synthetic images; without effect on ``real`` and ``zero_shot``."""
    num_shots: int = 16
    """Real images of each class, drawn from the training split with the seed of the run; at least 1."""
    num_templates: int = 1
    """Number of the 27 prompt templates in use, from 1; the same in all three stages."""

    generator: str = "tiny"
    """``tiny`` for the generator that ships with the package; else a model on the hub, or a local folder in the format
    of diffusers."""
    generator_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Dtype of the generator's frozen weights; ``auto`` is bf16 on a GPU that supports it, fp16 on others, fp32 on a
    CPU."""
    generator_compile: bool = False
    """Whether the network is compiled for sampling: takes minutes at first, then faster."""
    generator_revision: str | None = None
    """Revision on the hub; null for the newest."""
    generator_variant: str | None = None
    """Variant of the weight files (``fp16``); null for the default files."""

    adapt_rank: int = 16
    """Rank of the generator's adapters; alpha is the same, so their scale is 1."""
    adapt_text_encoder: bool = True
    """Whether the generator's text encoder gets adapters, too."""
    adapt_epochs: int = 200
    """Epochs over the shots of a class (cls) or of all classes (dset)."""
    adapt_batch_size: int = 8
    """Images in an optimiser step; the total over all workers in dset."""
    adapt_learning_rate: float = 1e-4
    """Peak learning rate, after the warm-up."""
    adapt_schedule: Literal[
        "cosine", "constant", "linear", "polynomial", "constant_with_warmup", "cosine_with_restarts"
    ] = "cosine"
    """Learning-rate schedule after the warm-up; ``constant`` has no warm-up."""
    adapt_warmup_steps: int = 100
    """Optimiser steps of the linear warm-up from 0 to the peak rate."""
    adapt_weight_decay: float = 1e-2
    """Weight decay of the generator's adapters."""
    adapt_clip_norm: float = 1.0
    """Norm to which gradients are clipped."""
    adapt_crop: Literal["random", "center"] = "random"
    """Square crop of an image that is not square."""

    images_per_class: int = 500
    """Synthetic images of each class; divided by ``num_shots`` it is the number of repeats of the real shots in an
    epoch."""
    guidance_scale: float = 2.0
    """Scale of classifier-free guidance, at least 1; 1 is no guidance."""
    num_inference_steps: int = 50
    """Sampling steps of the generator."""
    block_size: int = 25
    """Images of a class that are generated together; a forward pass has twice as many, owing to guidance."""
    noise_strength: float = 0.5
    """is_synth and disef: fraction of the noise schedule applied to the real image, in (0, 1]."""
    clip_filter: bool = True
    """is_synth and disef: whether images that CLIP without adapters assigns to another class are discarded."""
    filter_keep: float = 0.25
    """Fraction of each class kept in any case by the filter, those with the highest probability; in [0, 1]."""
    captioner: str = "templates"
    """disef: ``templates`` for the prompts that are nearest to each shot by CLIP; else an image-to-text model of
    transformers, on the hub or in a local folder."""

    classifier: Literal["clip", "resnet50", "small_cnn"] = "clip"
    """``clip`` gets adapters; the others are trained from scratch."""
    lora_rank: int = 16
    """Rank of CLIP's adapters."""
    lora_alpha: float = 32.0
    """Alpha of CLIP's adapters; their scale is alpha / rank."""
    lora_dropout: float = 0.1
    """Dropout on the input of CLIP's adapters, in [0, 1)."""
    adapt_image_tower: bool = True
    """Whether CLIP's image tower gets adapters."""
    adapt_text_tower: bool = True
    """Whether CLIP's text tower gets adapters; otherwise the prototypes are computed once."""
    classes_per_step: int | None = None
    """Classes whose prototypes are computed in a training step: those of the batch and random others; null for all.
    Saves most of the time with a thousand classes."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``sgd`` has momentum 0.9."""
    learning_rate: float = 1e-4
    """Peak learning rate, after the warm-up."""
    min_learning_rate: float = 1e-8
    """Learning rate at the start of the warm-up and in the limit of the cosine decay."""
    warmup_epochs: int = 6
    """Epochs of the warm-up, at most ``run.num_epochs``."""
    weight_decay: float = 1e-4
    """Weight decay of the classifier."""
    real_weight: float = 0.8
    """Weight of the real rows in the loss, in [0, 1]; that of the synthetic rows is 1 minus it."""
    mixing: float = 0.2
    """Probability of CutMix or MixUp in a batch, real and synthetic rows separately."""
    augment: Literal["photo", "light", "none"] = "photo"
    """``photo``: the paper's, for photographs; ``light``: small affine transforms, for characters."""
    num_loader_workers: int = 0
    """Processes that read and augment; 0 for the training process itself."""

    export_open_clip: bool = False
    """Whether the bundle also holds CLIP with merged adapters in the format of open_clip, which is as large as CLIP."""
    figures: bool = True
    """Whether figures of samples before and after adaptation and of their feature distances to real images are drawn;
    this also samples the generator without adapters."""

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
            raise ValueError(
                f"classifier must be clip with scheme zero_shot, got {self.classifier!r}; set method.classifier=clip"
            )
        if not self.generator or not self.captioner:
            raise ValueError("generator and captioner must be names or folders, got an empty text")

    def _check_adapted(self) -> None:
        if not (self.adapt_image_tower or self.adapt_text_tower):
            raise ValueError(
                "adapt_image_tower or adapt_text_tower must be true, got false for both; nothing would be trained"
            )

    @property
    def synthetic(self) -> bool:
        """Whether synthetic images are used."""
        return self.scheme in GENERATING

    @property
    def real(self) -> bool:
        """Whether the classifier is trained on real shots."""
        return self.scheme == "real" or (self.synthetic and self.train_on == "both")
