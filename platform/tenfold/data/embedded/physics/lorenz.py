"""Lorenz attractor: chaotic trajectories and noisy observations of them.

Lorenz, "Deterministic Nonperiodic Flow", 1963: x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.data.regression import PARTS, ArraySource, GeneratedConfig, Part, RegressionData, digest_of
from tenfold.tasks import Slot

_SIGMA, _RHO, _BETA = 10.0, 28.0, 8 / 3
SUBSTEPS = 20
"""Integrator steps between two times."""
_VERSION = 1
_DISCARDED = 200
"""Samples discarded at the start of a window's trajectory, after which it is on the attractor."""


@dataclass(frozen=True, kw_only=True)
class LorenzConfig(GeneratedConfig):
    """Number, length and noise of the trajectories."""

    name: str = "lorenz"
    """Fixed; selects this data set."""
    source: Literal["windows", "trajectory"] = "windows"
    """``windows``: each window has its own initial state; ``trajectory``: all are consecutive pieces of one trajectory,
    in the order test, validation, training."""
    length: int = 64
    """Samples of a window."""
    interval: float = 0.05
    """Time between two samples."""
    noise: Literal["growing", "constant"] = "growing"
    """``growing``: the std of a coordinate's noise is ``noise_scale`` (0.5 + 1.5 |coordinate| / 20); ``constant``:
    ``noise_scale`` itself."""
    noise_scale: float = 2.0
    """Scale of the noise; the published experiments use 0.5, constant."""
    num_train: int = 96
    """Windows for training."""
    num_val: int = 32
    """Windows for validation."""
    num_test: int = 48
    """Windows for the test."""
    seed: int = 0
    """Seed of initial states and noise."""

    def __post_init__(self) -> None:
        if self.source not in ("windows", "trajectory") or self.noise not in ("growing", "constant"):
            raise ValueError(
                f"source must be windows or trajectory and noise growing or constant, got {self.source!r} and "
                f"{self.noise!r}"
            )
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if not 0 < self.interval <= 1:
            raise ValueError(f"interval must lie in (0, 1], got {self.interval}; the integrator needs short steps")
        if self.noise_scale < 0:
            raise ValueError(f"noise_scale must not be negative, got {self.noise_scale}")
        super().__post_init__()


def lorenz_rhs(state: Tensor) -> Tensor:
    """Return the right-hand side of the Lorenz equations.

    Args:
        state: x, y, z, ``(..., 3)``.

    Returns:
        Same shape.

    Raises:
        ValueError: The last axis is not of length 3, or the dtype is not floating point.
    """
    if not state.ndim or state.shape[-1] != 3 or not state.is_floating_point():
        raise ValueError(f"state must be floating point (..., 3), got {state.dtype} {tuple(state.shape)}")
    return torch.stack(_velocity(*state.unbind(dim=-1)), dim=-1)


def simulate_lorenz(x0: Tensor, times: Tensor) -> Tensor:
    """Integrate the Lorenz equations by the classical Runge-Kutta method, ``SUBSTEPS`` steps between two times.

    Chaos makes any two solutions diverge after some 20 units of time; short stretches agree with finer steps to 1e-5.

    Args:
        x0: State at the first time, ``(..., 3)``; integrated as a batch.
        times: ``(T,)``, increasing.

    Returns:
        ``(T, ..., 3)``, the dtype of ``x0`` (float32 for half precision); the first is ``x0``.

    Raises:
        ValueError: Other shapes, a dtype that is not floating point, or times that do not increase or are not finite.
    """
    if not x0.ndim or x0.shape[-1] != 3 or not x0.is_floating_point():
        raise ValueError(f"x0 must be floating point (..., 3), got {x0.dtype} {tuple(x0.shape)}")
    if times.ndim != 1 or not len(times):
        raise ValueError(f"times must be (T,) with T at least 1, got {tuple(times.shape)}")
    steps = times.to(torch.float64).diff()
    if not bool(torch.isfinite(times).all()) or not bool((steps > 0).all()):
        raise ValueError("times must be finite and strictly increasing")
    start = x0.float() if x0.dtype in (torch.float16, torch.bfloat16) else x0
    if start.device.type == "cpu" and not start.requires_grad:
        # Thousands of steps of few numbers: the cost is that of the calls, and numpy's are several times cheaper.
        state = [each.numpy() for each in start.unbind(dim=-1)]
        return torch.from_numpy(np.stack([np.stack(each, axis=-1) for each in _states(state, steps.tolist())]))
    return torch.stack([torch.stack(each, dim=-1) for each in _states(list(start.unbind(dim=-1)), steps.tolist())])


