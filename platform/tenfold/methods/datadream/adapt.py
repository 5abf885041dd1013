"""Stage A: adapt the generator to the shots, with one adapter for each class (cls) or one for all (dset).

Kim et al., "DataDream", ECCV 2024: LoRA on the attention of the UNet and of the text encoder, trained with the
generator's own loss on the prompts of stage B.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tenfold import __version__
from tenfold.engine.fit import Clock, FitPlan, fit
from tenfold.engine.run import Run
from tenfold.engine.settings import JobConfig
from tenfold.files import write_atomically
from tenfold.hashing import content_hash
from tenfold.methods.datadream.few_shot import FewShotData, square, squares
from tenfold.methods.datadream.noise import add_noise, diffusion_loss
from tenfold.methods.datadream.schedules import diffusion_warmup_cosine
from tenfold.methods.datadream.settings import ADAPTED, Config
from tenfold.methods.datadream.source import SeededSource, divide, largest_divisor
from tenfold.methods.datadream.tasks import TaskRun, alone, each_task
from tenfold.models.diffusion import (
    DiffusionConfig,
    alphas_cumprod,
    encode_latents,
    image_size,
    load_pipeline,
    pipeline_fingerprint,
    prediction_type,
    tokenize,
)
from tenfold.models.diffusion_lora import (
    ADAPTER_FILE,
    Denoiser,
    adapter_tensors,
    add_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from tenfold.types import Batch

REPORTS = 20
"""Most reports of the loss, each with a checkpoint, in a training of the common adapter."""
ABOUT = "class.json"
"""File beside each adapter that names its class, written last."""
COMMON = "common"
"""Folder of the adapter for all classes."""


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Result of stage A."""

    digest: str | None
    """Hash of everything that the adapters depend on; None where the generator is not adapted."""
    folder: Path | None = None
    """Folder of all adapters; None where the generator is not adapted."""
    common: bool = False
    """Whether one adapter serves all classes."""

    def of(self, label: int) -> Path | None:
        """Folder of a class's adapter, in the format of ``pipe.load_lora_weights``; None where there is none."""
        if self.folder is None:
            return None
        return self.folder / (COMMON if self.common else adapter_name(label))


def generator_config(config: Config) -> DiffusionConfig:
    """Configuration of the generator that the settings name."""
    return DiffusionConfig(
        name=config.generator,
        dtype=config.generator_dtype,
        compile=config.generator_compile,
        revision=config.generator_revision,
        variant=config.generator_variant,
    )


def generator_key(config: Config, run: Run) -> dict[str, Any]:
    """Everything about the generator that its images depend on."""
    return {
        "fingerprint": run.once_per_node(lambda: pipeline_fingerprint(generator_config(config))),
        "dtype": config.generator_dtype,
        "device": run.device.type,
    }


def adapter_name(label: int) -> str:
    """Folder name of a class: its number, since class names may hold slashes."""
    return f"{label:05d}"


def adapt(job: JobConfig, run: Run, few_shot: FewShotData) -> Adapters:
    """Train the adapters for these shots, unless a run with the same inputs has done so.

    Raises:
        ValueError: A shot cannot be decoded, or the generator cannot be loaded or adapted.
        Interrupted: The user asked to stop; finished adapters and checkpoints are kept.
    """
    config: Config = job.method
    if config.scheme not in ADAPTED:
        return Adapters(digest=None)
    common = config.scheme == "dset"
    names = (
        "scheme", "adapt_rank", "adapt_text_encoder", "adapt_epochs", "adapt_batch_size", "adapt_learning_rate",
        "adapt_schedule", "adapt_warmup_steps", "adapt_weight_decay", "adapt_clip_norm", "adapt_crop",
    )  # fmt: skip
    key = {
        "generator": generator_key(config, run),
        "shots": few_shot.fingerprint,
        "prompts": few_shot.prompts,
        "seed": run.seed,
        "precision": job.run.precision,
        # A training shared by several workers sums in another order; independent ones are unaffected.
        "workers": run.world_size if common else None,
        "version": __version__,
        **{name: getattr(config, name) for name in names},
    }
    digest = content_hash(key)

    def work(folder: Path) -> None:
        few_shot.check()
        pipeline = load_pipeline(generator_config(config), run.device)
        if common:
            _adapt_common(job, run, few_shot, pipeline, folder / COMMON)
        else:
            _adapt_classes(job, run, few_shot, pipeline, folder, digest)

    with alone(run, f"datadream_adapt-{digest[:16]}"):
        folder = run.stage("datadream_adapt", key, work)
    return Adapters(digest=digest, folder=folder, common=common)


