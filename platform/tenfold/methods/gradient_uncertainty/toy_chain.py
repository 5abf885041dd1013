"""Chains on the posterior of ``toy``: the triggered rule and Langevin dynamics, over the same batches."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.methods.gradient_uncertainty.steps import draw_noise, langevin_step, triggered_langevin_step
from tenfold.methods.gradient_uncertainty.toy import GridPosterior, toy_gradients
from tenfold.methods.gradient_uncertainty.uncertainty import gradient_uncertainty


class ToyChain(NamedTuple):
    """What a chain kept, in its order."""

    samples: Tensor
    """theta, float64 ``(M, 2)``."""
    steps: Tensor
    """The step of each, int64 ``(M,)``."""
    uncertainty: Tensor
    """Gradient uncertainty of every step of a triggered chain, float64 ``(T,)``; empty for Langevin dynamics."""


def triggered_chain(
    x: Tensor,
    num_steps: int,
    *,
    lr: float,
    batch_size: int = 20,
    threshold: float = 149 / 150,
    noise_power: float = -1.0,
    likelihood_variance: float = 2.0,
    start: tuple[float, float] = (2.0, 2.0),
    seed: int = 0,
) -> ToyChain:
    """Keeps every theta at which the batch's gradients cancel, before the kick; there is no warm-up but step 0."""
    random, generator, theta = _begin(start, seed)
    kept, steps, trace = [], [], []
    for step in range(num_steps):
        grads = toy_gradients(
            theta, x[_batch(random, len(x), batch_size)], dataset_size=len(x), likelihood_variance=likelihood_variance
        )
        value = float(gradient_uncertainty(grads).value)
        trace.append(value)
        moved, triggered = triggered_langevin_step(
            theta, grads.mean(0), uncertainty=value, step=step, lr=lr, noise_power=noise_power, threshold=threshold,
            warmup=0, generator=generator,
        )  # fmt: skip
        if triggered:
            kept.append(theta)
            steps.append(step)
        assert isinstance(moved, Tensor)
        theta = moved
    samples = torch.stack(kept) if kept else torch.empty(0, 2, dtype=torch.float64)
    return ToyChain(samples, torch.tensor(steps, dtype=torch.int64), torch.tensor(trace, dtype=torch.float64))


def langevin_chain(
    x: Tensor,
    num_steps: int,
    *,
    step_size: float,
    batch_size: int = 20,
    likelihood_variance: float = 2.0,
    start: tuple[float, float] = (2.0, 2.0),
    seed: int = 0,
) -> ToyChain:
    """Stochastic gradient Langevin dynamics; every state is kept."""
    random, generator, theta = _begin(start, seed)
    kept = []
    for _ in range(num_steps):
        kept.append(theta)
        grads = toy_gradients(
            theta, x[_batch(random, len(x), batch_size)], dataset_size=len(x), likelihood_variance=likelihood_variance
        )
        moved = langevin_step(theta, grads.mean(0), step_size=step_size, noise=draw_noise(theta, generator))
        assert isinstance(moved, Tensor)
        theta = moved
    return ToyChain(torch.stack(kept), torch.arange(num_steps), torch.empty(0, dtype=torch.float64))


def mode_switches(samples: Tensor) -> int:
    """How often the sign of theta_2 changes from a sample ``(M, 2)`` to the next: the two modes lie on either side."""
    side = samples[:, 1] > 0
    return int((side[1:] != side[:-1]).sum())


def share_below(samples: Tensor) -> float:
    """Share of the samples ``(M, 2)`` in the mode with negative theta_2; nan without a sample."""
    return float((samples[:, 1] < 0).double().mean())


def figure_toy(posterior: GridPosterior, chains: Mapping[str, Tensor], title: str) -> Figure:
    """The posterior, and the samples ``(M, 2)`` of each chain over its contours."""
    columns = 1 + len(chains)
    figure = Figure(figsize=(3.1 * columns, 3.3), layout="constrained")
    panels: Any = figure.subplots(1, columns, squeeze=False, sharex=True, sharey=True)[0]
    grid = (posterior.first.numpy(), posterior.second.numpy(), posterior.probs.T.numpy())
    panels[0].pcolormesh(*grid, cmap="Blues", shading="auto")
    panels[0].set_title("posterior", fontsize=9)
    panels[0].set_ylabel("theta_2")
    for panel, (name, samples) in zip(panels[1:], chains.items(), strict=True):
        levels = [share * float(posterior.probs.max()) for share in (0.05, 0.2, 0.5, 0.8)]
        panel.contour(*grid, levels=levels, colors="gray", linewidths=0.6)
        panel.scatter(samples[:, 0], samples[:, 1], s=5, alpha=0.5)
        panel.set_title(f"{name}: {len(samples)} samples", fontsize=9)
    for panel in panels:
        panel.set_xlabel("theta_1")
        panel.set_xlim(float(posterior.first[0]), float(posterior.first[-1]))
        panel.set_ylim(float(posterior.second[0]), float(posterior.second[-1]))
    figure.suptitle(title, fontsize=10)
    return figure


def _begin(start: tuple[float, float], seed: int) -> tuple[np.random.Generator, torch.Generator, Tensor]:
    return (
        np.random.default_rng(seed),
        torch.Generator().manual_seed(seed),
        torch.tensor(start, dtype=torch.float64),
    )


def _batch(random: np.random.Generator, size: int, batch_size: int) -> Tensor:
    return torch.from_numpy(random.choice(size, batch_size, replace=False))