def lorenz_windows(config: LorenzConfig, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Simulate noisy and true states of the windows of a part.

    Returns:
        Both float32 ``(N, 3, length)``.
    """
    states = _single_trajectory(config, part) if config.source == "trajectory" else _own_starts(config, part)
    random = np.random.default_rng([config.seed, PARTS.index(part), 1])
    growth = 0.5 + 1.5 * np.abs(states) / 20 if config.noise == "growing" else 1.0
    noisy = states + config.noise_scale * growth * random.standard_normal(states.shape)
    return noisy.astype(np.float32), states.astype(np.float32)


def load_lorenz(config: LorenzConfig) -> RegressionData:
    """Load pairs of noisy and true windows ``(3, length)``, in the units of the equations."""
    sources = {}
    for part in PARTS:
        noisy, states = lorenz_windows(config, part)
        sources[part] = ArraySource({"input": noisy}, states)
    return RegressionData(
        name=config.name,
        network="cnn1d",
        inputs=(Slot(name="input", dtype="float32", shape=(3, -1)),),
        targets=("x", "y", "z"),
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of(_VERSION, config),
    )


def _velocity(x: Any, y: Any, z: Any) -> list[Any]:
    """Return the velocity of numbers, tensors or arrays."""
    return [_SIGMA * (y - x), x * (_RHO - z) - y, x * y - _BETA * z]


def _states(state: list[Any], steps: list[float]) -> Iterator[list[Any]]:
    """Yield the state, then that after each step; every step takes ``SUBSTEPS`` integrator steps."""
    yield state
    for step in steps:
        part = step / SUBSTEPS
        for _ in range(SUBSTEPS):
            state = _runge_kutta(state, part)
        yield state


def _runge_kutta(state: list[Any], step: float) -> list[Any]:
    first = _velocity(*state)
    second = _velocity(*_moved(state, 0.5 * step, first))
    third = _velocity(*_moved(state, 0.5 * step, second))
    fourth = _velocity(*_moved(state, step, third))
    return [
        at + (step / 6) * (one + 2 * (two + three) + four)
        for at, one, two, three, four in zip(state, first, second, third, fourth, strict=True)
    ]


def _moved(state: list[Any], step: float, velocity: list[Any]) -> list[Any]:
    return [at + step * speed for at, speed in zip(state, velocity, strict=True)]


def _own_starts(config: LorenzConfig, part: Part) -> np.ndarray:
    """Return float64 ``(N, 3, length)``; all windows of a part are integrated as a batch."""
    random = np.random.default_rng([config.seed, PARTS.index(part)])
    starts = 1 + 0.5 * random.standard_normal((config.counts[part], 3))
    times = torch.arange(_DISCARDED + config.length, dtype=torch.float64) * config.interval
    states = simulate_lorenz(torch.from_numpy(starts), times)[_DISCARDED:]  # (length, N, 3)
    return states.permute(1, 2, 0).numpy()


def _single_trajectory(config: LorenzConfig, part: Part) -> np.ndarray:
    """Return float64 ``(N, 3, length)``; without a batch scipy's compiled integrator is faster."""
    from scipy.integrate import odeint

    order: tuple[Part, ...] = ("test", "val", "train")
    before = sum(config.counts[each] for each in order[: order.index(part)])
    num_samples = (before + config.counts[part]) * config.length

    def velocity(state: np.ndarray, _time: float) -> list[float]:
        return _velocity(*state.tolist())

    states = odeint(velocity, np.ones(3), np.arange(num_samples) * config.interval, rtol=1e-9, atol=1e-9)
    windows = states.reshape(-1, config.length, 3)[before:]
    return np.ascontiguousarray(windows.transpose(0, 2, 1))
