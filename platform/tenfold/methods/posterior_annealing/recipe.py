"""Training of regressors with calibrated uncertainty: the annealed likelihood and its baselines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.bundle import load_bundle
from tenfold.data.catalog import load_regression
from tenfold.data.regression import TARGETS, RegressionData, RegressionSource
from tenfold.engine.fit import Clock, FitPlan, FitResult, Loss, fit
from tenfold.engine.predict import check_classes
from tenfold.engine.recipe import save_results, train_once
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.methods.posterior_annealing.baselines import beta_nll_loss
from tenfold.methods.posterior_annealing.evaluation import held_out_metrics, point_metrics, predict_source
from tenfold.methods.posterior_annealing.figures import log_figures
from tenfold.methods.posterior_annealing.loss import annealed_likelihood_loss
from tenfold.methods.posterior_annealing.predictor import (
    EXPECTED,
    MEMBER,
    OBSERVED,
    SCALE,
    TARGET_MEAN,
    TARGET_STD,
    RegressionEnsemble,
    load,
)
from tenfold.methods.posterior_annealing.schedules import annealing_weight
from tenfold.methods.posterior_annealing.settings import Config
from tenfold.metrics.regression.calibration import quantile_calibration
from tenfold.metrics.regression.likelihoods import gaussian_nll
from tenfold.metrics.regression.recalibration import IsotonicCalibrator, SigmaScaler
from tenfold.models.dropout import shared_dropout
from tenfold.models.regressors.base import Regressor
from tenfold.models.regressors.build import build_regressor
from tenfold.tasks import target_shape
from tenfold.types import Batch

METRIC = "val/nll"
NUM_PROBES = 4
_READ_AT_ONCE = 512


def train(job: JobConfig, run: Run) -> Outcome:
    """Standardise the targets, train one or several networks, recalibrate if configured, evaluate and write a bundle.

    Args:
        job: Settings; ``job.method`` is a ``Config`` of this method.
        run: Execution context.
    """
    data = run.once_per_node(lambda: load_regression(job.data))
    trained = train_once(run, job, data.fingerprint, lambda folder: _train(job, data, run, folder))
    if run.share(run.recorder is not None):  # all workers take part in prediction
        predictor = load(load_bundle(trained.bundle), str(run.device))
        predictions = predict_source(run, predictor, data.test)
        if run.is_main:
            log_figures(run, job.method, data, predictor, predictions, trained.results["history"])
    return trained.outcome(METRIC, "min")


def evaluate(predictor: Any, data: Any, run: Run) -> dict[str, float]:
    """Return errors and calibration of a trained model on the validation and test splits of data with the same targets.

    Raises:
        ValueError: The targets or inputs of the data differ from those of the model.
    """
    loaded = run.once_per_node(lambda: load_regression(data))
    check_classes(predictor.classes, loaded.name, loaded.targets)
    return held_out_metrics(run, predictor, loaded, Config().num_bins)


def _train(job: JobConfig, data: RegressionData, run: Run, folder: Path) -> None:
    """Run the training stage; all of its output goes into ``folder``."""
    config: Config = job.method
    fitted, kept = _divide(config, len(data.train), run.seed)
    mean, std = target_statistics(data.train, fitted)
    results = []
    for member in range(config.num_members if config.uncertainty == "deep_ensemble" else 1):
        torch.manual_seed(int(np.random.SeedSequence((run.seed, member)).generate_state(1)[0]))
        network = _network(job, data)
        share_units(network, data, mean, std)
        if config.uncertainty == "mc_dropout":
            with shared_dropout(network):  # raises before training if the network has no dropout
                pass
        stage = f"member{member}" if config.uncertainty == "deep_ensemble" else "fit"
        results.append(_fit(job, data, run, network, (mean, std), fitted, stage))
    shape = data.test.read(np.arange(1))[TARGETS].shape[1:]
    options: dict[str, Any] = {
        "target_shape": target_shape(shape, data.inputs),
        "inputs": data.inputs, "classes": data.targets, "mean": mean, "std": std, "uncertainty": config.uncertainty,
        "num_passes": config.num_passes, "input_noise": config.input_noise, "homoscedastic": config.objective == "mse",
    }  # fmt: skip
    networks = [result.model for result in results]
    recalibrated, tensors = _recalibrate(
        config, run, RegressionEnsemble(networks, **options, device=str(run.device)), data, kept
    )
    predictor = RegressionEnsemble(networks, **options, **recalibrated, device=str(run.device))
    metrics = held_out_metrics(run, predictor, data, config.num_bins)
    if not run.is_main:
        return
    served = RegressionEnsemble([network.cpu() for network in networks], **options, **recalibrated)
    probes = {
        name: value
        for name, value in data.test.read(np.arange(min(NUM_PROBES, len(data.test)))).items()
        if name != TARGETS
    }
    weights = {
        f"{MEMBER.format(member)}{name}": value
        for member, network in enumerate(networks)
        for name, value in network.state_dict().items()
    }
    save_results(
        folder,
        job,
        served,
        probes,
        tensors={**weights, TARGET_MEAN: mean, TARGET_STD: std, **tensors},
        metrics=metrics,
        history=results[0].history,
        data_name=data.name,
        data_fingerprint=data.fingerprint,
    )


def _network(job: JobConfig, data: RegressionData) -> nn.Module:
    """Build an untrained network for the data; raises if it does not fit them."""
    if job.model.name.startswith("cnn2d_sr") and job.model.upscale != data.upscale:
        raise ValueError(
            f"model.upscale must be {data.upscale}, the scale of the targets of {data.name} relative to the inputs, "
            f"got {job.model.upscale}"
        )
    try:
        return build_regressor(job.model, data.inputs, len(data.targets))
    except ValueError as error:
        raise ValueError(
            f"{error}. Published experiments use model.name={data.network} for data like {data.name}"
        ) from error


def share_units(network: nn.Module, data: RegressionData, mean: Tensor, std: Tensor) -> None:
    """Standardise an input with the channels of the targets by the statistics of the targets; leave others unchanged.

    A noisy trajectory and the true one, a low-resolution image and the high-resolution one are the same quantity, so
    the network may pass its input through to its output.

    Args:
        network: Untrained network.
        data: Training data.
        mean, std: Mean and std of the training targets, ``(C,)``.
    """
    spatial = len(data.inputs) == 1 and len(data.inputs[0].shape) > 1
    if spatial and isinstance(network, Regressor) and data.inputs[0].shape[0] == len(mean):
        network.standardise_inputs(mean, std)


def _fit(
    job: JobConfig,
    data: RegressionData,
    run: Run,
    network: nn.Module,
    statistics: tuple[Tensor, Tensor],
    rows: np.ndarray,
    stage: str,
) -> FitResult:
    config: Config = job.method
    mean, std = (each.to(run.device) for each in statistics)

    def validate(model: nn.Module) -> Mapping[str, float]:
        # The schedule affects the loss only, never prediction.
        predictor = RegressionEnsemble(
            [model], inputs=data.inputs, classes=data.targets, mean=mean, std=std,
            homoscedastic=config.objective == "mse", device=str(run.device),
        )  # fmt: skip
        return point_metrics(predict_source(run, predictor, data.val), "val")

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        if config.learning_rate_schedule == "constant":
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

    source = run.loader(lambda chosen: data.train.read(rows[chosen]), len(rows), job.run.batch_size, shuffle=True)
    return fit(
        run,
        network,
        training_loss(config, data, mean, std),
        source,
        FitPlan.of(job.run, stage=stage),
        optimizer=lambda bare: torch.optim.Adam(
            bare.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        ),
        schedule=schedule,
        evaluate=validate,
    )


def training_loss(config: Config, data: RegressionData, mean: Tensor, std: Tensor) -> Loss:
    """Return the training loss on standardised targets, with the weight of the prior taken from the schedule.

    Args:
        config: Settings.
        data: Source of the batches.
        mean, std: Mean and std of the target channels, ``(C,)``, on the device of the batches.
    """

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        channels = (-1, *(1,) * (batch[TARGETS].ndim - 2))
        targets = (batch[TARGETS] - mean.view(channels)) / std.view(channels)
        predicted, log_variance = model(*(batch[schema.name] for schema in data.inputs))
        return objective_loss(config, predicted, log_variance, targets, tau_at(config, clock))

    return loss


def tau_at(config: Config, clock: Clock) -> float:
    """Return the weight of the prior at an optimiser step: ``start`` at the first step, 0 at the last."""
    last = max(clock.total_steps - 1, 1)
    weight = annealing_weight(
        min(clock.step, last), last, kind=config.schedule, hold=config.hold, end=config.end, rate=config.rate
    )
    return config.start * weight


def objective_loss(config: Config, mean: Tensor, log_variance: Tensor, targets: Tensor, tau: float) -> Tensor:
    """Return the loss named by ``config.objective``, averaged over all elements."""
    if config.objective == "annealed":
        return annealed_likelihood_loss(
            mean,
            log_variance,
            targets,
            tau=tau,
            residual_weight=config.residual_weight,
            coupling_weight=config.coupling_weight,
            residual_power=config.residual_power,
            detach_residual=config.detach_residual,
            form=config.form,
            validate=False,  # the training loop rejects a loss that is not finite once per epoch
        )
    if config.objective == "mse":
        # 0 times the variance head: DDP would wait for parameters without a gradient.
        return (targets.float() - mean.float()).square().mean() + 0.0 * log_variance.float().mean()
    if config.objective == "gaussian_nll":
        return gaussian_nll(mean, log_variance, targets, validate=False)
    return beta_nll_loss(mean, log_variance, targets, beta=config.beta, validate=False)


def target_statistics(source: RegressionSource, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean and std of every target channel, float32 ``(C,)``; a constant channel gets std 1."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None
    for start in range(0, len(rows), _READ_AT_ONCE):
        targets = (
            source.read(rows[start : start + _READ_AT_ONCE])[TARGETS].double().transpose(0, 1).flatten(1)
        )  # (C, n)
        # Sums are centred at the mean of the first batch to avoid catastrophic cancellation.
        shift = targets.mean(1) if shift is None else shift
        centred = targets - shift[:, None]
        count, total, squares = count + targets.shape[1], total + centred.sum(1), squares + centred.square().sum(1)
    assert shift is not None
    variance = (squares / count - (total / count).square()).clamp_min(0)
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return (shift + total / count).float(), std.float()


def _divide(config: Config, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the training rows into those used for training and those held out for recalibration."""
    if config.recalibration == "none":
        return np.arange(num), np.arange(0)
    order = np.random.default_rng((seed, num)).permutation(num)
    size = round(config.calibration_fraction * num)
    if not 0 < size < num:
        raise ValueError(
            f"calibration_fraction must leave both splits of {num} training examples non-empty, "
            f"got {config.calibration_fraction}"
        )
    return np.sort(order[size:]), np.sort(order[:size])


