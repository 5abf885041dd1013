"""Stage B: draw synthetic pictures of every class into a store that grows and is shared by all runs.

Every picture has a generator of its own, seeded by (seed, class, index): which worker draws it, and after which stop,
does not change it. Schemes that are compared with DataDream draw here, too: the un-adapted generator, and those that
start from noised real pictures (``regenerate``).
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
from tenfold.models.diffusion import load_pipeline, picture_size
from tenfold.models.diffusion_lora import load_adapter, merged_adapter
from tenfold.models.sampling import generate as draw_pictures

PREVIEW_BLOCK = 8
"""Pictures of a class in the figures that compare generators."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Real pictures that synthetic ones start from."""

    strength: float
    """Share of the noise, in (0, 1]."""
    texts: list[list[list[str]]] = field(default_factory=list)
    """Captions ``[class][shot][...]``, used in turn; empty: the class's own prompts."""


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
    """Fill the store of these settings up to ``count`` pictures of each class.

    Args:
        job: The settings.
        run: The machine.
        few_shot: Classes and shots.
        adapters: From stage A.
        count: Pictures M of each class; what the store holds already is not made again.
        labels: Classes to draw; None: all.
        block_size: Instead of the settings' own.
        start: Real pictures to start from; None: from noise alone.

    Raises:
        ValueError: The generator or an adapter can't be loaded.
        Interrupted: The user asked to stop; whole blocks are kept.
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
            painter = _Painter(config, run, few_shot, adapters, store, start)
            if run.is_main:
                classes = [
                    {"class": name, "prompts": prompts}
                    for name, prompts in zip(few_shot.classes, few_shot.prompts, strict=True)
                ]
                store.describe({"classes": classes, "settings": key})
            each_task(run, missing, painter.draw, "generate: blocks")
    store.fetch(labels, count)
    return store


def picture_seed(seed: int, label: int, index: int) -> int:
    """Seed of one picture's noise: a function of the run's seed, the class and the picture's number alone."""
    return int(content_hash([seed, label, index])[:15], 16)


class _Painter:
    """Draws blocks with one pipeline, in which adapters are swapped."""

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
        seeds = [picture_seed(self._run.seed, label, index) for index in indices]
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
            pictures = draw_pictures(self._pipeline, prompts, seeds, **options)
        else:
            if adapter != self._loaded:
                load_adapter(self._pipeline, adapter)
                self._loaded = adapter
            with merged_adapter(self._pipeline):
                pictures = draw_pictures(self._pipeline, prompts, seeds, **options)
        self._store.write(label, block, pictures.numpy())

    def _prompts(self, label: int, indices: range) -> list[str]:
        prompts = self._few_shot.prompts[label]
        if self._start is None or not self._start.texts:
            return [prompts[index % len(prompts)] for index in indices]
        captions = self._start.texts[label]
        num_shots = self._few_shot.num_shots
        return [captions[index % num_shots][index // num_shots % len(captions[index % num_shots])] for index in indices]

    def _real(self, label: int, indices: range) -> torch.Tensor:
        """The shots that the pictures of a block start from: in turn."""
        rows = self._few_shot.rows(label)[[index % self._few_shot.num_shots for index in indices]]
        return torch.from_numpy(squares(self._few_shot.images.read_raw(rows), picture_size(self._pipeline)))


def preview(job: JobConfig, run: Run, few_shot: FewShotData, labels: Sequence[int]) -> ImageStore:
    """A few pictures of some classes from the generator before adaptation, with the noise of the later ones."""
    return generate(
        job, run, few_shot, Adapters(digest=None), count=PREVIEW_BLOCK, labels=labels, block_size=PREVIEW_BLOCK
    )
