"""Training loop shared by all methods.

A method provides a loss; the loop does mixed precision, gradient accumulation, clipping, schedules, EMA, evaluation,
early stopping and checkpoints. Interrupted and resumed on the same hardware, it ends with the weights of an
uninterrupted run, bit for bit: a checkpoint holds model, optimiser, schedule, scaler, average, the method's own state,
the position in the data and the random state of every worker.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tenfold.engine.loader import BatchSource
from tenfold.engine.randomness import random_state, set_random_state
from tenfold.engine.run import MAIN_STAGE, Interrupted, Run
from tenfold.engine.settings import Precision, RunConfig
from tenfold.engine.storage import Storage
from tenfold.types import Batch

AGREE_EVERY = 16
"""Steps between broadcasts by which several workers agree on checkpoints and stopping."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Training progress at the time a loss is computed; for a method's schedules."""

    epoch: int
    """Current epoch, from 1."""
    num_epochs: int
    step: int
    """Number of optimiser steps done, from 0."""
    total_steps: int
    """Number of optimiser steps of the whole run."""


Loss = Callable[[nn.Module, Batch, Clock], Tensor]


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Objective of a method: a loss and, if the method has state of its own, four plain functions."""

    loss: Loss
    """Scalar loss of one batch."""
    after_step: Callable[[Batch, Clock], None] = _nothing
    """Called after each optimiser step, with the last batch."""
    after_epoch: Callable[[nn.Module, Clock], Mapping[str, float] | None] = _nothing
    """Called on every worker at the end of an epoch, before evaluation; may return metrics."""
    state_dict: Callable[[], dict[str, Any]] = dict
    """Returns this worker's state: only tensors and plain values, as ``torch.load(weights_only=True)`` requires."""
    load_state_dict: Callable[[dict[str, Any]], None] = _nothing


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """Training settings of one loop; ``RunConfig`` documents the shared fields."""

    num_epochs: int
    max_steps: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "auto"
    ema_decay: float | None = None
    evaluate_every: int = 1
    patience: int | None = None
    stop_after_drop: float | None = None
    """Stop when the monitored metric is worse than its best by more than this; None never stops."""
    monitor: str | None = None
    """Metric that selects the weights to keep; None keeps the last."""
    mode: Literal["max", "min"] = "max"
    checkpoint_every_steps: int | None = None
    checkpoint_every_s: float = 300.0
    stage: str = MAIN_STAGE
    """Name of this loop within the recipe; stored in checkpoints."""

    @classmethod
    def of(cls, run: RunConfig, **more: Any) -> "FitPlan":
        """Build the plan from the job's settings; ``more`` adds the method's own."""
        shared = {name: getattr(run, name) for name in cls.__dataclass_fields__ if hasattr(run, name)}
        return cls(**{**shared, **more})


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Result of a training."""

    model: nn.Module
    """Bare model with the selected weights, on the run's device, in eval mode."""
    history: list[dict[str, float]]
    """Metrics of each epoch, in order; ``epoch`` and ``step`` among them."""
    best_epoch: int
    """Epoch of the selected weights, from 1."""
    steps: int
    stopped_early: bool


@dataclass(kw_only=True)
class _State:
    """State of the loop: plain values, saved with every checkpoint."""

    epoch: int = 1
    batch: int = 0
    """Number of micro-batches done in this epoch."""
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_value: float | None = None
    best_epoch: int = 0
    evaluations_without_best: int = 0
    done: bool = False
    stopped_early: bool = False


def fit(
    run: Run,
    model: nn.Module,
    objective: Objective | Loss,
    source: BatchSource,
    plan: FitPlan,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler | ReduceLROnPlateau] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> FitResult:
    """Train a model, resuming from the last checkpoint of this run if there is one.

    Args:
        run: Runtime of this worker.
        model: Bare model; the loss receives it prepared for this run (wrapped in DDP for several workers).
        objective: The loss, or the loss with the method's own state.
        source: Batches of this worker.
        plan: Training settings.
        optimizer: Maps the bare model to its optimiser.
        schedule: Maps optimiser and number of steps to a learning-rate schedule, stepped after every optimiser step; a
            ``ReduceLROnPlateau`` is stepped with the mean training loss at the end of every epoch.
        evaluate: Maps the bare model in eval mode to metrics; called on every worker, under ``no_grad``.

    Raises:
        Interrupted: The user asked to stop; a checkpoint was written.
        FloatingPointError: The loss is not finite; the last checkpoint predates it.
    """
    loop = _Loop(run, model, objective, source, plan, optimizer, schedule, evaluate)
    return loop.run_to_end()


