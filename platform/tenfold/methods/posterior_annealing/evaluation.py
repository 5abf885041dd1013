"""Evaluation of probabilistic regressors: errors of the mean, calibration of the std."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.data.regression import TARGETS, RegressionData, RegressionSource
from tenfold.engine.run import Run
from tenfold.methods.posterior_annealing.predictor import RegressionEnsemble
from tenfold.metrics.regression.calibration import (
    error_uncertainty_correlation,
    expected_normalized_calibration_error,
    quantile_calibration,
    uncertainty_calibration_error,
)
from tenfold.metrics.regression.image_quality import image_psnr, image_ssim
from tenfold.metrics.regression.likelihoods import gaussian_nll
from tenfold.metrics.regression.scores import gaussian_crps, sharpness

BATCH = 256
LEVELS = (0.5, 0.9, 0.95)
"""Interval levels whose coverage is reported."""
MAX_QUANTILES = 2_000_000
"""Maximum number of (evenly spaced) elements in the quantile calibration and the rank correlation; all other metrics
use every element."""
MIN_STD = 1e-12
Nominal = Callable[[Tensor], Tensor]
"""Map from interval levels to Gaussian levels, as ``RegressionEnsemble.nominal``."""


@dataclass(frozen=True)
class Predictions:
    """Predictions and targets of a split, each float32 ``(N, C, ...)``."""

    mean: Tensor
    std: Tensor
    targets: Tensor

    @property
    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, std and targets of all elements, float64 ``(M,)``."""
        mean, std, targets = (each.flatten().double() for each in (self.mean, self.std, self.targets))
        return mean, std.clamp_min(MIN_STD), targets


def predict_source(run: Run, predict: Callable[..., Mapping[str, Tensor]], source: RegressionSource) -> Predictions:
    """Predict a whole split, distributed over all workers.

    Args:
        run: Execution context.
        predict: Maps a batch of inputs, as keywords, to ``mean`` and ``std``.
        source: The split.
    """
    parts: dict[str, list[Tensor]] = {"mean": [], "std": [], TARGETS: []}
    index: list[Tensor] = []
    with torch.inference_mode():
        for batch in run.loader(source.read, len(source), BATCH, shuffle=False).epoch(0):
            index.append(batch.pop("index"))
            targets = batch.pop(TARGETS)
            outputs = predict(**batch)
            parts["mean"].append(outputs["mean"].float().cpu())
            parts["std"].append(outputs["std"].float().cpu().expand_as(parts["mean"][-1]))
            parts[TARGETS].append(targets)
    rows = torch.cat(index)
    gathered = {name: run.gather_rows(torch.cat(values), rows, len(source)) for name, values in parts.items()}
    return Predictions(gathered["mean"], gathered["std"], gathered[TARGETS])


def point_metrics(predictions: Predictions, prefix: str) -> dict[str, float]:
    """Return MSE, RMSE and MAE in target units, and the mean Gaussian NLL with all constants, in nats."""
    mean, std, targets = predictions.flat
    error = targets - mean
    return {
        f"{prefix}/mse": float(error.square().mean()),
        f"{prefix}/rmse": float(error.square().mean().sqrt()),
        f"{prefix}/mae": float(error.abs().mean()),
        f"{prefix}/nll": float(gaussian_nll(mean, 2 * std.log(), targets, full=True)),
    }


def uncertainty_metrics(
    predictions: Predictions, prefix: str, num_bins: int, nominal: Nominal | None = None
) -> dict[str, float]:
    """Return calibration errors of the variance, its correlation with the error, CRPS, sharpness and coverage.

    Args:
        predictions: Predictions of a split.
        prefix: Prefix of the metric names.
        num_bins: Number of bins of the calibration errors.
        nominal: Level map of a recalibrated model; None: identity.
    """
    mean, std, targets = predictions.flat
    squared_error, variance = (targets - mean).square(), std.square()
    step = -(-len(mean) // MAX_QUANTILES)
    quantiles = quantile_calibration(mean[::step], std[::step], targets[::step], nominal=nominal)
    scores = ((targets - mean) / std).abs()
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    reach = torch.special.ndtri(0.5 + (levels if nominal is None else nominal(levels)) / 2)
    covered = {
        f"{prefix}/coverage_{round(100 * level)}": float((scores <= z).double().mean())
        for level, z in zip(LEVELS, reach.tolist(), strict=True)
    }
    return covered | {
        f"{prefix}/uce": uncertainty_calibration_error(squared_error, variance, n_bins=num_bins),
        f"{prefix}/uce_equal_mass": uncertainty_calibration_error(
            squared_error, variance, n_bins=num_bins, strategy="mass"
        ),
        f"{prefix}/ence": expected_normalized_calibration_error(squared_error, variance, n_bins=num_bins),
        f"{prefix}/correlation": error_uncertainty_correlation(squared_error, variance),
        f"{prefix}/rank_correlation": error_uncertainty_correlation(
            squared_error[::step], variance[::step], kind="spearman"
        ),
        f"{prefix}/mace": quantiles.mace,
        f"{prefix}/rmsce": quantiles.rmsce,
        f"{prefix}/miscalibration_area": quantiles.area,
        f"{prefix}/crps": float(gaussian_crps(mean, std, targets)),
        f"{prefix}/sharpness": sharpness(std),
    }


def image_metrics(predictions: Predictions, prefix: str, max_value: float) -> dict[str, float]:
    """Return PSNR in dB and SSIM, each averaged over images."""
    sums = {"psnr": 0.0, "ssim": 0.0}
    for start in range(0, len(predictions.mean), BATCH):
        predicted = predictions.mean[start : start + BATCH].clamp(0, max_value)
        targets = predictions.targets[start : start + BATCH]
        for name, metric in (("psnr", image_psnr), ("ssim", image_ssim)):
            sums[name] += len(predicted) * metric(predicted, targets, max_value=max_value)
    return {f"{prefix}/{name}": value / len(predictions.mean) for name, value in sums.items()}


def all_metrics(
    predictions: Predictions, prefix: str, num_bins: int, data: RegressionData, nominal: Nominal | None = None
) -> dict[str, float]:
    """Return all reported metrics of a split; arguments as in ``uncertainty_metrics``."""
    metrics = point_metrics(predictions, prefix) | uncertainty_metrics(predictions, prefix, num_bins, nominal)
    if data.max_value is not None:
        metrics |= image_metrics(predictions, prefix, data.max_value)
    return metrics


def held_out_metrics(run: Run, predictor: RegressionEnsemble, data: RegressionData, num_bins: int) -> dict[str, float]:
    """Return all metrics of a predictor on the validation and test splits, named ``val/...`` and ``test/...``."""
    metrics: dict[str, float] = {}
    for part in ("val", "test"):
        predictions = predict_source(run, predictor, data.part(part))
        metrics |= all_metrics(predictions, part, num_bins, data, predictor.nominal)
    return metrics
