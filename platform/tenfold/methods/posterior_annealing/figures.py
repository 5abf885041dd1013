"""Figures of a training run: convergence, calibration, and examples with their uncertainty."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.data.regression import TARGETS, RegressionData
from tenfold.engine.run import Run
from tenfold.figures.history import figure_history
from tenfold.figures.regression import figure_calibration, figure_error_scatter, figure_reliability
from tenfold.methods.posterior_annealing.evaluation import MAX_QUANTILES, Predictions
from tenfold.methods.posterior_annealing.predictor import RegressionEnsemble
from tenfold.methods.posterior_annealing.settings import Config
from tenfold.metrics.regression.calibration import calibration_bins, quantile_calibration

NUM_EXAMPLES = 4


def log_figures(
    run: Run,
    config: Config,
    data: RegressionData,
    predictor: RegressionEnsemble,
    predictions: Predictions,
    history: list[dict[str, float]],
) -> None:
    """Log all figures of a finished training to the tracked run; ``predictions`` are those of the test split."""
    title = f"{config.objective} on {data.name}"
    mean, std, targets = predictions.flat
    step = -(-len(mean) // MAX_QUANTILES)
    squared_error, variance = (targets - mean).square(), std.square()
    bins = calibration_bins(squared_error, variance, n_bins=config.num_bins)
    run.log_figure("convergence.png", figure_history(history, ["train/loss", "val/mse", "val/nll"], title))
    curve = quantile_calibration(mean[::step], std[::step], targets[::step], nominal=predictor.nominal)
    run.log_figure("reliability.png", figure_reliability({config.objective: curve}, title))
    run.log_figure("calibration.png", figure_calibration({config.objective: bins}, title))
    run.log_figure("error_and_std.png", figure_error_scatter(squared_error, variance, title))
    batch: dict[str, Any] = data.test.read(np.arange(min(NUM_EXAMPLES, len(data.test))))
    truth = batch.pop(TARGETS)
    outputs = predictor(**batch)
    if truth.ndim == 4:
        run.log_figure("examples.png", figure_images(batch["input"], truth, outputs, data.max_value or 1.0, title))
    elif truth.ndim == 3:
        run.log_figure("examples.png", figure_series(batch["input"], truth, outputs, data.targets, title))


def figure_images(inputs: Tensor, truth: Tensor, outputs: Mapping[str, Tensor], max_value: float, title: str) -> Figure:
    """Draw a row per image: input, target, predicted mean, absolute error, predicted std; the last two on one scale.

    Args:
        inputs: ``(N, C', h, w)``.
        truth: ``(N, C, H, W)``, C 1 or 3.
        outputs: ``mean`` and ``std``, shaped like ``truth``.
        max_value: Pixel value of white.
        title: Title of the figure.
    """
    error = (truth - outputs["mean"]).abs().mean(1)
    std = outputs["std"].mean(1)
    figure = Figure(figsize=(9.2, 1.85 * len(truth) + 0.5), layout="constrained")
    panels: Any = figure.subplots(len(truth), 5, squeeze=False)
    shown = [_displayed(each, max_value) for each in (inputs, truth, outputs["mean"])]
    for row in range(len(truth)):
        for column, images in enumerate(shown):
            panels[row, column].imshow(images[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        top = float(max(error[row].max(), std[row].max()))
        for column, values in ((3, error[row]), (4, std[row])):
            drawn = panels[row, column].imshow(values, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
        figure.colorbar(drawn, ax=panels[row, 3:].tolist(), shrink=0.85)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    for panel, name in zip(panels[0], ("input", "target", "mean", "|error|", "std"), strict=True):
        panel.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def figure_series(
    inputs: Tensor, truth: Tensor, outputs: Mapping[str, Tensor], names: Sequence[str], title: str
) -> Figure:
    """Draw a row per series and a column per channel: target, noisy input, and the mean with a band of two std.

    Args:
        inputs: ``(N, C', T)``; drawn if it has the channels of the targets.
        truth: ``(N, C, T)``; at most the first four channels are drawn.
        outputs: ``mean`` and ``std``, shaped like ``truth``.
        names: Names of the channels.
        title: Title of the figure.
    """
    num_channels = min(truth.shape[1], 4)
    figure = Figure(figsize=(3.2 * num_channels, 1.9 * len(truth) + 0.5), layout="constrained")
    panels: Any = figure.subplots(len(truth), num_channels, squeeze=False, sharex=True)
    steps = np.arange(truth.shape[2])
    for row in range(len(truth)):
        for channel in range(num_channels):
            panel = panels[row, channel]
            mean, std = (outputs[name][row, channel].numpy() for name in ("mean", "std"))
            panel.fill_between(steps, mean - 2 * std, mean + 2 * std, alpha=0.3, linewidth=0, label="mean, 2 std")
            panel.plot(steps, mean, linewidth=1)
            panel.plot(steps, truth[row, channel].numpy(), color="black", linewidth=1, linestyle="--", label="target")
            if inputs.shape == truth.shape:
                panel.plot(steps, inputs[row, channel].numpy(), ".", color="0.6", markersize=2, label="input")
    for channel in range(num_channels):
        panels[0, channel].set_title(names[channel], fontsize=9)
    panels[0, 0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def _displayed(images: Tensor, max_value: float) -> np.ndarray:
    """Convert ``(N, C, H, W)`` to displayable values in [0, 1]: RGB, or the mean over channels."""
    scaled = (images / max_value).clamp(0, 1)
    return (scaled.permute(0, 2, 3, 1) if scaled.shape[1] == 3 else scaled.mean(1)).numpy()