class _Rows:
    """A subset of the rows of a source."""

    def __init__(self, source: RegressionSource, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Any) -> Batch:
        return self._source.read(self._rows[np.asarray(rows)])


def _recalibrate(
    config: Config, run: Run, predictor: RegressionEnsemble, data: RegressionData, kept: np.ndarray
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fit the recalibration; return it as options of the predictor and as tensors of the bundle."""
    if config.objective == "mse" and config.uncertainty == "head":
        mean, std, targets = predict_source(run, predictor, data.val).flat
        scale = float(((targets - mean).square().mean() / std.square().mean()).sqrt())
        return {"scale": scale}, {SCALE: torch.tensor(scale)}
    if config.recalibration == "none":
        return {}, {SCALE: torch.tensor(1.0)}
    mean, std, targets = predict_source(run, predictor, _Rows(data.train, kept)).flat
    if config.recalibration == "isotonic":
        curve = quantile_calibration(mean, std, targets)
        expected, observed = (np.asarray(each, dtype=np.float64) for each in (curve.expected, curve.observed))
        calibrator = IsotonicCalibrator().fit(expected, observed)
        tensors = {SCALE: torch.tensor(1.0), EXPECTED: torch.from_numpy(expected), OBSERVED: torch.from_numpy(observed)}
        return {"calibrator": calibrator}, tensors
    scaler = SigmaScaler("nll" if config.recalibration == "sigma_nll" else "ratio").fit(mean, std, targets)
    scale = scaler.scale
    return {"scale": scale}, {SCALE: torch.tensor(scale)}
