"""``Run`` on a Ray Train worker."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from torch import nn

from tenfold.engine.progress import Progress, WrittenProgress
from tenfold.engine.run import Run, finite
from tenfold.engine.storage import STOP_FILE, Storage

STOP_POLL_S = 1.0


class RayRun(Run):
    """One of ``world_size`` workers that train a model together."""

    def __init__(self, **options: Any) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.local_rank = context.get_local_rank()
        self.world_size = context.get_world_size()
        super().__init__(device=ray.train.torch.get_device(), **options)
        self._polled_at = 0.0
        self._stopped = False

    def prepare(self, model: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(model)

    def progress(self, total: int | None, description: str) -> Progress:
        if not (self.is_main and self._show_progress):
            return super().progress(total, description)
        return WrittenProgress(self.storage, total, description)

    def stop_requested(self) -> bool:
        """Check on rank 0, at most once a second, for the stop file that the driver leaves in the run's folder."""
        if self.is_main and not self._stopped and time.monotonic() - self._polled_at > STOP_POLL_S:
            self._stopped = self.storage.exists(STOP_FILE)
            self._polled_at = time.monotonic()
        return self._stopped

    def _keep(self, stage: str, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        kept = None if checkpoint is None else ray.train.Checkpoint.from_directory(checkpoint)
        ray.train.report({**finite(metrics), "stage": stage, "step": step}, checkpoint=kept)

    @contextmanager
    def restore(self, stage: str) -> Iterator[Path | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            # A run has one stream of checkpoints; the newest may belong to another loop of the recipe.
            about = Storage(folder).read_json("about.json")
            yield Path(folder) if about["stage"] == stage else None
