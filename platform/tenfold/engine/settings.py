"""What a job may say about where and how it runs; the same for every method."""

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
"""Settings that change nothing in what is learnt: they don't make another run of it."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Where a job runs."""

    name: str = "ray"
    """Label of this scale in records; says nothing by itself."""
    kind: Literal["plain", "ray"] = "ray"
    """``plain``: in this process, without Ray. ``ray``: on Ray Train workers, local or of the cluster RAY_ADDRESS."""
    workers: int = 2
    """Ray Train workers, at least 1; a plain process is one worker whatever this says."""
    cpus_per_worker: float = 1.0
    """Logical CPUs that each worker holds; also its number of threads on a CPU."""
    gpus_per_worker: float = 0.0
    """GPUs that each worker holds; 0 trains on the CPU."""
    max_failures: int = 3
    """How often the workers are started again from the last checkpoint after one died; -1 is without end."""
    storage: str = "outputs"
    """Where runs, checkpoints and stages are kept: a folder or a URL such as ``s3://bucket/prefix``."""

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
            raise ValueError("storage must be a folder or a URL, got an empty text")

    @property
    def num_workers(self) -> int:
        """Processes that train."""
        return self.workers if self.kind == "ray" else 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, with which seed, how often saved: settings of the loop and the record."""

    seed: int = 0
    """Seed of initialisation, data order and draws, 0 to 2**31 - 1."""
    num_epochs: int = 10
    """Passes over the training data, at least 1."""
    max_steps: int | None = None
    """Optimiser steps after which training ends even in mid-epoch; None: no such limit."""
    batch_size: int = 32
    """Examples per worker and forward pass, at least 1."""
    accumulate: int = 1
    """Forward passes whose gradients make one optimiser step."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None: not clipped."""
    precision: Precision = "auto"
    """``auto`` is bf16 on a GPU that has it, else fp32."""
    ema_decay: float | None = None
    """Decay of the exponential moving average of the weights that is evaluated and kept, in (0, 1); None: off."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    patience: int | None = None
    """Evaluations without a new best after which training ends; None: no such limit."""
    checkpoint_every_steps: int | None = None
    """Optimiser steps between checkpoints within an epoch; the end of every epoch is a checkpoint anyway."""
    checkpoint_every_s: float = 300.0
    """Seconds after which a checkpoint is due even in mid-epoch."""
    deterministic: bool = True
    """Same hardware, same bits: also after an interruption. Off allows faster nondeterministic GPU kernels."""
    experiment: str = "tenfold"
    """MLflow experiment."""
    tracking_uri: str | None = None
    """MLflow server or database; None: MLFLOW_TRACKING_URI, else SQLite under the storage folder."""
    register: bool = True
    """Whether the model enters the registry (as champion only if it is better than the present one)."""
    tag: str = ""
    """Free text; a run with another tag is another run even where all settings agree."""

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
    """Everything that one training needs to know."""

    method_name: str
    method: Any
    """The method's own ``Config``."""
    data: Any
    """The settings of the data set, ``name`` among them."""
    model: Any
    """The settings of the network."""
    scale: ScaleConfig
    run: RunConfig

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The five groups as plain values; ``job_from_dict`` takes them back."""
        groups = {name: asdict(getattr(self, name)) for name in GROUPS}
        groups["method"] = {"name": self.method_name, **groups["method"]}
        return groups

    def digest(self) -> str:
        """Hash of all that determines the result; part of the run's name."""
        groups = self.as_dict()
        for group, names in PLACEMENT_ONLY.items():
            for name in names:
                groups[group].pop(name, None)
        if self.scale.kind == "plain":
            groups["scale"] = {"kind": "plain"}
        return content_hash(groups)

    @property
    def run_name(self) -> str:
        """``method-data-digest``: the same settings give the same name, and so go on where they stopped."""
        return f"{self.method_name}-{self.data.name}-{self.digest()[:10]}"
