"""Gradient uncertainty on scikit-learn's digits, with letters as out-of-distribution data.

    python -m tests.replicas.gradient_uncertainty_digits --seeds 0 1 2 --out outputs/replica_gradient_uncertainty

1,200 training and 597 test digits of 8 x 8. Out-of-distribution images are 840 letters A to J of matplotlib's fonts;
ambiguous images are pixel averages of two test digits of different classes. Baselines of the triggered chain: one
network, an ensemble of five, MC dropout, Langevin dynamics plain and corrected, SGHMC, SWAG, the last-layer Laplace
approximation, Bayes by backprop, and the same chain with random kicks at the same rate, all with initial settings,
not tuned. Prints Markdown tables (mean and standard deviation over seeds) and writes ``results.json`` and figures. Two
to three minutes on one core per seed.
"""

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from tenfold.data.embedded.handwriting.fonts import CHARACTERS, glyphs
from tenfold.data.embedded.handwriting.vocabulary import LETTERS
from tenfold.figures.uncertainty import figure_reliability, figure_scores
from tenfold.methods.gradient_uncertainty.baselines import SghmcChain, SwagChain, laplace_members
from tenfold.methods.gradient_uncertainty.batches import ShuffledBatches, endless
from tenfold.methods.gradient_uncertainty.members import posterior_predictive
from tenfold.methods.gradient_uncertainty.sampler import (
    GradientUncertaintySampler,
    PosteriorSamples,
    SamplerConfig,
)
from tenfold.methods.gradient_uncertainty.variational import MeanFieldNetwork
from tenfold.metrics.uncertainty import (
    detection_metrics,
    misclassification_auroc,
    pairwise_disagreement,
    predictive_uncertainty,
    probability_metrics,
)

NUM_TRAIN = 1200
BATCH_SIZE = 60
LEARNING_RATE = 0.1
NUM_STEPS = 1200
"""Training steps of one deterministic network."""
NUM_NETWORKS = 5
WARMUP, NUM_MEMBERS, MAX_STEPS = 400, 30, 6000
DROPOUT = 0.3
LANGEVIN_RATE, LANGEVIN_STEPS = 0.05, 2700
ROTATIONS = (-10.0, -10 / 3, 10 / 3, 10.0)
GROWTH = (1, 5, 10, 20, 30)
VARIATIONAL_RATE, INITIAL_STD = 1e-3, 0.02
METHODS = (
    *("deterministic", "triggered", "random kicks", "plain SGLD", "corrected SGLD", "SGHMC", "SWAG", "Laplace"),
    *("Bayes by backprop", "deep ensemble", "MC dropout"),
)


class Digits(NamedTuple):
    """Images ``(N, 1, 8, 8)`` in [0, 1]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    letters: Tensor
    blends: Tensor


def read_digits(seed: int) -> Digits:
    """Return a seeded split of the digits, the letters, and blends of test digits."""
    source = load_digits()
    images = torch.from_numpy(source.images / 16).float()[:, None]
    labels = torch.from_numpy(source.target).long()
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(labels)))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    first, second = torch.from_numpy(random.permutation(len(test))[: len(test) // 2 * 2]).view(2, -1)
    differ = labels[test[first]] != labels[test[second]]
    blends = (images[test[first[differ]]] + images[test[second[differ]]]) / 2
    return Digits(images[train], labels[train], images[test], labels[test], read_letters(), blends)


def read_letters() -> Tensor:
    """Render the letters of all fonts at four rotations, crop to the ink, pad to a square and box-resize to 8 x 8."""
    rows = []
    for glyph in glyphs()[:, [CHARACTERS.index(letter) for letter in LETTERS]].reshape(-1, 64, 64):
        for angle in ROTATIONS:
            turned = Image.fromarray(glyph).rotate(angle, Image.Resampling.BILINEAR)
            ink = turned.crop(turned.getbbox())
            side = max(ink.size)
            square = Image.new("L", (side, side))
            square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
            rows.append(np.asarray(square.resize((8, 8), Image.Resampling.BOX), dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(rows))[:, None]


def make_network(seed: int, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 10),
    )  # fmt: skip


def descend(network: nn.Module, batches: ShuffledBatches, num_steps: int) -> dict[str, Tensor]:
    """Train by plain gradient descent and return the parameters."""
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE)
    for (_, _, (inputs, labels)), _ in zip(endless(batches), range(num_steps), strict=False):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def sample(seed: int, batches: ShuffledBatches, max_steps: int, **settings: Any) -> PosteriorSamples:
    config = SamplerConfig(num_members=NUM_MEMBERS, seed=seed, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the number of members is a result
        return GradientUncertaintySampler(make_network(seed), config).run(batches, max_steps)


def measure(probs: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Compute the scores of an ensemble from the probabilities ``(K, N, C)`` of its members on the three sets."""
    scores = {name: predictive_uncertainty(values) for name, values in probs.items()}
    mean = probs["test"].mean(0)
    entropy = scores["test"].predictive_entropy
    found = {
        **probability_metrics(mean, labels)._asdict(),
        "entropy_test": float(entropy.mean()),
        "entropy_letters": float(scores["letters"].predictive_entropy.mean()),
        "information_test": float(scores["test"].mutual_information.mean()),
        "information_letters": float(scores["letters"].mutual_information.mean()),
        "auroc_information": detection_metrics(
            scores["test"].mutual_information, scores["letters"].mutual_information
        ).auroc,
        "auroc_blends": detection_metrics(entropy, scores["blends"].predictive_entropy).auroc,
        "auroc_errors": misclassification_auroc(mean, labels, entropy),
        "disagreement_letters": pairwise_disagreement(probs["letters"]),
    }
    return found | detection_metrics(entropy, scores["letters"].predictive_entropy)._asdict()