def _adapt_classes(
    job: JobConfig, run: Run, few_shot: FewShotData, pipeline: DiffusionPipeline, folder: Path, digest: str
) -> None:
    """Train an adapter for each class that has none yet."""

    def train(label: int) -> None:
        seed = int(content_hash([run.seed, label])[:8], 16) % 2**31
        place = f"adapt-{digest[:16]}/{adapter_name(label)}"
        options: dict[str, Any] = {"seed": seed, "deterministic": job.run.deterministic}
        with closing(TaskRun(run, place, **options)) as own:
            _train_adapter(job, own, few_shot, few_shot.rows(label), pipeline, passes_per_epoch=job.method.adapt_epochs)
            about = {"class": few_shot.classes[label], "prompts": few_shot.prompts[label], "shots": few_shot.num_shots}
            _publish(pipeline, folder / adapter_name(label), about)
            own.storage.remove()

    missing = run.share([label for label in range(len(few_shot.classes)) if not _done(folder / adapter_name(label))])
    each_task(run, missing, train, "adapt: classes")


def _adapt_common(job: JobConfig, run: Run, few_shot: FewShotData, pipeline: DiffusionPipeline, folder: Path) -> None:
    """Train one adapter on all shots, data-parallel over the workers."""
    epochs = job.method.adapt_epochs
    rows = np.arange(len(few_shot.images))
    passes = epochs // largest_divisor(epochs, REPORTS)
    _train_adapter(job, run, few_shot, rows, pipeline, passes_per_epoch=passes)
    if run.is_main:
        _publish(pipeline, folder, {"class": None, "classes": list(few_shot.classes), "shots": few_shot.num_shots})


def _train_adapter(
    job: JobConfig,
    run: Run,
    few_shot: FewShotData,
    rows: np.ndarray,
    pipeline: DiffusionPipeline,
    *,
    passes_per_epoch: int,
) -> None:
    """Train an adapter on some of the shots; it is left in the pipeline."""
    config: Config = job.method
    remove_adapter(pipeline)
    add_adapter(
        pipeline, rank=config.adapt_rank, alpha=config.adapt_rank, text_encoder=config.adapt_text_encoder, seed=run.seed
    )
    examples = _Examples(pipeline, few_shot, rows, config.adapt_crop)
    batch_size = divide(config.adapt_batch_size, run.world_size)
    loader = run.loader(lambda chosen: examples.read(chosen, 0), len(rows), batch_size, shuffle=True)
    source = SeededSource(loader, examples.read, seed=run.seed, rank=run.rank, passes=passes_per_epoch)
    fit(
        run,
        AdapterModel(pipeline),
        examples.loss,
        source,
        FitPlan(
            num_epochs=config.adapt_epochs // passes_per_epoch,
            clip_norm=config.adapt_clip_norm,
            precision=job.run.precision,
            checkpoint_every_s=job.run.checkpoint_every_s,
            stage="adapt",
        ),
        optimizer=lambda bare: torch.optim.AdamW(
            [value for value in bare.parameters() if value.requires_grad],
            lr=config.adapt_learning_rate,
            weight_decay=config.adapt_weight_decay,
        ),
        schedule=lambda optimizer, steps: _schedule(config, optimizer, steps),
    )


