"""Gradient uncertainty on a bimodal posterior: does the chain reach the second mode?

    python -m tests.replicas.gradient_uncertainty_toy --seeds 0 1 2 --out outputs/replica_gradient_uncertainty_toy

The posterior of the locations of a two-component Gaussian mixture (100 draws; the modes differ in the sign of theta_2).
The triggered chain and Langevin dynamics at three step sizes take 25,000 steps over the same batches from the same
start. Prints a Markdown table and writes ``results.json`` and figures; about half a minute on one core per seed and
target. ``--targets`` adds an easier and a harder target.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.methods.gradient_uncertainty.steps import draw_noise, langevin_step, triggered_langevin_step
from tenfold.methods.gradient_uncertainty.toy import PRIOR_VARIANCES, toy_potential
from tenfold.methods.gradient_uncertainty.uncertainty import gradient_uncertainty

TARGETS = {
    "variance 1": {"offset": 2.0, "likelihood_variance": 1.0},
    "variance 2": {"offset": 2.0, "likelihood_variance": 2.0},
    "far apart": {"offset": 3.0, "likelihood_variance": 0.5},
}
LEARNING_RATE = 0.005
STEP_SIZES = (1e-3, 3e-3, 1e-2)
NUM_STEPS = 25_000
BURN_IN = 0.1
_DATA_SEED = 1016


class GridPosterior(NamedTuple):
    """The posterior on a grid of G x H points."""

    first: Tensor
    """Values of theta_1, ``(G,)``."""
    second: Tensor
    """Values of theta_2, ``(H,)``."""
    probs: Tensor
    """``(G, H)``, sums to 1."""


class ToyChain(NamedTuple):
    """Samples of one chain, in order."""

    samples: Tensor
    """theta, float64 ``(M, 2)``."""
    steps: Tensor
    """Step of each sample, int64 ``(M,)``."""
    uncertainty: Tensor
    """Gradient uncertainty of every step of a triggered chain, float64 ``(T,)``; empty for Langevin dynamics."""


def toy_gradients(
    theta: Tensor, x: Tensor, *, dataset_size: int | None = None, likelihood_variance: float = 2.0
) -> Tensor:
    """Return the gradient of ``toy_potential`` in theta in closed form, ``(..., B, 2)``; same arguments."""
    size = len(x) if dataset_size is None else dataset_size
    first, second = theta[..., :1], theta[..., 1:]
    # A chain is chaotic: another order of these operations rounds differently and yields another chain.
    near, far = x - first, x - first - second
    log_ratio = -far.square() / (2 * likelihood_variance) - (-near.square() / (2 * likelihood_variance))
    of_second = torch.sigmoid(log_ratio)  # (..., B): probability that x comes from the second component
    pull_near, pull_far = near / likelihood_variance, far / likelihood_variance
    return torch.stack(
        [
            first / PRIOR_VARIANCES[0] - size * ((1 - of_second) * pull_near + of_second * pull_far),
            second / PRIOR_VARIANCES[1] - size * of_second * pull_far,
        ],
        dim=-1,
    )


def toy_data(
    num_examples: int = 100, *, offset: float = 2.0, likelihood_variance: float = 2.0, seed: int = _DATA_SEED
) -> Tensor:
    """Draw ``(n,)`` float64 values, each around 0 or around ``offset`` with equal probability."""
    random = np.random.RandomState(seed)
    component = random.randint(0, 2, num_examples)
    return torch.from_numpy(random.normal(offset * component, math.sqrt(likelihood_variance)))


def toy_grid_posterior(
    x: Tensor,
    *,
    likelihood_variance: float = 2.0,
    first: tuple[float, float] = (-3.0, 5.0),
    second: tuple[float, float] = (-5.0, 5.0),
    resolution: int = 200,
) -> GridPosterior:
    """Evaluate the posterior given all data on a regular grid over the two ranges."""
    across, up = (torch.linspace(*span, resolution, dtype=torch.float64) for span in (first, second))
    theta = torch.stack(torch.meshgrid(across, up, indexing="ij"), dim=-1)  # (G, H, 2)
    # Row by row: the per-example potentials of the whole grid would take n times the memory.
    potential = torch.stack(
        [toy_potential(row, x.double(), likelihood_variance=likelihood_variance).mean(-1) for row in theta]
    )
    return GridPosterior(across, up, torch.softmax(-potential.flatten(), 0).view_as(potential))


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
    """Keep every theta at which the gradients of the batch cancel, before the kick; the only warm-up is step 0."""
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
    """Run stochastic gradient Langevin dynamics and keep every state."""
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
    """Count the sign changes of theta_2 between successive samples ``(M, 2)``; the two modes differ in this sign."""
    side = samples[:, 1] > 0
    return int((side[1:] != side[:-1]).sum())


def share_below(samples: Tensor) -> float:
    """Share of the samples ``(M, 2)`` in the mode with negative theta_2; nan without a sample."""
    return float((samples[:, 1] < 0).double().mean())


def figure_toy(posterior: GridPosterior, chains: Mapping[str, Tensor], title: str) -> Figure:
    """Draw the posterior, and the samples ``(M, 2)`` of each chain over its contours."""
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


def replicate(seed: int, out: Path | None = None, target: str = "variance 1") -> dict[str, Any]:
    """Run one seed: samples after the first tenth, mode switches and share of the second mode for each chain."""
    data, variance = TARGETS[target], TARGETS[target]["likelihood_variance"]
    x = toy_data(**data)
    posterior = toy_grid_posterior(x, likelihood_variance=variance)
    options = {"likelihood_variance": variance, "seed": seed}
    chains = {"triggered": triggered_chain(x, NUM_STEPS, lr=LEARNING_RATE, **options).samples}
    for step_size in STEP_SIZES:
        chains[f"SGLD {step_size:g}"] = langevin_chain(x, NUM_STEPS, step_size=step_size, **options).samples
    kept = {name: samples[int(BURN_IN * len(samples)) :] for name, samples in chains.items()}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        shown = {name: samples[:: max(1, len(samples) // 400)] for name, samples in kept.items()}
        figure_toy(posterior, shown, f"{target}, seed {seed}").savefig(out / f"{target} seed {seed}.png", dpi=110)
    return {
        "seed": seed,
        "target": target,
        "grid_share": float(posterior.probs[:, posterior.second < 0].sum()),
        "chains": {
            name: {
                "samples": len(samples),
                "switches": mode_switches(samples),
                "share": share_below(samples) if len(samples) else None,
            }
            for name, samples in kept.items()
        },
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table with a row per target and chain, the seeds side by side."""
    lines = ["| target | chain | samples | mode switches | share of the second mode | on the grid |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for target in dict.fromkeys(result["target"] for result in results):
        of_target = [result for result in results if result["target"] == target]
        for name in of_target[0]["chains"]:
            rows = [result["chains"][name] for result in of_target]
            shares = ", ".join("-" if row["share"] is None else f"{row['share']:.2f}" for row in rows)
            counts = [", ".join(str(row[key]) for row in rows) for key in ("samples", "switches")]
            grid = np.mean([result["grid_share"] for result in of_target])
            lines.append(f"| {target} | {name} | {counts[0]} | {counts[1]} | {shares} | {grid:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_gradient_uncertainty_toy"))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=["variance 1"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [replicate(seed, options.out, target) for target in options.targets for seed in options.seeds]
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
