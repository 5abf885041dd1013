"""Calibration errors of what does not fit into memory: one pass, a few megabytes, parts of a job can be added up.

Equal-width bins need the range of all variances, equal-mass bins their order; neither is known before the last batch.
What is kept instead is a table of cells by predicted variance, each with a count and two sums. A cell is all variances
that share the leading bits of a float32; it starts with all 32, and gives up the last bit whenever there are too many
cells. The table therefore is as fine as the limit allows over whatever range the variances have.
"""

import torch
from torch import Tensor

from tenfold.metrics.regression.calibration import (
    CalibrationBins,
    Strategy,
    Values,
    bins_of_sums,
    check_binning,
    width_edges,
)
from tenfold.metrics.regression.elements import flat_float64

MAX_CELLS = 65536
_MANTISSA_BITS = 23


class StreamingCalibration:
    """Uncertainty calibration error of batches that are seen once.

    Exact, up to float32 rounding of variances that lie on the edge of a bin, while no more than ``max_cells`` different
    variances were seen (``exact`` says so; with equal-mass bins equal variances must have one cell's mean error, too).
    Beyond that sums and range stay exact and only cells that an edge cuts are counted wholly on one side
    (equal width) or shared out by count (equal mass): at most n_bins - 1 cells, each as wide as ``resolution`` times
    its variance.

    Args:
        max_cells: Limit of the table, at least 256; 24 bytes and a sort of as many numbers for each.

    Raises:
        ValueError: A lower limit.
    """

    def __init__(self, max_cells: int = MAX_CELLS) -> None:
        if max_cells < 256:
            raise ValueError(f"max_cells must be at least 256, got {max_cells}")
        self._max_cells = max_cells
        self._shift = 0
        self._keys = torch.empty(0, dtype=torch.int64)
        self._sums = torch.empty(0, 3, dtype=torch.float64)  # count, squared errors, variances
        self._low, self._high = torch.inf, -torch.inf
        self._at_low = torch.zeros(3, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Elements seen."""
        return int(self._sums[:, 0].sum())

    @property
    def exact(self) -> bool:
        """Whether every cell still is a single float32."""
        return self._shift == 0

    @property
    def resolution(self) -> float:
        """Width of a cell as a share of its variance."""
        return 2.0 ** (self._shift - _MANTISSA_BITS)

    def update(self, squared_error: Values, variance: Values) -> None:
        """Add a batch.

        Args:
            squared_error: (target - mean)^2, any shape.
            variance: Predicted, as many values.

        Raises:
            ValueError: Unequal sizes, nothing in them, negative values, NaN or infinity.
        """
        errors, variances = flat_float64(squared_error, "squared_error"), flat_float64(variance, "variance")
        if errors.numel() != variances.numel():
            raise ValueError(
                f"squared_error and variance must have as many values, got {errors.numel()} and {variances.numel()}"
            )
        errors, variances = errors.cpu(), variances.cpu()
        low, high = (float(end) for end in variances.aminmax())
        lowest = variances == low
        sums = torch.stack([torch.ones_like(errors), errors, variances], dim=1)
        self._note_range(low, high, sums[lowest].sum(dim=0))
        # The bits of positive floats, read as whole numbers, have the order of the floats.
        keys = variances.to(torch.float32).view(torch.int32).to(torch.int64) >> self._shift
        self._insert(keys, sums)

    def merge(self, other: "StreamingCalibration") -> None:
        """Add all that another one has seen; the order of merging changes nothing but rounding."""
        if not len(other._keys):
            return
        self._note_range(other._low, other._high, other._at_low)
        keys = other._keys
        if other._shift > self._shift:
            self._coarsen(other._shift - self._shift)
        self._insert(keys >> (self._shift - other._shift), other._sums)

    def bins(self, *, n_bins: int = 15, strategy: Strategy = "width", include_min: bool = True) -> CalibrationBins:
        """Everything seen so far in the bins of ``uncertainty_calibration_error``, which see.

        Raises:
            ValueError: Nothing was seen, fewer than one bin, unknown strategy.
        """
        check_binning(n_bins, strategy)
        if not len(self._keys):
            raise ValueError("there must be at least one batch, got none: call update before")
        sums = self._mass_sums(n_bins) if strategy == "mass" else self._width_sums(n_bins, include_min)
        return bins_of_sums(sums[:, 0], sums[:, 1], sums[:, 2], self.count)

    def _width_sums(self, n_bins: int, include_min: bool) -> Tensor:
        result = torch.zeros(n_bins, 3, dtype=torch.float64)
        if self._low == self._high:
            result[0] = self._sums.sum(dim=0)
            return result
        centres = self._sums[:, 2] / self._sums[:, 0]
        place = torch.searchsorted(width_edges(self._low, self._high, n_bins), centres) - 1
        result.index_add_(0, place.clamp_(0, n_bins - 1), self._sums)
        if not include_min:
            result[0] -= self._at_low
        return result

    def _mass_sums(self, n_bins: int) -> Tensor:
        """Differences of the cumulative sums at the bins' ends, straight within a cell."""
        ends = torch.full((n_bins,), self.count // n_bins, dtype=torch.float64)
        ends[: self.count % n_bins] += 1
        ends = ends.cumsum(0)
        cumulated = torch.cat([torch.zeros(1, 3, dtype=torch.float64), self._sums.cumsum(0)])
        cell = (torch.searchsorted(cumulated[:, 0].contiguous(), ends) - 1).clamp_(0, len(self._keys) - 1)
        share = (ends - cumulated[cell, 0]) / self._sums[cell, 0]
        at_ends = cumulated[cell] + share[:, None] * self._sums[cell]
        return at_ends.diff(dim=0, prepend=torch.zeros(1, 3, dtype=torch.float64))

    def _note_range(self, low: float, high: float, at_low: Tensor) -> None:
        if low < self._low:
            self._low, self._at_low = low, at_low.clone()
        elif low == self._low:
            self._at_low = self._at_low + at_low
        self._high = max(self._high, high)

    def _insert(self, keys: Tensor, sums: Tensor) -> None:
        self._set(torch.cat([self._keys, keys]), torch.cat([self._sums, sums]))
        while len(self._keys) > self._max_cells:
            self._coarsen(1)

    def _coarsen(self, bits: int) -> None:
        self._shift += bits
        self._set(self._keys >> bits, self._sums)

    def _set(self, keys: Tensor, sums: Tensor) -> None:
        self._keys, place = keys.unique(return_inverse=True)
        self._sums = torch.zeros(len(self._keys), 3, dtype=torch.float64).index_add_(0, place, sums)
