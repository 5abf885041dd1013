"""Figures of regression uncertainty: reliability, calibration, errors against predicted std."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tenfold.metrics.regression.calibration import CalibrationBins, QuantileCalibration, Values
from tenfold.metrics.regression.elements import flat_float64

_MAX_POINTS = 5000


def figure_reliability(curves: Mapping[str, QuantileCalibration], title: str = "Reliability") -> Figure:
    """Plot the coverage of central intervals over their nominal level, one line per curve; the diagonal is ideal.

    Args:
        curves: Curves by their name in the legend.
        title: Title of the panel.

    Raises:
        ValueError: No curves.
    """
    _check_any(curves)
    figure, panel = _panel("level of the interval", "share of targets within", title)
    panel.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for name, curve in curves.items():
        panel.plot(curve.expected.cpu(), curve.observed.cpu(), label=f"{name} (MACE {curve.mace:.3f})")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.legend(fontsize=8)
    return figure


def figure_calibration(bins: Mapping[str, CalibrationBins], title: str = "Uncertainty calibration") -> Figure:
    """Plot the mean squared error over the mean predicted variance of each bin; larger markers hold more elements.

    Args:
        bins: Bins by their name in the legend.
        title: Title of the panel.

    Raises:
        ValueError: No bins.
    """
    _check_any(bins)
    figure, panel = _panel("mean predicted variance", "mean squared error", title)
    for name, each in bins.items():
        variance, error = each.variance.cpu().numpy(), each.error.cpu().numpy()
        share = each.proportion[each.proportion > 0].cpu().numpy()
        line = panel.plot(variance, error, linewidth=1, label=f"{name} (UCE {each.calibration_error:.4g})")[0]
        panel.scatter(variance, error, s=10 + 200 * share, color=line.get_color(), alpha=0.6, linewidths=0)
    end = max(float(each.variance.max()) for each in bins.values())
    panel.plot([0, end], [0, end], color="0.6", linestyle="--", linewidth=1)
    panel.legend(fontsize=8)
    return figure


def figure_error_scatter(
    squared_error: Values, variance: Values, title: str = "Error and uncertainty", seed: int = 0
) -> Figure:
    """Scatter absolute errors over predicted std, at most 5,000 elements chosen by the seed, on logarithmic axes.

    The line marks equality; for a calibrated Gaussian 68 % of the points lie below it.

    Args:
        squared_error, variance: As in ``uncertainty_calibration_error``.
        title: Title of the panel.
        seed: Seed of the choice.

    Raises:
        ValueError: Different sizes, no values, negative values, NaN or infinity.
    """
    error = flat_float64(squared_error, "squared_error").sqrt().cpu().numpy()
    std = flat_float64(variance, "variance").sqrt().cpu().numpy()
    if len(error) != len(std):
        raise ValueError(f"squared_error and variance must have equally many values, got {len(error)} and {len(std)}")
    if len(error) > _MAX_POINTS:
        chosen = np.random.default_rng(seed).choice(len(error), _MAX_POINTS, replace=False)
        error, std = error[chosen], std[chosen]
    figure, panel = _panel("predicted std", "absolute error", title)
    shown = (error > 0) & (std > 0)  # 0 cannot be shown on a logarithmic axis
    panel.scatter(std[shown], error[shown], s=4, alpha=0.3, linewidths=0)
    if shown.any():
        ends = [std[shown].min(), std[shown].max()]
        panel.plot(ends, ends, color="0.4", linestyle="--", linewidth=1)
        panel.set(xscale="log", yscale="log")
        # The std spans a decade or two, where matplotlib's default labels overlap.
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(axis="x", labelsize=8)
    return figure


def _check_any(named: Mapping[str, object]) -> None:
    if not named:
        raise ValueError("a figure needs at least one entry to draw, got none")


def _panel(horizontal: str, vertical: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    panel: Any = figure.subplots()
    panel.set(xlabel=horizontal, ylabel=vertical)
    panel.set_title(title, fontsize=10)
    panel.grid(alpha=0.3)
    return figure, panel
