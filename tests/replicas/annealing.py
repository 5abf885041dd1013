"""Shared code of the posterior annealing replicas: data, training, report, command line.

A plain training loop over the public functions of the method, with the settings of its ``Config``; the weight of the
prior and the learning rate change at every step.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor, nn

from tenfold.engine.storage import Storage
from tenfold.methods.posterior_annealing.predictor import RegressionEnsemble
from tenfold.methods.posterior_annealing.recipe import objective_loss
from tenfold.methods.posterior_annealing.schedules import annealing_weight
from tenfold.methods.posterior_annealing.settings import Config
from tenfold.metrics.regression.calibration import (
    calibration_bins,
    error_uncertainty_correlation,
    expected_normalized_calibration_error,
    quantile_calibration,
    uncertainty_calibration_error,
)
from tenfold.metrics.regression.likelihoods import gaussian_nll
from tenfold.metrics.regression.recalibration import IsotonicCalibrator, SigmaScaler
from tenfold.metrics.regression.scores import gaussian_crps, sharpness
from tenfold.tasks import Slot
from tests.replicas.threads import one_thread

NUM_BINS = 15
NLL, ANNEALED = "gaussian_nll", "annealed l2=1"
"""Schemes of every replica."""


@dataclass(frozen=True)
class Examples:
    """Inputs in the order of the arguments of the network, and targets; each with N rows."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, rows: Tensor) -> "Examples":
        return Examples(tuple(each[rows] for each in self.inputs), self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One protocol: data, network, training settings and schemes."""

    name: str
    draw: Callable[[int], tuple[Examples, Examples]]
    """Returns training and test examples for a seed."""
    build: Callable[[float], nn.Module]
    """Returns an untrained network with the given dropout rate."""
    num_epochs: int
    batch_size: int
    learning_rate: float
    schemes: Mapping[str, Config]
    thresholds: Sequence[float] = ()
    """Test errors for which the first epoch that reaches them is reported."""
    dropout: float = 0.1
    """Dropout rate of MC dropout."""
    specified: Mapping[str, str] = field(default_factory=dict)
    """MSE / NLL / UCE of each scheme measured for the specification of the method with the same protocol."""


def train(replica: Replica, scheme: str, seed: int) -> dict[str, Any]:
    """Train a scheme and evaluate it on the test examples; the result is JSON-serialisable.

    Returns:
        ``mse``, ``nll`` (no constant), ``uce`` and further scores of the final model (only ``mse`` if no variance is
        learnt), ``epochs_to`` each threshold (None: never), ``history`` with test error and NLL of the
        first network after every epoch, ``quantiles`` and ``bins`` of the reliability diagram, ``seconds`` of training.
    """
    config, started = replica.schemes[scheme], time.perf_counter()
    learnt, test = replica.draw(seed)
    fitted, kept = _divide(config, learnt, seed)
    members = config.num_members if config.uncertainty == "deep_ensemble" else 1
    with one_thread():
        trained = [_fit(replica, config, fitted, test, seed, member) for member in range(members)]
        seconds = time.perf_counter() - started
        predictor = _predictor([network for network, _ in trained], config, test)
        if kept is not None:
            _recalibrate(predictor, config, kept)
        mean, std = _predict(predictor, test)
    history = trained[0][1]
    curve = [epoch["mse"] for epoch in history]
    has_std = config.objective != "mse" or config.uncertainty != "head"
    scores = _scores(mean, std, test.targets.double(), predictor.nominal, has_std=has_std)
    return {
        "scheme": scheme,
        "seed": seed,
        **scores,
        "epochs_to": {f"{threshold:g}": first_at_most(curve, threshold) for threshold in replica.thresholds},
        "history": history,
        "seconds": seconds,
    }


def _fit(
    replica: Replica, config: Config, learnt: Examples, test: Examples, seed: int, member: int
) -> tuple[nn.Module, list[dict[str, float]]]:
    torch.manual_seed(int(np.random.SeedSequence((seed, member)).generate_state(1)[0]))
    network = replica.build(replica.dropout if config.uncertainty == "mc_dropout" else 0.0)
    steps = replica.num_epochs * math.ceil(len(learnt) / replica.batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=replica.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    count, history = itertools.count(), []
    for epoch in range(1, replica.num_epochs + 1):
        network.train()
        for rows in torch.randperm(len(learnt)).split(replica.batch_size):
            batch = learnt.rows(rows)
            # The weight of the last step is exactly 0: training ends with the plain likelihood.
            tau = config.start * annealing_weight(
                next(count), steps - 1, kind=config.schedule, hold=config.hold, end=config.end, rate=config.rate
            )
            loss = objective_loss(config, *network(*batch.inputs), batch.targets, tau)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        mean, log_variance = _answers(network, test)
        history.append(
            {
                "epoch": epoch,
                "mse": float((test.targets - mean).square().mean()),
                "nll": float(gaussian_nll(mean, log_variance, test.targets)),
            }
        )
    return network, history


def _answers(network: nn.Module, examples: Examples) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        mean, log_variance = network.eval()(*examples.inputs)
    return mean, log_variance.expand_as(mean)


def _predictor(networks: Sequence[nn.Module], config: Config, examples: Examples) -> RegressionEnsemble:
    """Return the predictor that the method would serve, for targets that are standardised already."""
    channels = examples.targets.shape[1]
    schemas = tuple(
        Slot(name=f"input {index}", dtype=str(each.dtype).removeprefix("torch."), shape=tuple(each.shape[1:]))
        for index, each in enumerate(examples.inputs)
    )
    return RegressionEnsemble(
        networks, inputs=schemas, classes=("target",) * channels, mean=torch.zeros(channels), std=torch.ones(channels),
        uncertainty=config.uncertainty, num_passes=config.num_passes, input_noise=config.input_noise,
        homoscedastic=config.objective == "mse",
    )  # fmt: skip


def _recalibrate(predictor: RegressionEnsemble, config: Config, kept: Examples) -> None:
    mean, std = _predict(predictor, kept)
    if config.recalibration == "isotonic":
        curve = quantile_calibration(mean, std, kept.targets.double())
        predictor.calibrator = IsotonicCalibrator().fit(curve.expected, curve.observed)
        return
    method = "nll" if config.recalibration == "sigma_nll" else "ratio"
    predictor.scale = SigmaScaler(method).fit(mean, std, kept.targets.double()).scale


def _predict(predictor: RegressionEnsemble, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return mean and std, float64, shaped like the targets."""
    answers = predictor(**{f"input {index}": each for index, each in enumerate(examples.inputs)})
    return answers["mean"].double(), answers["std"].expand_as(examples.targets).double()


def first_at_most(values: Sequence[float], threshold: float) -> int | None:
    """Number, from 1, of the first value that is at most the threshold; None if there is none."""
    return next((number for number, value in enumerate(values, 1) if value <= threshold), None)


def _scores(
    mean: Tensor, std: Tensor, targets: Tensor, nominal: Callable[[Tensor], Tensor], *, has_std: bool
) -> dict[str, Any]:
    squared_error, variance = (targets - mean).square(), std.square()
    scores: dict[str, Any] = {"mse": float(squared_error.mean())}
    if not has_std:
        return scores
    quantiles = quantile_calibration(mean, std, targets, nominal=nominal)
    bins = calibration_bins(squared_error, variance, n_bins=NUM_BINS, strategy="mass")
    return scores | {
        "nll": float(gaussian_nll(mean, variance.log(), targets)),
        "uce": uncertainty_calibration_error(squared_error, variance, n_bins=NUM_BINS),
        "uce_equal_mass": bins.calibration_error,
        "ence": expected_normalized_calibration_error(squared_error, variance, n_bins=NUM_BINS),
        "mace": quantiles.mace,
        "crps": float(gaussian_crps(mean, std, targets)),
        "sharpness": sharpness(std),
        "correlation": error_uncertainty_correlation(squared_error, variance),
        "quantiles": {"expected": quantiles.expected.tolist(), "observed": quantiles.observed.tolist()},
        "bins": {"variance": bins.variance.tolist(), "error": bins.error.tolist()},
    }


def _divide(config: Config, learnt: Examples, seed: int) -> tuple[Examples, Examples | None]:
    """Split the training examples into those used for training and those held out for recalibration."""
    if config.recalibration == "none":
        return learnt, None
    order = torch.from_numpy(np.random.default_rng((seed, len(learnt))).permutation(len(learnt)))
    size = round(config.calibration_fraction * len(learnt))
    return learnt.rows(order[size:]), learnt.rows(order[:size])


# -- the report

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def mean_of(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean of a score over seeds."""
    return float(np.mean([run[key] for run in runs]))


def mean_epochs_to(runs: Sequence[Mapping[str, Any]], threshold: float, num_epochs: int) -> float:
    """Mean number of epochs to a test error; a run that never reaches it counts as one epoch more than it took."""
    reached = [run["epochs_to"][f"{threshold:g}"] for run in runs]
    return float(np.mean([num_epochs + 1 if epoch is None else epoch for epoch in reached]))


def table(replica: Replica, results: Runs) -> str:
    """Markdown table of means and standard deviations over seeds."""
    scores = ("mse", "nll", "uce", "uce_equal_mass", "ence", "mace", "crps")
    titles = ["scheme", *scores, *(f"epochs to {threshold:g}" for threshold in replica.thresholds), "specification"]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for scheme, runs in results.items():
        cells = [_spread([run[score] for run in runs]) if score in runs[0] else "" for score in scores]
        for threshold in replica.thresholds:
            never = sum(run["epochs_to"][f"{threshold:g}"] is None for run in runs)
            epochs = mean_epochs_to(runs, threshold, replica.num_epochs)
            cells.append(f"{epochs:.1f}" + f" ({never} never)" * bool(never))
        lines.append(f"| {' | '.join([scheme, *cells, replica.specified.get(scheme, '')])} |")
    return "\n".join(lines)


def figure_reliability(results: Runs) -> Any:
    """Plot observed against nominal coverage, and squared error against variance in equal-mass bins; first seed."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for scheme, runs in results.items():
        run = runs[0]
        if "bins" not in run:
            continue
        left.plot(run["quantiles"]["expected"], run["quantiles"]["observed"], label=scheme)
        right.plot(np.sqrt(run["bins"]["variance"]), np.sqrt(run["bins"]["error"]), marker="o", ms=3, label=scheme)
    left.plot([0, 1], [0, 1], "k--", lw=1)
    left.set(xlabel="nominal coverage", ylabel="observed coverage", title="central intervals")
    variances = [each for runs in results.values() for each in runs[0].get("bins", {}).get("variance", [])]
    ends = np.sqrt([min(variances), max(variances)])
    right.plot(ends, ends, "k--", lw=1)
    right.set(
        xscale="log", yscale="log", xlabel="root of the mean variance", ylabel="root of the mean squared error",
        title=f"{NUM_BINS} bins of equal size",
    )  # fmt: skip
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    left.legend(fontsize=8)
    return figure


def figure_convergence(results: Runs) -> Any:
    """Plot test error and NLL after every epoch, means over seeds; schemes with the same training share a line."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    drawn: list[list[float]] = []
    for scheme, runs in results.items():
        curves = {score: np.mean([[each[score] for each in run["history"]] for run in runs], axis=0)
                  for score in ("mse", "nll")}  # fmt: skip
        if curves["mse"].tolist() in drawn:
            continue  # the first network of an ensemble is the single network
        drawn.append(curves["mse"].tolist())
        epochs = [epoch["epoch"] for epoch in runs[0]["history"]]
        for axis, score in zip(axes, curves, strict=True):
            if score in runs[0]:
                axis.plot(epochs, curves[score], label=scheme)
    axes[0].set(xlabel="epoch", ylabel="MSE", yscale="log", title="test error")
    axes[1].set(xlabel="epoch", ylabel="NLL without the constant", title="test likelihood")
    # The early NLL of an over-confident network would dominate the axis.
    lowest = min(line.get_ydata().min() for line in axes[1].get_lines())
    axes[1].set_ylim(lowest - 0.1, lowest + 2.5)
    axes[0].legend(fontsize=8)
    return figure


def main(replica: Replica, description: str | None, seeds: Sequence[int]) -> None:
    """Train every scheme for every seed, print the table, and write ``results.json`` and two figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--out", type=Path, default=Path("outputs") / f"replica_annealing_{replica.name}")
    parser.add_argument("--schemes", nargs="+", choices=list(replica.schemes), default=list(replica.schemes))
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for scheme in options.schemes:
        results[scheme] = [train(replica, scheme, seed) for seed in options.seeds]
        print(f"{scheme}: MSE {_spread([run['mse'] for run in results[scheme]])}", flush=True)
    text = table(replica, results)
    options.out.mkdir(parents=True, exist_ok=True)
    Storage(options.out).write_json("results.json", {"results": results, "table": text})
    for name, draw in (("reliability", figure_reliability), ("convergence", figure_convergence)):
        figure = draw(results)
        figure.savefig(options.out / f"{name}.png", dpi=110)
        pyplot.close(figure)
    seconds = sum(run["seconds"] for runs in results.values() for run in runs)
    print(f"\n{text}\n\nseconds of training in all: {seconds:.0f}")


def _spread(values: Sequence[float]) -> str:
    text = f"{np.mean(values):.4f}"
    return f"{text} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else text