def replicate(seed: int, out: Path | None = None) -> dict[str, Any]:
    """Run all methods for one seed."""
    digits = read_digits(seed)
    batches = ShuffledBatches(digits.train, digits.train_labels, BATCH_SIZE, seed=seed)
    sets = {"test": digits.test, "letters": digits.letters, "blends": digits.blends}
    probs: dict[str, dict[str, Tensor]] = {}
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"seed": seed}

    def predict(name: str, members: Sequence[Mapping[str, Tensor]], start: float) -> None:
        seconds[name] = time.process_time() - start
        network = make_network(0).eval()
        probs[name] = {of: posterior_predictive(members, network, images) for of, images in sets.items()}

    start = time.process_time()
    networks = [
        descend(make_network(seed + 1000 * k), ShuffledBatches(digits.train, digits.train_labels, BATCH_SIZE,
                                                               seed=seed + 1000 * k), NUM_STEPS)
        for k in range(NUM_NETWORKS)
    ]  # fmt: skip
    predict("deep ensemble", networks, start)
    predict("deterministic", networks[:1], time.process_time())
    seconds["deterministic"] = seconds["deep ensemble"] / NUM_NETWORKS

    start = time.process_time()
    triggered = sample(seed, batches, MAX_STEPS, lr=LEARNING_RATE, noise_power=0.0, warmup=WARMUP)
    predict("triggered", triggered.members, start)
    steps = len(triggered.uncertainty_trace)
    rate = len(triggered.members) / (steps - WARMUP - 1)
    trace = triggered.uncertainty_trace[WARMUP + 1 :]
    result["chain"] = {
        "steps": steps,
        "members": len(triggered.members),
        "above_threshold": rate,
        "steps_between_kicks": float(np.mean(np.diff(triggered.steps))),
        "lowest_epoch": float(triggered.uncertainty_trace[:WARMUP].view(-1, len(batches)).mean(1).min()),
        "late_mean": float(trace.mean()),
        "late_99th": float(trace.quantile(0.99)),
    }
    start = time.process_time()
    random = sample(
        seed, batches, MAX_STEPS, lr=LEARNING_RATE, noise_power=0.0, warmup=WARMUP, random_kicks=min(rate, 1.0)
    )
    predict("random kicks", random.members, start)
    start = time.process_time()
    predict("plain SGLD", sample(seed, batches, LANGEVIN_STEPS, mode="plain", lr=LANGEVIN_RATE).members, start)
    for name, sample_members in BASELINES.items():
        start = time.process_time()
        predict(name, sample_members(seed, batches), start)
    with torch.no_grad():
        first = make_network(seed)
        first.load_state_dict(networks[0])
    start = time.process_time()
    predict("Laplace", laplace_members(first, batches, NUM_MEMBERS, seed), start)
    probs["MC dropout"] = _dropout_probs(seed, batches, sets)

    result["methods"] = {name: measure(probs[name], digits.test_labels) for name in METHODS}
    result["seconds"] = seconds
    result["growth"] = {
        k: measure({of: values[:k] for of, values in probs["triggered"].items()}, digits.test_labels)
        for k in GROWTH
        if k <= len(triggered.members)
    }
    if out is not None:
        _draw(out / f"seed{seed}", probs, digits.test_labels, triggered)
    print(f"seed {seed}: {result['chain']}", flush=True)
    return result


