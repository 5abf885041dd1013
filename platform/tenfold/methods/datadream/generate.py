"""Stage B: generate synthetic images of every class into a store that grows and is shared by all runs.

Every image has a random generator of its own, seeded by (seed, class, index), so neither the worker that generates it
nor an interruption changes it. The baselines generate here, too: the generator without adapters, and the schemes that
start from noised real images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from tenfold import __version__
from tenfold.engine.run import Run
from tenfold.engine.settings import JobConfig
from tenfold.hashing import content_hash
from tenfold.methods.datadream.adapt import Adapters, generator_config, generator_key
from tenfold.methods.datadream.few_shot import FewShotData, squares
from tenfold.methods.datadream.image_store import ImageStore
from tenfold.methods.datadream.settings import Config
from tenfold.methods.datadream.tasks import alone, each_task
from tenfold.models.diffusion import image_size, load_pipeline
from tenfold.models.diffusion_lora import load_adapter, merged_adapter
from tenfold.models.sampling import generate as draw_images

PREVIEW_BLOCK = 8
"""Images of a class in the figures that compare generators."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Real images as the starting point of synthetic ones."""

    strength: float
    """Fraction of the noise schedule that is applied to them, in (0, 1]."""
    texts: list[list[list[str]]] = field(default_factory=list)
    """Captions ``[class][shot][...]``, used in turn; empty for the class's own prompts."""


def generate(
    job: JobConfig,
    run: Run,
    few_shot: FewShotData,
    adapters: Adapters,
    *,
    count: int,
    labels: Sequence[int] | None = None,
    block_size: int | None = None,
    start: Start | None = None,
) -> ImageStore:
    """Fill the store of these settings up to ``count`` images of each class.

    Args:
        job: The settings.
        run: The machine.
        few_shot: Classes and shots.
        adapters: Result of stage A.
        count: Number of images M of each class; those already in the store are not generated again.
        labels: Classes to generate; None for all.
        block_size: Block size; None for that of the settings.
        start: Real images to start from; None to start from noise.

    Raises:
        ValueError: The generator or an adapter cannot be loaded.
        Interrupted: The user asked to stop; complete blocks are kept.
    """
    config: Config = job.method
    labels = range(len(few_shot.classes)) if labels is None else labels
    key = {
        "generator": generator_key(config, run),
        "adapter": adapters.digest,
        "prompts": few_shot.prompts,
        "guidance_scale": config.guidance_scale,
        "num_inference_steps": config.num_inference_steps,
        "seed": run.seed,
        "start": None if start is None else [start.strength, content_hash(start.texts), few_shot.fingerprint],
        "version": __version__,
    }
    store = ImageStore(run, key, block_size or config.block_size)
    with alone(run, store.name):
        missing = store.missing(run, labels, count)
        if missing:
            if start is not None:
                few_shot.check()
            sampler = _BlockSampler(config, run, few_shot, adapters, store, start)
            if run.is_main:
                classes = [
                    {"class": name, "prompts": prompts}
                    for name, prompts in zip(few_shot.classes, few_shot.prompts, strict=True)
                ]
                store.describe({"classes": classes, "settings": key})
            each_task(run, missing, sampler.draw, "generate: blocks")
    store.fetch(labels, count)
    return store


def image_seed(seed: int, label: int, index: int) -> int:
    """Seed of an image's noise, a function of the run's seed, the class and the image's number alone."""
    return int(content_hash([seed, label, index])[:15], 16)


class _BlockSampler:
    """Samples blocks of images with one pipeline, into which adapters are swapped."""

    def __init__(
        self,
        config: Config,
        run: Run,
        few_shot: FewShotData,
        adapters: Adapters,
        store: ImageStore,
        start: Start | None,
    ) -> None:
        self._config, self._run, self._few_shot = config, run, few_shot
        self._adapters, self._store, self._start = adapters, store, start
        self._pipeline: DiffusionPipeline = load_pipeline(generator_config(config), run.device)
        self._loaded: Path | None = None

    def draw(self, task: tuple[int, int]) -> None:
        label, block = task
        indices = self._store.indices(block)
        seeds = [image_seed(self._run.seed, label, index) for index in indices]
        options: dict[str, Any] = {
            "num_steps": self._config.num_inference_steps,
            "guidance_scale": self._config.guidance_scale,
        }
        if self._start is not None:
            options["init_images"] = self._real(label, indices)
            options["strength"] = self._start.strength
        adapter = self._adapters.of(label)
        prompts = self._prompts(label, indices)
        if adapter is None:
            images = draw_images(self._pipeline, prompts, seeds, **options)
        else:
            if adapter != self._loaded:
                load_adapter(self._pipeline, adapter)
                self._loaded = adapter
            with merged_adapter(self._pipeline):
                images = draw_images(self._pipeline, prompts, seeds, **options)
        self._store.write(label, block, images.numpy())

    def _prompts(self, label: int, indices: range) -> list[str]:
        prompts = self._few_shot.prompts[label]
        if self._start is None or not self._start.texts:
            return [prompts[index % len(prompts)] for index in indices]
        captions = self._start.texts[label]
        num_shots = self._few_shot.num_shots
        return [captions[index % num_shots][index // num_shots % len(captions[index % num_shots])] for index in indices]

    def _real(self, label: int, indices: range) -> torch.Tensor:
        """Shots that the images of a block start from, in turn."""
        rows = self._few_shot.rows(label)[[index % self._few_shot.num_shots for index in indices]]
        return torch.from_numpy(squares(self._few_shot.images.read_raw(rows), image_size(self._pipeline)))


def preview(job: JobConfig, run: Run, few_shot: FewShotData, labels: Sequence[int]) -> ImageStore:
    """Generate a few images of some classes without adapters, from the noise that the adapted generator starts with."""
    return generate(
        job, run, few_shot, Adapters(digest=None), count=PREVIEW_BLOCK, labels=labels, block_size=PREVIEW_BLOCK
    )