class _Loop:
    def __init__(
        self,
        run: Run,
        model: nn.Module,
        objective: Objective | Loss,
        source: BatchSource,
        plan: FitPlan,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer, int], LRScheduler | ReduceLROnPlateau] | None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
    ) -> None:
        self.run, self.source, self.plan, self.evaluate = run, source, plan, evaluate
        self.objective = objective if isinstance(objective, Objective) else Objective(loss=objective)
        self.prepared = run.prepare(model)
        self.bare = self.prepared.module if isinstance(self.prepared, DistributedDataParallel) else self.prepared
        self.optimizer = optimizer(self.bare)
        self.num_batches = source.num_batches()
        steps = -(-self.num_batches // plan.accumulate) * plan.num_epochs
        self.total_steps = min(steps, plan.max_steps or steps)
        self.schedule = schedule(self.optimizer, self.total_steps) if schedule else None
        self.averaged = (
            AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay), use_buffers=True)
            if plan.ema_decay is not None
            else None
        )
        # A causal mask holds -inf, whose average would be NaN.
        self.not_averaged = [
            (kept, buffer)
            for kept, buffer in zip(
                self.averaged.module.buffers() if self.averaged is not None else (), self.bare.buffers(), strict=False
            )
            if not buffer.isfinite().all()
        ]
        self.autocast, use_scaler = _precision(plan.precision, run.device)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=use_scaler)
        self.state = _State()
        self.best: dict[str, Tensor] | None = None
        self.loss_sum = torch.zeros((), device=run.device)
        self.saved_at = time.monotonic()
        self.saved_step = 0

    # -- the loop

    def run_to_end(self) -> FitResult:
        self._restore()
        state, plan = self.state, self.plan
        bar = self.run.progress(self.total_steps, plan.stage)
        bar.update(state.step)
        self.prepared.train()
        while not state.done:
            self._run_epoch(bar)
            self._end_epoch(bar)
        bar.close()
        chosen = self._evaluated_model()
        if self.best is not None:
            chosen.load_state_dict(self.best)
        chosen.eval()
        return FitResult(
            model=chosen,
            history=state.history,
            best_epoch=state.best_epoch or len(state.history),
            steps=state.step,
            stopped_early=state.stopped_early,
        )

    def _run_epoch(self, bar: Any) -> None:
        state, plan, run = self.state, self.plan, self.run
        batches = self.source.epoch(state.epoch - 1, start=state.batch)
        with contextlib.closing(batches):  # ends the prefetching thread of a loader
            for batch in batches:
                window_start = state.batch // plan.accumulate * plan.accumulate
                window = min(plan.accumulate, self.num_batches - window_start)
                last = state.batch + 1 == window_start + window
                clock = self._clock()
                batch = run.to_device(batch)
                self._accumulate(batch, clock, window, last)
                state.batch += 1
                if last:
                    self._step()
                    self.objective.after_step(batch, clock)
                    bar.update(1)
                    if state.step >= self.total_steps:
                        break
                    if state.batch < self.num_batches:
                        self._attend()

    def _accumulate(self, batch: Batch, clock: Clock, window: int, last: bool) -> None:
        """Run forward and backward; gradients are synchronised only with the last micro-batch of a window."""
        quiet = not last and isinstance(self.prepared, DistributedDataParallel)
        with self.prepared.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            with self.autocast():
                loss = self.objective.loss(self.prepared, batch, clock)
            self.scaler.scale(loss / window if window > 1 else loss).backward()
        self.loss_sum += loss.detach()

    def _step(self) -> None:
        plan = self.plan
        if plan.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.bare.parameters(), plan.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.bare)
            for kept, buffer in self.not_averaged:
                kept.copy_(buffer)
        self.state.step += 1

    def _attend(self) -> None:
        """Write a checkpoint or stop in mid-epoch if due; workers must agree on both."""
        plan, run, state = self.plan, self.run, self.state
        every = plan.checkpoint_every_steps
        due = every is not None and state.step % every == 0  # the same on every worker, no agreement needed
        stop = False
        if run.world_size == 1 or state.step % AGREE_EVERY == 0:
            late = time.monotonic() - self.saved_at > plan.checkpoint_every_s
            late, stop = run.share((late, run.stop_requested()))
            due = due or late or stop
        if due:
            self._checkpoint({})
        if stop:
            raise Interrupted

    def _end_epoch(self, bar: Any) -> None:
        state, plan, run = self.state, self.plan, self.run
        clock = self._clock()
        self._check_finite()
        metrics: dict[str, float] = {
            "train/loss": float(run.all_reduce(self.loss_sum, "mean")) / max(state.batch, 1),
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(metrics["train/loss"])
        run.synchronise_buffers(self.bare)
        metrics.update(self.objective.after_epoch(self.bare, clock) or {})
        ended = state.epoch >= plan.num_epochs or state.step >= self.total_steps
        evaluated = self.evaluate is not None and (state.epoch % plan.evaluate_every == 0 or ended)
        if evaluated:
            metrics.update(self._evaluate())
            self.prepared.train()
        state.stopped_early = self._judge(metrics) if evaluated else False
        state.done = ended or state.stopped_early
        state.history.append({"epoch": float(state.epoch), "step": float(state.step), **metrics})
        bar.set_description(_describe(state.epoch, plan, metrics))
        state.epoch += 1
        state.batch = 0
        self.loss_sum.zero_()
        self._checkpoint(metrics)
        if not state.done and run.share(run.stop_requested()):
            raise Interrupted

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        model = self._evaluated_model()
        model.eval()
        with torch.no_grad():
            return dict(self.evaluate(model))

    def _judge(self, metrics: Mapping[str, float]) -> bool:
        """Keep the best weights; return whether training should end now."""
        plan, state = self.plan, self.state
        if plan.monitor is None:
            return False
        if plan.monitor not in metrics:
            raise ValueError(f"monitor must be one of {sorted(metrics)}, got {plan.monitor!r}")
        value = metrics[plan.monitor]
        sign = 1 if plan.mode == "max" else -1
        if state.best_value is None or sign * value > sign * state.best_value:
            state.best_value, state.best_epoch, state.evaluations_without_best = value, state.epoch, 0
            weights = self._evaluated_model().state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            return False
        state.evaluations_without_best += 1
        dropped = plan.stop_after_drop is not None and sign * (state.best_value - value) > plan.stop_after_drop
        tired = plan.patience is not None and state.evaluations_without_best >= plan.patience
        return dropped or tired

    def _evaluated_model(self) -> nn.Module:
        return self.averaged.module if self.averaged is not None else self.bare

    def _clock(self) -> Clock:
        state = self.state
        return Clock(epoch=state.epoch, num_epochs=self.plan.num_epochs, step=state.step, total_steps=self.total_steps)

    def _check_finite(self) -> None:
        if not math.isfinite(float(self.loss_sum)):
            raise FloatingPointError(
                f"loss must be finite, got {float(self.loss_sum)} in epoch {self.state.epoch} before "
                f"step {self.state.step}; lower the learning rate, set run.clip_norm, or use run.precision=fp32"
            )

    # -- checkpoints

    def _checkpoint(self, metrics: Mapping[str, float]) -> None:
        self._check_finite()
        run, state = self.run, self.state
        state.loss_sum = float(self.loss_sum)
        with tempfile.TemporaryDirectory(dir=run.scratch) as name:
            folder = Path(name) / "checkpoint"
            folder.mkdir()
            if run.is_main:
                torch.save(
                    {
                        "model": self.bare.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "schedule": self.schedule.state_dict() if self.schedule else None,
                        "scaler": self.scaler.state_dict(),
                        "averaged": self.averaged.state_dict() if self.averaged is not None else None,
                        "best": self.best,
                        "loop": dict(vars(state)),
                    },
                    folder / "state.pt",
                )
                Storage(folder).write_json("about.json", {"stage": self.plan.stage, "world_size": run.world_size})
            mine = {"random": random_state(run.device), "objective": self.objective.state_dict()}
            torch.save({**mine, "loss_sum": state.loss_sum}, folder / f"rank-{run.rank}.pt")
            run.report(self.plan.stage, metrics, step=state.step, epoch=len(state.history), checkpoint=folder)
        self.saved_at = time.monotonic()

    def _restore(self) -> None:
        run = self.run
        with run.restore(self.plan.stage) as folder:
            if folder is None:
                return
            world_size = Storage(folder).read_json("about.json")["world_size"]
            if world_size != run.world_size:
                raise ValueError(
                    f"scale.workers must be {world_size} as in the checkpoint, got {run.world_size}; "
                    f"set scale.workers={world_size}, or another run.tag to start over"
                )
            saved = torch.load(folder / "state.pt", map_location=run.device, weights_only=True)
            mine = torch.load(folder / f"rank-{run.rank}.pt", map_location="cpu", weights_only=True)
        self.bare.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        self.best = saved["best"] and {name: tensor.cpu() for name, tensor in saved["best"].items()}
        self.state = _State(**saved["loop"])
        self.loss_sum.fill_(mine["loss_sum"])
        self.objective.load_state_dict(mine["objective"])
        set_random_state(mine["random"], run.device)


def _precision(precision: Precision, device: torch.device) -> tuple[Callable[[], Any], bool]:
    """Return the autocast context and whether gradients need scaling."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp32":
        return contextlib.nullcontext, False
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype), precision == "fp16"


def _describe(epoch: int, plan: FitPlan, metrics: Mapping[str, float]) -> str:
    shown = plan.monitor if plan.monitor is not None and plan.monitor in metrics else "train/loss"
    return f"{plan.stage} epoch {epoch}/{plan.num_epochs} {shown} {metrics[shown]:.4g}"
