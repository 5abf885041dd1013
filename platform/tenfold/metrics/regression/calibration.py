"""Calibration of predicted variances: do they match the errors?

Uncertainty calibration error: Laves et al., "Well-calibrated Regression Uncertainty in Medical Imaging with Deep
Learning", MIDL 2020. Expected normalised calibration error: Levi et al., 2019. Quantile calibration: Kuleshov et al.,
"Accurate Uncertainties for Deep Learning Using Calibrated Regression", ICML 2018.
All arithmetic is in float64 whatever the input dtype; tensors and numpy arrays of any shape are flattened.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tenfold.metrics.regression.elements import standard_scores

Strategy = Literal["width", "mass"]
CorrelationKind = Literal["pearson", "spearman"]
Values = Tensor | np.ndarray
PART, DEVICE_PART = 2**16, 2**24
"""Values processed at a time on a CPU, and on another device."""


class CalibrationBins(NamedTuple):
    """Elements binned by their predicted variance; k of the bins are not empty."""

    error: Tensor
    """Mean squared error in each non-empty bin, float64 ``(k,)``."""
    variance: Tensor
    """Mean predicted variance in each non-empty bin, float64 ``(k,)``."""
    proportion: Tensor
    """Share of all elements in each bin, float64 ``(n_bins,)``."""

    @property
    def calibration_error(self) -> float:
        """sum_m |B_m| / N |error - variance|, in squared units of the target."""
        weight = self.proportion[self.proportion > 0]
        return float((weight * (self.error - self.variance).abs()).sum())

    @property
    def normalized_error(self) -> float:
        """Mean over the non-empty bins of |sqrt variance - sqrt error| / sqrt variance.

        Infinite if a bin has a variance of 0 and an error above 0.
        """
        std, error = self.variance.sqrt(), self.error.sqrt()
        gap = (std - error).abs()
        return float(torch.where(gap > 0, gap / std, 0.0).mean())


class QuantileCalibration(NamedTuple):
    """Observed against nominal coverage of central prediction intervals."""

    expected: Tensor
    """Nominal levels, ``(n_levels,)``, evenly spaced from 0 to 1."""
    observed: Tensor
    """Share of the targets inside the interval of each level, ``(n_levels,)``."""
    mace: float
    """Mean absolute difference between the two."""
    rmsce: float
    """Root of the mean squared difference."""
    area: float
    """Area between the piecewise linear reliability curve and the diagonal."""


def uncertainty_calibration_error(
    squared_error: Values,
    variance: Values,
    *,
    n_bins: int = 15,
    strategy: Strategy = "width",
    include_min: bool = True,
) -> float:
    """Uncertainty calibration error: sum_m |B_m| / N |mean squared error - mean variance|, B_m binned by variance.

    Args:
        squared_error: (target - mean)^2, any shape.
        variance: Predicted variance, as many values.
        n_bins: M, at least 1.
        strategy: ``width`` divides [min, max] of the variances into bins of equal width, open at the left and closed at
            the right; ``mass`` sorts the variances (stable) into bins of equal counts, up to one element.
        include_min: Whether the first bin includes its left edge. False reproduces the authors' code, which drops the
            elements of smallest variance from every bin but counts them in N. No effect for ``mass``, or if all
            variances are equal: one bin then holds all elements.

    Returns:
        The error in squared units of the target; ``calibration_bins`` gives the bins behind it.

    Raises:
        ValueError: Different sizes, no values, negative values, NaN or infinity, fewer than one bin, unknown
            strategy.
    """
    bins = calibration_bins(squared_error, variance, n_bins=n_bins, strategy=strategy, include_min=include_min)
    return bins.calibration_error


def expected_normalized_calibration_error(
    squared_error: Values,
    variance: Values,
    *,
    n_bins: int = 15,
    strategy: Strategy = "width",
    include_min: bool = True,
) -> float:
    """Expected normalised calibration error: mean over non-empty bins of |std - rmse| / std.

    ``std`` is the root of a bin's mean variance, ``rmse`` that of its mean squared error. Takes the arguments of
    ``uncertainty_calibration_error`` and raises the same errors; the result has no unit.
    """
    bins = calibration_bins(squared_error, variance, n_bins=n_bins, strategy=strategy, include_min=include_min)
    return bins.normalized_error


def error_uncertainty_correlation(squared_error: Values, variance: Values, kind: CorrelationKind = "pearson") -> float:
    """Correlation of errors and predicted uncertainties.

    Args:
        squared_error: Any shape; pass square roots of both for the correlation of |r| and sigma.
        variance: As many values.
        kind: ``pearson``, or ``spearman`` for rank correlation with mean ranks for ties.

    Returns:
        In [-1, 1]; NaN if either input is constant.

    Raises:
        ValueError: Different sizes, no values, negative values, NaN or infinity, unknown kind.
    """
    if kind not in get_args(CorrelationKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(CorrelationKind))}, got {kind!r}")
    errors, variances = (each.to(torch.float64) for each in checked_values(squared_error, variance))
    if bool((errors == errors[0]).all()) or bool((variances == variances[0]).all()):
        return math.nan
    from scipy import stats

    correlate = stats.pearsonr if kind == "pearson" else stats.spearmanr
    return float(correlate(errors.cpu().numpy(), variances.cpu().numpy()).statistic)


def quantile_calibration(
    mean: Values, std: Values, target: Values, n_levels: int = 100, *, nominal: Callable[[Tensor], Tensor] | None = None
) -> QuantileCalibration:
    """Compare the coverage of the predicted Gaussians' central intervals with their nominal levels.

    Args:
        mean, target: Same shape.
        std: Positive, broadcasts to that shape.
        n_levels: Number of levels from 0 to 1, at least 2.
        nominal: Recalibration: maps the desired levels to those to request from the Gaussians; None is the identity.

    Returns:
        Nominal and observed coverage, and three summaries of the difference.

    Raises:
        ValueError: Mismatched shapes, no values, a non-positive std, NaN or infinity, fewer than two levels.
    """
    if n_levels < 2:
        raise ValueError(f"n_levels must be at least 2, got {n_levels}")
    residual, spread = standard_scores(mean, std, target)
    distance = (residual / spread).abs().flatten().sort().values
    expected = torch.linspace(0, 1, n_levels, dtype=torch.float64, device=distance.device)
    # Half-width of the central interval in std, infinite at level 1; one sort serves all levels.
    reach = torch.special.ndtri(0.5 + (expected if nominal is None else nominal(expected)) / 2)
    observed = torch.searchsorted(distance, reach, right=True).to(torch.float64) / distance.numel()
    gap = observed - expected
    return QuantileCalibration(
        expected=expected,
        observed=observed,
        mace=float(gap.abs().mean()),
        rmsce=float(gap.square().mean().sqrt()),
        area=_area(gap, 1 / (n_levels - 1)),
    )


def calibration_bins(
    squared_error: Values,
    variance: Values,
    *,
    n_bins: int = 15,
    strategy: Strategy = "width",
    include_min: bool = True,
) -> CalibrationBins:
    """Bin elements by their predicted variance.

    Takes the arguments of ``uncertainty_calibration_error`` and raises the same errors.

    Returns:
        Means over the non-empty bins, and the share of all elements in every bin.
    """
    check_binning(n_bins, strategy)
    errors, variances = checked_values(squared_error, variance)
    place_of = _mass_bins(variances, n_bins) if strategy == "mass" else _width_bins(variances, n_bins, include_min)
    # In parts, so that intermediates stay in the caches and need no memory of the size of the input.
    part = PART if errors.device.type == "cpu" else DEVICE_PART
    sums = [errors.new_zeros(n_bins, dtype=torch.float64) for _ in range(3)]
    for error_part, variance_part in zip(errors.split(part), variances.split(part), strict=True):
        weights = (None, error_part.to(torch.float64), variance_part.to(torch.float64))
        place = place_of(weights[2])
        for total, each in zip(sums, weights, strict=True):
            total += torch.bincount(place, each, minlength=n_bins)[:n_bins]
    return bins_of_sums(sums[0], sums[1], sums[2], errors.numel())


def bins_of_sums(counts: Tensor, errors: Tensor, variances: Tensor, total: int) -> CalibrationBins:
    """Build bins from the count, sum of squared errors and sum of variances of each, ``(n_bins,)``."""
    filled = counts > 0
    size = counts[filled]
    return CalibrationBins(errors[filled] / size, variances[filled] / size, counts / total)


def check_binning(n_bins: int, strategy: str) -> None:
    """Check the number of bins and the strategy.

    Raises:
        ValueError: Fewer than one bin, or an unknown strategy.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")


