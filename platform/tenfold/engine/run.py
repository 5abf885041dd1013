"""``Run``: what a recipe may ask of the machine it runs on.

A recipe asks for devices, shards, collectives, checkpoints, stages and progress here, and can't tell whether it is
one plain process (``PlainRun``, below) or a worker of Ray Train (``RayRun``, in ``ray_run``).
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
"""The loop whose metrics keep their names; those of other loops carry the loop's name in front."""


class Interrupted(Exception):  # noqa: N818 - a request that was met, not an error
    """The user asked to stop; a checkpoint was written and the same command goes on from it."""


class Recorder(Protocol):
    """Where numbers and pictures of a run are kept; ``tenfold.tracking.runs.Tracker`` is one."""

    @property
    def run_id(self) -> str: ...
    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_figure(self, name: str, figure: Any) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: Path, folder: str = "") -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a recipe gives back."""

    bundle: Path
    """Folder of the trained model."""
    metrics: dict[str, float]
    metric: str
    """The one of them that decides which model is better."""
    mode: Literal["max", "min"]
    data_fingerprint: str
    history: list[dict[str, float]]
    """Metrics of each epoch."""


class Run:
    """One worker's view of a job. Attributes are read-only for recipes.

    Args:
        folder: Where this run keeps its files, a folder or URL; other runs never write there.
        shared: Where stages are kept for every run that has the same inputs.
        seed: Seed of everything random in this run.
        device: Where tensors of this worker live.
        recorder: Takes metrics and pictures of rank 0; None keeps none.
        on_epoch: Called in rank 0 with the metrics and number of each finished epoch.
        deterministic: Whether the same hardware must give the same bits.
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
        """A folder of this worker alone, gone when the run is closed."""
        set_determinism(deterministic)
        self.seed_all()
        self._open_stages: list[tuple[Storage, Path]] = []
        self._sent: dict[Path, int] = {}
        """Files of stages that are in an object store already, with the time of their last change."""

    def close(self) -> None:
        """Delete what this worker kept for itself."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def is_main(self) -> bool:
        """True in the one worker that writes records."""
        return self.rank == 0

    def seed_all(self) -> None:
        """Start every random stream of this worker anew: same seed and rank, same numbers."""
        value = int(np.random.SeedSequence((self.seed, self.rank)).generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)

    # -- placement

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on this worker's device, with gradients averaged over the workers."""
        return model.to(self.device)

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this worker's device."""
        if self.device.type == "cpu":
            return batch
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def loader(self, read: Callable[[np.ndarray], Batch], num_examples: int, batch_size: int, **options: Any) -> Loader:
        """This worker's shard of a data set; options as in ``Loader``."""
        options.setdefault("seed", self.seed)
        return Loader(read, num_examples, batch_size, rank=self.rank, world_size=self.world_size, **options)

    # -- collectives: every worker must call them, in the same order

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce(self, value: Tensor, op: str = "sum") -> Tensor:
        """Sum, max or mean of a tensor over the workers, on the device it came from."""
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
        """The tensors of all workers, by rank; all of one shape."""
        if self.world_size == 1:
            return [value]
        mine = value.detach().to(self.device).contiguous()
        gathered = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(gathered, mine)
        return [part.to(value.device) for part in gathered]

    def gather_rows(self, values: Tensor, index: Tensor, num_rows: int) -> Tensor:
        """Rows that each worker computed for its shard, put together in the order of the data set.

        Args:
            values: This worker's rows ``(n, ...)``; the same n on every worker, as a ``Loader`` gives it.
            index: Which rows they are ``(n,)``.
            num_rows: Rows N of the whole.

        Returns:
            ``(N, ...)`` on the CPU, the same on every worker.
        """
        whole = torch.empty((num_rows, *values.shape[1:]), dtype=values.dtype)
        for rows, part in zip(self.all_gather(index), self.all_gather(values), strict=True):
            whole[rows.cpu()] = part.cpu()
        return whole

    def share(self, value: Answer) -> Answer:
        """Rank 0's value, on every worker; plain Python values only."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def share_all(self, value: Answer) -> list[Answer]:
        """Every worker's value, by rank, on every worker; plain Python values only."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts

    def once_per_node(self, make: Callable[[], Answer]) -> Answer:
        """A value whose making leaves files (a cache): one worker of each node makes it first, then the others."""
        value = make() if self.local_rank == 0 else None
        self.barrier()
        return value if value is not None else make()

    def synchronise_buffers(self, model: nn.Module) -> None:
        """Give every worker rank 0's buffers (batch-norm statistics), so that all evaluate one model."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def map(self, work: Callable[[Task], Answer], tasks: Sequence[Task], description: str = "tasks") -> list[Answer]:
        """Independent tasks, fanned out over the workers; answers in the order of the tasks, on every worker.

        Answers are plain Python values: what is large belongs into a stage's folder.
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
        """A progress bar, shown by rank 0 only."""
        return terminal_bar(total, description, shown=self.is_main and self._show_progress)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one moment; rank 0 only, others do nothing."""
        if self.is_main and self.recorder is not None:
            self.recorder.log_metrics(dict(metrics), step)

    def log_figure(self, name: str, figure: Any) -> None:
        """A matplotlib figure under ``name`` (``curves.png``); rank 0 only."""
        if self.is_main and self.recorder is not None:
            self.recorder.log_figure(name, figure)

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file or folder among the run's records; rank 0 only."""
        if self.is_main and self.recorder is not None:
            self.recorder.log_file(path, folder)

    # -- checkpoints

    def stop_requested(self) -> bool:
        """Whether the user asked to stop. Rank 0's answer counts: see ``share``."""
        return False

    def report(
        self, stage: str, metrics: Mapping[str, float], *, step: int, epoch: int, checkpoint: Path | None
    ) -> None:
        """Every worker calls it at the same moment.

        Args:
            stage: Name of the loop that reports.
            metrics: Numbers of a finished epoch; empty in mid-epoch.
            step: Optimiser steps done.
            epoch: Epochs begun, from 1.
            checkpoint: Folder with this worker's files of the checkpoint; it may be moved away.
        """
        if checkpoint is not None:
            self.synchronise_stages()  # before the checkpoint: what it says was done must be there
        if stage != MAIN_STAGE:  # two loops of a recipe must not write into one curve
            metrics = {f"{stage}/{name}": value for name, value in metrics.items()}
        self._keep(stage, metrics, step, checkpoint)
        if metrics:
            self.log_metrics(metrics, epoch)
            if self.is_main and self._on_epoch is not None and stage == MAIN_STAGE:
                self._on_epoch(dict(metrics), epoch)

    def _keep(self, stage: str, metrics: Mapping[str, float], step: int, checkpoint: Path | None) -> None:
        raise TypeError(f"{type(self).__name__} must say how it keeps a checkpoint")

    def restore(self, stage: str) -> AbstractContextManager[Path | None]:
        """The last whole checkpoint of a loop as a local folder with the files of all workers; None: there is none."""
        raise TypeError(f"{type(self).__name__} must say how it restores a checkpoint")

    # -- stages

    def stage(
        self, name: str, key: Mapping[str, Any], work: Callable[[Path], None], *, seed: int | None = None
    ) -> Path:
        """Do a step of a recipe once for the same inputs, ever.

        Random streams start anew for the work and are as before when it is done, so that neither its outcome depends
        on what came first, nor what follows on whether it had to be done.

        Args:
            name: What the step is called.
            key: Everything that its output depends on, as JSON-like values: settings, fingerprint of the data.
            work: Called on every worker with a folder to write into; files of a previous attempt that was killed
                are still there, so long work can skip what exists. In an object store they are as they were at the
                last checkpoint, or at the last ``synchronise_stages``.
            seed: Of the work, for a step that runs with different seeds share; None: the run's.

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
                # Not to be sent back: other workers may have written theirs anew by then.
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
        """Send what open stages have written to their object store; nothing to do where stages lie on a disk."""
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
    """One process without Ray: tests, notebooks, small machines, trials of a sweep."""

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
    """Metrics as JSON can hold them: None where a value is not finite."""
    return {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}


def best_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