def _corrected(seed: int, batches: ShuffledBatches) -> list[dict[str, Tensor]]:
    return sample(seed, batches, LANGEVIN_STEPS, mode="corrected", lr=LANGEVIN_RATE).members


def _sghmc(seed: int, batches: ShuffledBatches) -> list[dict[str, Tensor]]:
    chain = SghmcChain(
        make_network(seed), num_examples=NUM_TRAIN, learning_rate=LANGEVIN_RATE, friction=0.1, prior_variance=1.0,
        num_members=NUM_MEMBERS, burn_in=0.2, seed=seed,
    )  # fmt: skip
    return _walked(chain, batches)


def _swag(seed: int, batches: ShuffledBatches) -> list[dict[str, Tensor]]:
    chain = SwagChain(
        make_network(seed), learning_rate=LEARNING_RATE, num_members=NUM_MEMBERS, rank=20, burn_in=0.2,
        steps_between=len(batches), seed=seed,
    )  # fmt: skip
    return _walked(chain, batches)


def _walked(chain: SghmcChain | SwagChain, batches: ShuffledBatches) -> list[dict[str, Tensor]]:
    for _ in chain.advance(batches, LANGEVIN_STEPS):
        pass
    return chain.members


def _bayes_by_backprop(seed: int, batches: ShuffledBatches) -> list[dict[str, Tensor]]:
    posterior = MeanFieldNetwork(make_network(seed), INITIAL_STD)
    optimizer = torch.optim.Adam(posterior.parameters(), VARIATIONAL_RATE)
    for (_, _, (inputs, labels)), _ in zip(endless(batches), range(LANGEVIN_STEPS), strict=False):
        optimizer.zero_grad()
        loss = functional.cross_entropy(posterior(inputs), labels) + posterior.divergence(1.0) / NUM_TRAIN
        loss.backward()
        optimizer.step()
    return posterior.draws(NUM_MEMBERS, seed)


BASELINES = {"corrected SGLD": _corrected, "SGHMC": _sghmc, "SWAG": _swag, "Bayes by backprop": _bayes_by_backprop}


def _dropout_probs(seed: int, batches: ShuffledBatches, sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    network = make_network(seed, DROPOUT)
    descend(network, batches, NUM_STEPS)
    with torch.no_grad():
        return {
            of: torch.stack([network(images).softmax(1) for _ in range(NUM_MEMBERS)]) for of, images in sets.items()
        }


def _draw(folder: Path, probs: Mapping[str, Mapping[str, Tensor]], labels: Tensor, chain: PosteriorSamples) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("deterministic", "triggered"):
        entropies = {of: predictive_uncertainty(values).predictive_entropy for of, values in probs[name].items()}
        figure_scores(entropies, "predictive entropy, nats", name).savefig(folder / f"entropy {name}.png", dpi=110)
    means = {name: probs[name]["test"].mean(0) for name in METHODS}
    figure_reliability(means, labels, "test digits").savefig(folder / "reliability.png", dpi=110)
    figure = Figure(figsize=(6, 3), layout="constrained")
    panel: Any = figure.subplots()
    panel.plot(chain.uncertainty_trace.clamp(min=-5), linewidth=0.4)
    panel.plot(chain.steps, chain.uncertainty_trace[chain.steps], "o", markersize=3)
    panel.set_xlabel("step")
    panel.set_ylabel("gradient uncertainty")
    figure.savefig(folder / "trace.png", dpi=110)


COLUMNS = {
    "auroc": "AUROC of H, letters",
    "fpr95": "FPR95",
    "auroc_information": "AUROC of I",
    "auroc_blends": "AUROC of H, blends",
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "entropy_test": "mean H, test",
    "entropy_letters": "mean H, letters",
    "information_letters": "mean I, letters",
}


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables of means and standard deviations over seeds."""

    def spread(values: Sequence[float]) -> str:
        if len(values) == 1:
            return f"{values[0]:.3f}"
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"

    heads = " | ".join(COLUMNS.values())
    lines = [f"| method | {heads} |", "| --- |" + " --- |" * len(COLUMNS)]
    for name in METHODS:
        cells = [spread([result["methods"][name][key] for result in results]) for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| members | AUROC of H, letters | mean I, letters | accuracy |", "| --- | --- | --- | --- |"]
    for k in GROWTH:
        rows = [result["growth"][k] for result in results if k in result["growth"]]
        if rows:
            cells = [spread([row[key] for row in rows]) for key in ("auroc", "information_letters", "accuracy")]
            lines.append(f"| {k} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_gradient_uncertainty"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [replicate(seed, options.out) for seed in options.seeds]
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(tables(results))


if __name__ == "__main__":
    main()