class AdapterModel(Denoiser):
    """The generator in training; its state dict holds the adapter alone, which keeps checkpoints small."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        self._pipeline = [pipeline]  # in a list, so that it is not registered as a submodule

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return adapter_tensors(self._pipeline[0])

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        load_adapter(self._pipeline[0], state_dict)


class _Examples:
    """Shots as latents with their prompts, and the loss on them.

    Images with a fixed crop go through the VAE once, those with a random crop at each reading.
    """

    def __init__(self, pipeline: Any, few_shot: FewShotData, rows: np.ndarray, crop: str) -> None:
        self._pipeline, self._images, self._rows = pipeline, few_shot.images, rows
        self._size = image_size(pipeline)
        self._kind = prediction_type(pipeline)
        self._alphas = alphas_cumprod(pipeline).to(pipeline.unet.device)
        prompts = few_shot.prompts
        labels, places = few_shot.labels[rows], rows % few_shot.num_shots
        texts = [prompts[label][place % len(prompts[label])] for label, place in zip(labels, places, strict=True)]
        self._texts = list(dict.fromkeys(texts))
        self._text_of = torch.tensor([self._texts.index(text) for text in texts])
        self._tokens = tokenize(pipeline, self._texts)
        fixed = crop == "center" or all(
            image.shape[0] == image.shape[1] for row in rows for image in self._images.read_raw([row])
        )
        self._latents = self._encode_all() if fixed else None

    def read(self, chosen: np.ndarray, seed: int) -> Batch:
        """Read shots: ``mean`` and ``std`` of their latents ``(B, C, h, h)``, and ``text`` ``(B,)``."""
        index = torch.from_numpy(chosen)
        batch = {"text": self._text_of[index]}
        if self._latents is not None:
            return {**batch, "mean": self._latents[0][index], "std": self._latents[1][index]}
        generator = np.random.default_rng(seed)
        places = [(generator.random(), generator.random()) for _ in chosen]
        images = self._images.read_raw(self._rows[chosen])
        cut = [square(image, self._size, place) for image, place in zip(images, places, strict=True)]
        mean, std = encode_latents(self._pipeline, torch.from_numpy(np.stack(cut)))
        return {**batch, "mean": mean, "std": std}

    def loss(self, model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        """Mean squared error of the predicted noise or velocity, at a random timestep for each image."""
        clean = batch["mean"] + batch["std"] * torch.randn_like(batch["mean"])
        noise = torch.randn_like(clean)
        times = torch.randint(len(self._alphas), (len(clean),), device=clean.device)
        alpha_bar = self._alphas[times]
        noisy = add_noise(clean, noise, alpha_bar, validate=False)
        used, rows = batch["text"].unique(return_inverse=True)
        prediction = model(noisy, times, self._tokens[used], rows)
        return diffusion_loss(prediction, clean, noise, alpha_bar, self._kind, validate=False)

    def _encode_all(self) -> tuple[Tensor, Tensor]:
        parts = []
        for start in range(0, len(self._rows), 16):
            images = self._images.read_raw(self._rows[start : start + 16])
            parts.append(encode_latents(self._pipeline, torch.from_numpy(squares(images, self._size))))
        mean, std = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return mean, std


def _schedule(config: Config, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    if config.adapt_schedule != "cosine":
        return get_scheduler(
            config.adapt_schedule, optimizer, num_warmup_steps=config.adapt_warmup_steps, num_training_steps=steps
        )
    shares = diffusion_warmup_cosine(1.0, config.adapt_warmup_steps, steps)
    return LambdaLR(optimizer, lambda step: float(shares[min(step, steps - 1)]))


def _done(folder: Path) -> bool:
    return (folder / ABOUT).is_file() and (folder / ADAPTER_FILE).is_file()


def _publish(pipeline: DiffusionPipeline, folder: Path, about: Mapping[str, Any]) -> None:
    """Write an adapter's folder atomically."""
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        save_adapter(pipeline, partial)
        write_atomically(partial / ABOUT, json.dumps(about, indent=2).encode())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
