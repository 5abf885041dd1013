"""``Run``: the runtime interface of a recipe.

It provides devices, shards, collectives, checkpoints, stages and progress, the same in a plain process (``PlainRun``,
below) and on a Ray Train worker (``RayRun``, in ``ray_run``).
"""

import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tenfold.engine.loader import Loader
from tenfold.engine.progress import Progress, terminal_bar
from tenfold.engine.randomness import random_state, set_determinism, set_random_state
from tenfold.engine.storage import Storage
from tenfold.hashing import content_hash
from tenfold.types import Batch

Task = TypeVar("Task")
Answer = TypeVar("Answer")
CHECKPOINTS_KEPT = 2
MAIN_STAGE = "fit"
"""Loop whose metrics keep their names; those of other loops are prefixed with the loop's name."""


class Interrupted(Exception):  # noqa: N818 - a granted request, not an error
    """Raised when the user asked to stop; a checkpoint was written and the same command resumes from it."""


class Recorder(Protocol):
    """Store of a run's metrics and figures, such as ``tenfold.tracking.runs.Tracker``."""

    @property
    def run_id(self) -> str: ...
    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_figure(self, name: str, figure: Any) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: Path, folder: str = "") -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a recipe."""

    bundle: Path
    """Folder of the trained model."""
    metrics: dict[str, float]
    metric: str
    """Name of the metric that decides which model is better."""
    mode: Literal["max", "min"]
    data_fingerprint: str
    history: list[dict[str, float]]
    """Metrics of each epoch."""


class Run:
    """One worker's view of a job. Attributes are read-only for recipes.

    Args:
        folder: Folder or URL of this run's own files; other runs never write there.
        shared: Folder or URL of stages, shared by runs with the same inputs; None takes ``folder``.
        seed: Seed of all randomness in this run.
        device: Device of this worker's tensors; None is the CPU.
        recorder: Receives metrics and figures of rank 0; None discards them.
        on_epoch: Called on rank 0 with the metrics and number of each finished epoch.
        deterministic: Whether the same hardware must give bit-identical results.
        progress: Whether to show progress bars.
    """

    rank = 0
    local_rank = 0
    world_size = 1

    def __init__(
        self,
        *,
        folder: str | Path,
        shared: str | Path | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        recorder: Recorder | None = None,
        on_epoch: Callable[[dict[str, float], int], None] | None = None,
        deterministic: bool = True,
        progress: bool = True,
    ) -> None:
        self.storage = Storage(folder)
        self.shared = Storage(shared if shared is not None else folder)
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.recorder = recorder
        self._on_epoch = on_epoch
        self._show_progress = progress
        self.scratch = Path(tempfile.mkdtemp(prefix="tenfold-"))
        """Temporary folder of this worker, deleted when the run is closed."""
        set_determinism(deterministic)
        self.seed_all()
        self._open_stages: list[tuple[Storage, Path]] = []
        self._sent: dict[Path, int] = {}
        """Stage files already in the object store, with their modification times."""

    def close(self) -> None:
        """Delete this worker's temporary files."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only worker that writes records."""
        return self.rank == 0

    def seed_all(self) -> None:
        """Reseed every random generator of this worker: same seed and rank, same numbers."""
        value = int(np.random.SeedSequence((self.seed, self.rank)).generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)

    # -- placement

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move the model to this worker's device; its gradients are averaged over the workers."""
        return model.to(self.device)

    def to_device(self, batch: Batch) -> Batch:
        """Move the batch to this worker's device."""
        if self.device.type == "cpu":
            return batch
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def loader(self, read: Callable[[np.ndarray], Batch], num_examples: int, batch_size: int, **options: Any) -> Loader:
        """Return this worker's shard of a data set; options as in ``Loader``."""
        options.setdefault("seed", self.seed)
        return Loader(read, num_examples, batch_size, rank=self.rank, world_size=self.world_size, **options)

    # -- collectives: every worker must call them, in the same order

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce(self, value: Tensor, op: str = "sum") -> Tensor:
        """Return the sum, max or mean of a tensor over the workers, on its own device."""
        operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "mean": dist.ReduceOp.SUM}
        if op not in operations:
            raise ValueError(f"op must be one of {sorted(operations)}, got {op!r}")
        if self.world_size == 1:
            return value
        result = value.detach().to(self.device).clone()
        dist.all_reduce(result, operations[op])
        if op == "mean":
            result = result / self.world_size
        return result.to(value.device)

    def all_gather(self, value: Tensor) -> list[Tensor]:
        """Return the tensors of all workers, by rank; all have the same shape."""
        if self.world_size == 1:
            return [value]
        mine = value.detach().to(self.device).contiguous()
        gathered = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(gathered, mine)
        return [part.to(value.device) for part in gathered]

    def gather_rows(self, values: Tensor, index: Tensor, num_rows: int) -> Tensor:
        """Gather the rows computed by each worker for its shard, in the order of the data set.

        Args:
            values: This worker's rows ``(n, ...)``; the same n on every worker, as with a ``Loader``.
            index: Row indices ``(n,)``.
            num_rows: Total number of rows N.

        Returns:
            ``(N, ...)`` on the CPU, the same on every worker.
        """
        whole = torch.empty((num_rows, *values.shape[1:]), dtype=values.dtype)
        for rows, part in zip(self.all_gather(index), self.all_gather(values), strict=True):
            whole[rows.cpu()] = part.cpu()
        return whole

    def share(self, value: Answer) -> Answer:
        """Broadcast rank 0's value to every worker; plain Python values only."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def share_all(self, value: Answer) -> list[Answer]:
        """Gather every worker's value, by rank, on every worker; plain Python values only."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts

    def once_per_node(self, make: Callable[[], Answer]) -> Answer:
        """Make a value that leaves files (a cache): on one worker of each node first, then on the others."""
        value = make() if self.local_rank == 0 else None
        self.barrier()
        return value if value is not None else make()

    def synchronise_buffers(self, model: nn.Module) -> None:
        """Broadcast rank 0's buffers (batch-norm statistics), so that all workers evaluate the same model."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task], description: str = "tasks") -> list[Answer]:
        """Run independent tasks distributed over the workers; returns the answers in task order on every worker.

        Answers are plain Python values; large data belongs in a stage's folder.
        """
        mine: dict[int, Answer] = {}
        bar = self.progress(-(-len(tasks) // self.world_size), description)
        for at in range(self.rank, len(tasks), self.world_size):
            mine[at] = work(tasks[at])
            bar.update()
        bar.close()
        merged = {at: answer for part in self.share_all(mine) for at, answer in part.items()}
        return [merged[at] for at in range(len(tasks))]

    # -- records

    def progress(self, total: int | None, description: str) -> Progress:
        """Return a progress bar, shown by rank 0 only."""
        return terminal_bar(total, description, shown=self.is_main and self._show_progress)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step, on rank 0 only."""
        if self.is_main and self.recorder is not None:
            self.recorder.log_metrics(dict(metrics), step)

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a matplotlib figure as ``name`` (``curves.png``), on rank 0 only."""
        if self.is_main and self.recorder is not None:
            self.recorder.log_figure(name, figure)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file or folder, on rank 0 only."""
        if self.is_main and self.recorder is not None:
            self.recorder.log_file(path, folder)

    # -- checkpoints

    def stop_requested(self) -> bool:
        """Return whether the user asked to stop; rank 0's answer counts, see ``share``."""
        return False

    def report(
        self, stage: str, metrics: Mapping[str, float], *, step: int, epoch: int, checkpoint: Path | None
    ) -> None:
        """Report metrics and a checkpoint; called by every worker at the same point.

        Args:
            stage: Name of the reporting loop.
            metrics: Metrics of a finished epoch; empty in mid-epoch.
            step: Number of optimiser steps done.
            epoch: Number of epochs begun, from 1.
            checkpoint: Folder with this worker's files of the checkpoint; it may be moved away.
        """
        if checkpoint is not None:
            self.synchronise_stages()  # before the checkpoint: the work that it records must exist
        if stage != MAIN_STAGE:  # two loops of a recipe must not share a curve
            metrics = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._keep(stage, metrics, step, checkpoint)
        if metrics:
            self.log_metrics(metrics, epoch)
            if self.is_main and self._on_epoch is not None and stage == MAIN_STAGE:
                self._on_epoch(dict(metrics), epoch)

    def _keep(self, stage: str, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        raise TypeError(f"{type(self).__name__} must implement _keep")

    def restore(self, stage: str) -> AbstractContextManager[Path | None]:
        """Provide a loop's last complete checkpoint as a local folder with all workers' files; None without one."""
        raise TypeError(f"{type(self).__name__} must implement restore")

    # -- stages

    def stage(
        self, name: str, key: Mapping[str, Any], work: Callable[[Path], None], *, seed: int | None = None
    ) -> Path:
        """Do a step of a recipe only once for the same inputs.

        Random generators are reseeded for the work and restored afterwards, so that its outcome does not depend on
        earlier steps, nor later steps on whether it was done.

        Args:
            name: Name of the step.
            key: Everything that its output depends on, as JSON-like values: settings, fingerprint of the data.
            work: Called on every worker with a folder to write into. Files of a killed attempt are still there, so
                long work can skip what exists; in an object store they date from the last checkpoint or
                ``synchronise_stages``.
            seed: Seed of the work, for a step shared by runs with different seeds; None takes the run's.

        Returns:
            The folder with the files of all workers, as a local path.
        """
        digest = content_hash({"stage": name, "key": dict(key)})
        storage = self.shared / f"stages/{name}-{digest[:16]}"
        done = self.share(storage.is_complete())
        local = storage.local_path() if storage.is_local else self.scratch / f"{name}-{digest[:16]}"
        if not done:
            local.mkdir(parents=True, exist_ok=True)
            if not storage.is_local:
                storage.download(local)
                # Not to be uploaded again: other workers may have rewritten theirs by then.
                fetched = (path for path in local.rglob("*") if path.is_file())
                self._sent.update({path: path.stat().st_mtime_ns for path in fetched})
            self._open_stages.append((storage, local))
            try:
                with self._own_streams(self.seed if seed is None else seed):
                    work(local)
            finally:
                self.synchronise_stages()
                self._open_stages.pop()
            self.barrier()
            if self.is_main:
                storage.mark_complete({"stage": name, "key": dict(key), "digest": digest})
            self.barrier()
        if not storage.is_local:
            storage.download(local)
        return local

    def synchronise_stages(self) -> None:
        """Upload the files of open stages to their object store; does nothing for stages on a disk."""
        for storage, local in self._open_stages:
            if not storage.is_local:
                storage.upload(local, since=self._sent)

    @contextmanager
    def _own_streams(self, seed: int) -> Iterator[None]:
        before, state = self.seed, random_state(self.device)
        self.seed = seed
        self.seed_all()
        try:
            yield
        finally:
            self.seed = before
            set_random_state(state, self.device)


class PlainRun(Run):
    """Run in one process without Ray: tests, notebooks, small machines, trials of a sweep."""

    def __init__(self, *, stop: threading.Event | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._stop = stop or threading.Event()

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def _keep(self, stage: str, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        if checkpoint is None:
            return
        kept = self.storage / f"checkpoints/{stage}"
        (kept / f"{step:09d}").publish(checkpoint, {"step": step, "metrics": finite(metrics)})
        for old in [name for name in kept.list() if name.isdigit()][:-CHECKPOINTS_KEPT]:
            kept.remove(old)

    @contextmanager
    def restore(self, stage: str) -> Iterator[Path | None]:
        kept = self.storage / f"checkpoints/{stage}"
        whole = [name for name in kept.list() if name.isdigit() and (kept / name).is_complete()]
        if not whole:
            yield None
            return
        with (kept / whole[-1]).fetched(self.scratch) as folder:
            yield folder


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Make metrics JSON-compatible: None for non-finite values."""
    return {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}


def best_device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
