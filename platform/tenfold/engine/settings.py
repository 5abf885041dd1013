"""Settings of placement and training common to all methods."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tenfold.hashing import content_hash

Precision = Literal["auto", "fp32", "bf16", "fp16"]
GROUPS = ("method", "data", "model", "scale", "run")
PLACEMENT_ONLY = {
    "run": ("experiment", "tracking_uri", "register", "checkpoint_every_steps", "checkpoint_every_s"),
    "scale": ("name", "storage", "max_failures"),
    "data": ("cache", "num_workers"),
}
"""Settings that do not affect what is learnt, and so do not enter the run's digest."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Placement and resources of a job."""

    name: str = "ray"
    """Label of this scale in records; has no effect."""
    kind: Literal["plain", "ray"] = "ray"
    """``plain``: in this process, without Ray. ``ray``: on Ray Train workers, local or on the cluster RAY_ADDRESS."""
    workers: int = 2
    """Number of Ray Train workers, at least 1; ignored by a plain process, which is one worker."""
    cpus_per_worker: float = 1.0
    """Logical CPUs of each worker; also its number of CPU threads."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker; 0 trains on the CPU."""
    max_failures: int = 3
    """Number of restarts from the last checkpoint after a worker died; -1 is unlimited."""
    storage: str = "outputs"
    """Folder or URL, such as ``s3://bucket/prefix``, of runs, checkpoints and stages."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker must be positive, got {self.cpus_per_worker}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")
        if self.max_failures < -1:
            raise ValueError(f"max_failures must be at least -1, got {self.max_failures}")
        if not self.storage:
            raise ValueError("storage must be a folder or a URL, got an empty string")

    @property
    def num_workers(self) -> int:
        """Number of processes that train."""
        return self.workers if self.kind == "ray" else 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the training loop, its checkpoints and its records."""

    seed: int = 0
    """Seed of initialisation, data order and sampling, 0 to 2**31 - 1."""
    num_epochs: int = 10
    """Passes over the training data, at least 1."""
    max_steps: int | None = None
    """Optimiser steps after which training ends, even in mid-epoch; None is unlimited."""
    batch_size: int = 32
    """Examples per worker and forward pass, at least 1."""
    accumulate: int = 1
    """Forward passes accumulated per optimiser step."""
    clip_norm: float | None = None
    """Largest global gradient norm; None does not clip."""
    precision: Precision = "auto"
    """``auto`` is bf16 on a GPU that has it, else fp32."""
    ema_decay: float | None = None
    """Decay, in (0, 1), of the exponential moving average of the weights, which is evaluated and kept; None is off."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    patience: int | None = None
    """Evaluations without a new best after which training ends; None is unlimited."""
    checkpoint_every_steps: int | None = None
    """Optimiser steps between checkpoints within an epoch; every epoch ends with a checkpoint anyway."""
    checkpoint_every_s: float = 300.0
    """Seconds after which a checkpoint is due, even in mid-epoch."""
    deterministic: bool = True
    """Bit-identical results on the same hardware, also after an interruption; off allows faster GPU kernels."""
    experiment: str = "tenfold"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or database; None takes MLFLOW_TRACKING_URI, else SQLite in the storage folder."""
    register: bool = True
    """Whether to register the model; it becomes champion only if it is better than the current one."""
    tag: str = ""
    """Free text; a different tag makes a different run even if all other settings agree."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must lie in [0, 2**31), got {self.seed}")
        for name in ("num_epochs", "batch_size", "accumulate", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_steps", "patience", "checkpoint_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {value}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive or null, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1) or be null, got {self.ema_decay}")
        if self.checkpoint_every_s <= 0:
            raise ValueError(f"checkpoint_every_s must be positive, got {self.checkpoint_every_s}")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """All settings of one training."""

    method_name: str
    method: Any
    """``Config`` of the method."""
    data: Any
    """Settings of the data set, including ``name``."""
    model: Any
    """Settings of the network."""
    scale: ScaleConfig
    run: RunConfig

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Convert the five groups to plain values; ``job_from_dict`` is the inverse."""
        groups = {name: asdict(getattr(self, name)) for name in GROUPS}
        groups["method"] = {"name": self.method_name, **groups["method"]}
        return groups

    def digest(self) -> str:
        """Hash everything that determines the result; part of the run's name."""
        groups = self.as_dict()
        for group, names in PLACEMENT_ONLY.items():
            for name in names:
                groups[group].pop(name, None)
        if self.scale.kind == "plain":
            groups["scale"] = {"kind": "plain"}
        return content_hash(groups)

    @property
    def run_name(self) -> str:
        """``method-data-digest``: the same settings give the same name, and so resume the same run."""
        return f"{self.method_name}-{self.data.name}-{self.digest()[:10]}"
