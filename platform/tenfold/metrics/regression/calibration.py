"""Whether predicted variances are as large as the errors that they announce.

Uncertainty calibration error: Laves et al., "Well-calibrated Regression Uncertainty in Medical Imaging with Deep
Learning", MIDL 2020. Expected normalised calibration error: Levi et al., 2019. Quantile calibration: Kuleshov et al.,
"Accurate Uncertainties for Deep Learning Using Calibrated Regression", ICML 2018.
All arithmetic is in float64, whatever comes in; tensors and numpy arrays of any shape are flattened.
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
"""So many values at once, on a CPU and elsewhere."""


class CalibrationBins(NamedTuple):
    """Elements grouped by their predicted variance; k of the bins are not empty."""

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
        """Mean over the non-empty bins of |sqrt variance - sqrt error| / sqrt variance; infinite where an error meets a
        variance of 0."""
        std, error = self.variance.sqrt(), self.error.sqrt()
        gap = (std - error).abs()
        return float(torch.where(gap > 0, gap / std, 0.0).mean())


class QuantileCalibration(NamedTuple):
    """How often targets fall into central intervals, against how often they should."""

    expected: Tensor
    """Nominal levels, ``(n_levels,)`` evenly from 0 to 1."""
    observed: Tensor
    """Share of the targets within the interval of that level, ``(n_levels,)``."""
    mace: float
    """Mean absolute difference of the two."""
    rmsce: float
    """Root of the mean squared difference."""
    area: float
    """Area between the curve of the two, drawn in straight pieces, and the diagonal."""


def uncertainty_calibration_error(
    squared_error: Values,
    variance: Values,
    *,
    n_bins: int = 15,
    strategy: Strategy = "width",
    include_min: bool = True,
) -> float:
    """sum_m |B_m| / N |mean of squared errors - mean of variances| over bins B_m of the variance.

    Args:
        squared_error: (target - mean)^2, any shape.
        variance: Predicted, as many values.
        n_bins: M, at least 1.
        strategy: ``width`` cuts [min, max] of the variances into equal bins, open at the left, closed at the right;
            ``mass`` sorts them (equal ones stay in order) into bins of as equal a size as can be.
        include_min: Close the first bin at the left too. The authors' own code leaves the elements of smallest variance
            out of every bin, though N counts them: False does so. Without effect on ``mass``, and where all variances
            are equal: then one bin holds all.

    Returns:
        The error in squared units of the target; ``calibration_bins`` gives the bins it is computed from.

    Raises:
        ValueError: Unequal sizes, nothing in them, negative values, NaN or infinity, fewer than one bin, unknown
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
    """Mean over the non-empty bins of |sqrt(mean variance) - sqrt(mean squared error)| / sqrt(mean variance).

    Arguments, bins and refusals are those of ``uncertainty_calibration_error``; the result has no unit.
    """
    bins = calibration_bins(squared_error, variance, n_bins=n_bins, strategy=strategy, include_min=include_min)
    return bins.normalized_error


