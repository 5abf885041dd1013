"""Gradient uncertainty on a posterior with two modes: does the chain find the other one?

    python -m tests.replicas.gradient_uncertainty_toy --seeds 0 1 2 --out outputs/replica_gradient_uncertainty_toy

The location of a mixture of two normals (100 draws; the modes differ in the sign of theta_2). The triggered chain and
Langevin dynamics at three step sizes take 25,000 steps over the same batches from the same start. Prints a Markdown
table and leaves ``results.json`` and figures; about half a minute of one core for each seed and target. ``--targets``
adds the easier and the harder one.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.methods.gradient_uncertainty.toy import toy_data, toy_grid_posterior
from tenfold.methods.gradient_uncertainty.toy_chain import (
    figure_toy,
    langevin_chain,
    mode_switches,
    share_below,
    triggered_chain,
)

TARGETS = {
    "variance 1": {"offset": 2.0, "likelihood_variance": 1.0},
    "variance 2": {"offset": 2.0, "likelihood_variance": 2.0},
    "far apart": {"offset": 3.0, "likelihood_variance": 0.5},
}
LEARNING_RATE = 0.005
STEP_SIZES = (1e-3, 3e-3, 1e-2)
NUM_STEPS = 25_000
BURN_IN = 0.1


def replicate(seed: int, out: Path | None = None, target: str = "variance 1") -> dict[str, Any]:
    """Of one seed: for each chain the samples kept after the first tenth, mode switches, share of the second mode."""
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
    """Markdown: a row for each target and chain, the seeds side by side."""
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
