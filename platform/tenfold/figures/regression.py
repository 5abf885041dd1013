"""Pictures of how well predicted uncertainties fit the errors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tenfold.metrics.regression.calibration import CalibrationBins, QuantileCalibration, Values
from tenfold.metrics.regression.elements import flat_float64

_MAX_POINTS = 5000


def figure_reliability(curves: Mapping[str, QuantileCalibration], title: str = "Reliability") -> Figure:
    """Share of targets within central intervals over the interval's level, one line each; the diagonal is perfect.

    Args:
        curves: By the name for the legend.
        title: Above the panel.

    Raises:
        ValueError: No curve.
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
    """Mean squared error over mean predicted variance in each bin; larger marks hold more elements.

    Args:
        bins: By the name for the legend.
        title: Above the panel.

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
    """Absolute error over predicted std, one point an element (a seeded choice of 5,000), both axes logarithmic.

    The line is where they are equal; of a calibrated Gaussian 68% of the points lie below it.

    Args:
        squared_error, variance: As in ``uncertainty_calibration_error``.
        title: Above the panel.
        seed: Of the choice.

    Raises:
        ValueError: Unequal sizes, nothing in them, negative values, NaN or infinity.
    """
    error = flat_float64(squared_error, "squared_error").sqrt().cpu().numpy()
    std = flat_float64(variance, "variance").sqrt().cpu().numpy()
    if len(error) != len(std):
        raise ValueError(f"squared_error and variance must have as many values, got {len(error)} and {len(std)}")
    if len(error) > _MAX_POINTS:
        chosen = np.random.default_rng(seed).choice(len(error), _MAX_POINTS, replace=False)
        error, std = error[chosen], std[chosen]
    figure, panel = _panel("predicted std", "absolute error", title)
    shown = (error > 0) & (std > 0)  # 0 has no place on a logarithmic axis
    panel.scatter(std[shown], error[shown], s=4, alpha=0.3, linewidths=0)
    if shown.any():
        ends = [std[shown].min(), std[shown].max()]
        panel.plot(ends, ends, color="0.4", linestyle="--", linewidth=1)
        panel.set(xscale="log", yscale="log")
        # A std spans a decade or two: matplotlib's own labels would run into each other.
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(axis="x", labelsize=8)
    return figure


def _check_any(named: Mapping[str, object]) -> None:
    if not named:
        raise ValueError("there must be at least one thing to draw, got none")


def _panel(horizontal: str, vertical: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    panel: Any = figure.subplots()
    panel.set(xlabel=horizontal, ylabel=vertical)
    panel.set_title(title, fontsize=10)
    panel.grid(alpha=0.3)
    return figure, panel