def error_uncertainty_correlation(squared_error: Values, variance: Values, kind: CorrelationKind = "pearson") -> float:
    """Correlation of errors with predicted uncertainties.

    Args:
        squared_error: Any shape; give its root, and that of the variance, for the correlation of |r| with sigma.
        variance: As many values.
        kind: ``spearman`` correlates the ranks, equal values sharing their mean rank.

    Returns:
        In [-1, 1]; NaN where one of the two is constant.

    Raises:
        ValueError: Unequal sizes, nothing in them, negative values, NaN or infinity, unknown kind.
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
    """How often targets fall into the central intervals of the predicted Gaussians.

    Args:
        mean, target: One shape.
        std: Positive, broadcasts to it.
        n_levels: Levels from 0 to 1, at least 2.
        nominal: Levels at which a recalibrated model asks its Gaussians so that the given ones hold; None: the same.

    Returns:
        Levels, shares, and three summaries of how far they are apart.

    Raises:
        ValueError: Shapes that don't fit, nothing in them, a std that is not positive, NaN or infinity, fewer than two
            levels.
    """
    if n_levels < 2:
        raise ValueError(f"n_levels must be at least 2, got {n_levels}")
    residual, spread = standard_scores(mean, std, target)
    distance = (residual / spread).abs().flatten().sort().values
    expected = torch.linspace(0, 1, n_levels, dtype=torch.float64, device=distance.device)
    # A central interval is all within this many std; infinite at level 1. One sort then serves all levels.
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
    """Group elements by their predicted variance.

    Arguments and refusals are those of ``uncertainty_calibration_error``.

    Returns:
        Means over the non-empty bins, and the share of all elements in every bin.
    """
    check_binning(n_bins, strategy)
    errors, variances = checked_values(squared_error, variance)
    place_of = _mass_bins(variances, n_bins) if strategy == "mass" else _width_bins(variances, n_bins, include_min)
    # Part by part: what is between the values and the sums stays in the caches, and takes no memory of their size.
    part = PART if errors.device.type == "cpu" else DEVICE_PART
    sums = [errors.new_zeros(n_bins, dtype=torch.float64) for _ in range(3)]
    for error_part, variance_part in zip(errors.split(part), variances.split(part), strict=True):
        weights = (None, error_part.to(torch.float64), variance_part.to(torch.float64))
        place = place_of(weights[2])
        for total, each in zip(sums, weights, strict=True):
            total += torch.bincount(place, each, minlength=n_bins)[:n_bins]
    return bins_of_sums(sums[0], sums[1], sums[2], errors.numel())


def bins_of_sums(counts: Tensor, errors: Tensor, variances: Tensor, total: int) -> CalibrationBins:
    """Bins from how many elements each has, and the sums of their squared errors and variances, ``(n_bins,)`` each."""
    filled = counts > 0
    size = counts[filled]
    return CalibrationBins(errors[filled] / size, variances[filled] / size, counts / total)


def check_binning(n_bins: int, strategy: str) -> None:
    """Refuse fewer than one bin and an unknown strategy.

    Raises:
        ValueError: Either.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")


def width_edges(low: float, high: float, n_bins: int, device: "torch.device | str" = "cpu") -> Tensor:
    """float64 ``(n_bins + 1,)``, evenly from ``low`` to ``high``, both exact."""
    return torch.linspace(low, high, n_bins + 1, dtype=torch.float64, device=device)


def checked_values(squared_error: Values, variance: Values) -> tuple[Tensor, Tensor]:
    """Both in one dimension, on one device, in the dtypes they have.

    Raises:
        ValueError: Unequal sizes, nothing in them, negative values, NaN or infinity.
    """
    errors, variances = _flat(squared_error, "squared_error"), _flat(variance, "variance")
    if errors.numel() != variances.numel():
        raise ValueError(
            f"squared_error and variance must have as many values, got {errors.numel()} and {variances.numel()}"
        )
    return errors, variances.to(errors.device)


def _flat(values: Values, name: str) -> Tensor:
    flat = torch.as_tensor(values).detach().flatten()
    if not flat.numel():
        raise ValueError(f"{name} must hold at least one value, got none")
    low, high = (float(end) for end in flat.aminmax())  # NaN if there is one
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"{name} must be finite and not negative, got values from {low} to {high}")
    return flat


def _width_bins(variances: Tensor, n_bins: int, include_min: bool) -> Callable[[Tensor], Tensor]:
    """Gives the bin of each of some variances, ``n_bins`` for those in none."""
    low, high = (float(end) for end in variances.aminmax())
    edges = width_edges(low, high, n_bins, variances.device)

    def place_of(part: Tensor) -> Tensor:
        if low == high:
            return torch.zeros_like(part, dtype=torch.int64)
        place = torch.searchsorted(edges, part) - 1  # -1: the smallest
        return place.clamp_(min=0) if include_min else torch.where(place < 0, n_bins, place)

    return place_of


def _mass_bins(variances: Tensor, n_bins: int) -> Callable[[Tensor], Tensor]:
    """Gives the bins of parts of the variances, in their order; the first ``N % n_bins`` have one more than the others.

    The values at the bins' ends say where a variance belongs, but for those equal to one of them: the first of these
    fill its bin, the others go on to the next.
    """
    total = variances.numel()
    sizes = torch.full((n_bins,), total // n_bins, device=variances.device)
    sizes[: total % n_bins] += 1
    ends = sizes.cumsum(0)
    if variances.dtype == torch.bfloat16:
        variances = variances.float()
    # numpy sorts values alone, many times as fast as torch, which numbers them, too.
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
    """Of |gap| between points ``step`` apart; a piece that changes sign is two triangles."""
    left, right = gap[:-1], gap[1:]
    both = left.abs() + right.abs()
    crossing = (left.square() + right.square()) / (2 * both.clamp_min(1e-300))
    return float(torch.where(left * right < 0, crossing, both / 2).sum()) * step
