"""Tiny model and data for tests of the training loop, importable by Ray workers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.engine.fit import Clock, FitPlan, FitResult, Objective, fit
from tenfold.engine.run import Run
from tenfold.types import Batch

NUM_EXAMPLES = 103


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(NUM_EXAMPLES, 6, generator=generator)
    return inputs, (inputs[:, :1] * 2 - inputs[:, 1:2]).tanh()


def network() -> nn.Module:
    """Network with dropout and batch norm, so that random state and buffers must survive too."""
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
    return functional.mse_loss(model(batch["inputs"]), batch["targets"])


class Counting:
    """Objective with its own state: how often each example was seen."""

    def __init__(self) -> None:
        self.seen = torch.zeros(NUM_EXAMPLES, dtype=torch.int64)
        self.steps = 0

    def loss(self, model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        self.seen[batch["index"]] += 1
        return loss(model, batch, clock)

    def objective(self, **more: Any) -> Objective:
        return Objective(loss=self.loss, state_dict=self.state_dict, load_state_dict=self.load_state_dict, **more)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def train(run: Run, plan: FitPlan, objective: Any = loss, **more: Any) -> FitResult:
    inputs, targets = data()

    def read(rows: np.ndarray) -> Batch:
        at = torch.from_numpy(rows)
        return {"inputs": inputs[at], "targets": targets[at]}

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"val/mse": float(functional.mse_loss(model(inputs), targets))}

    options: dict[str, Any] = {"optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01), **more}
    source = run.loader(read, NUM_EXAMPLES, 8, shuffle=True)
    return fit(run, network(), objective, source, plan, evaluate=evaluate, **options)


def weights(model: nn.Module) -> dict[str, list[float]]:
    """Return the weights as plain numbers, exactly."""
    return {name: tensor.double().flatten().tolist() for name, tensor in model.state_dict().items()}


def die_once(marker: Path, step: int) -> Any:
    """Return an ``after_step`` that kills its own process, only once."""
    import os
    import signal

    def after_step(batch: Batch, clock: Clock) -> None:
        if clock.step == step and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return after_step