def width_edges(low: float, high: float, n_bins: int, device: "torch.device | str" = "cpu") -> Tensor:
    """Return float64 edges ``(n_bins + 1,)``, evenly spaced from ``low`` to ``high``, both exact."""
    return torch.linspace(low, high, n_bins + 1, dtype=torch.float64, device=device)


def checked_values(squared_error: Values, variance: Values) -> tuple[Tensor, Tensor]:
    """Check both inputs and return them flattened, on one device, in their own dtypes.

    Raises:
        ValueError: Different sizes, no values, negative values, NaN or infinity.
    """
    errors, variances = _flat(squared_error, "squared_error"), _flat(variance, "variance")
    if errors.numel() != variances.numel():
        raise ValueError(
            f"squared_error and variance must have equally many values, got {errors.numel()} and {variances.numel()}"
        )
    return errors, variances.to(errors.device)


def _flat(values: Values, name: str) -> Tensor:
    flat = torch.as_tensor(values).detach().flatten()
    if not flat.numel():
        raise ValueError(f"{name} must hold at least one value, got none")
    low, high = (float(end) for end in flat.aminmax())  # NaN if any value is
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"{name} must be finite and not negative, got values from {low} to {high}")
    return flat


def _width_bins(variances: Tensor, n_bins: int, include_min: bool) -> Callable[[Tensor], Tensor]:
    """Return a function from variances to their bins, ``n_bins`` for those outside every bin."""
    low, high = (float(end) for end in variances.aminmax())
    edges = width_edges(low, high, n_bins, variances.device)

    def place_of(part: Tensor) -> Tensor:
        if low == high:
            return torch.zeros_like(part, dtype=torch.int64)
        place = torch.searchsorted(edges, part) - 1  # -1 for the minimum
        return place.clamp_(min=0) if include_min else torch.where(place < 0, n_bins, place)

    return place_of


def _mass_bins(variances: Tensor, n_bins: int) -> Callable[[Tensor], Tensor]:
    """Return a function from consecutive parts of the variances to their bins.

    The first ``N % n_bins`` bins have one element more than the others. The last value of each bin tells where a
    variance belongs, except for ties with it: the first of these fill the bin, the others go to the next.
    """
    total = variances.numel()
    sizes = torch.full((n_bins,), total // n_bins, device=variances.device)
    sizes[: total % n_bins] += 1
    ends = sizes.cumsum(0)
    if variances.dtype == torch.bfloat16:
        variances = variances.float()
    # numpy sorts only values, many times faster than torch, which also returns indices.
    ordered = torch.from_numpy(np.sort(variances.numpy())) if variances.is_cpu else variances.sort().values
    bounds = ordered[ends - 1].to(torch.float64)
    after = ordered[ends.clamp(max=total - 1)].to(torch.float64)
    ties = bounds[(bounds == after) & (ends < total)].unique()
    starts = torch.searchsorted(ordered, ties.to(ordered.dtype))
    seen = torch.zeros_like(starts)

    def place_of(part: Tensor) -> Tensor:
        place = torch.searchsorted(bounds, part)
        if len(ties):
            nearest = torch.searchsorted(ties, part).clamp_(max=len(ties) - 1)
            where = (ties[nearest] == part).nonzero().squeeze(1)
            which, order = nearest[where].sort(stable=True)
            counts = torch.bincount(which, minlength=len(ties))
            number = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[which]
            place[where[order]] = torch.searchsorted(ends, starts[which] + seen[which] + number, right=True)
            seen.add_(counts)
        return place

    return place_of


def _area(gap: Tensor, step: float) -> float:
    """Area under |gap| between points ``step`` apart; a segment that changes sign is two triangles."""
    left, right = gap[:-1], gap[1:]
    both = left.abs() + right.abs()
    crossing = (left.square() + right.square()) / (2 * both.clamp_min(1e-300))
    return float(torch.where(left * right < 0, crossing, both / 2).sum()) * step
