"""Streaming calibration errors: one pass, a few megabytes, mergeable over workers.

Equal-width bins need the range of all variances and equal-mass bins their order; neither is known before the last
batch. Instead, a table keeps cells by predicted variance, each with a count and two sums. A cell holds all variances
that share the leading bits of a float32: all 32 at first, one fewer whenever there are too many cells. The table is
therefore as fine as its limit allows, whatever the range of the variances.
"""

import torch
from torch import Tensor

from tenfold.metrics.regression.calibration import (
    PART,
    CalibrationBins,
    Strategy,
    Values,
    bins_of_sums,
    check_binning,
    checked_values,
    width_edges,
)

MAX_CELLS = 65536
_MANTISSA_BITS = 23


class StreamingCalibration:
    """Uncertainty calibration error of batches that are seen once.

    Exact, up to float32 rounding of variances on the edge of a bin, as long as no more than ``max_cells`` distinct
    variances were seen (see ``exact``; with equal-mass bins, ties at an edge get the mean error of their cell).
    Beyond that, sums and range stay exact, and only cells cut by an edge are approximated: counted on one side (equal
    width) or split by count (equal mass). These are at most n_bins - 1 cells, each ``resolution`` times its variance
    wide.

    Args:
        max_cells: Size limit of the table, at least 256; a cell takes 24 bytes.

    Raises:
        ValueError: ``max_cells`` below 256.
    """

    def __init__(self, max_cells: int = MAX_CELLS) -> None:
        if max_cells < 256:
            raise ValueError(f"max_cells must be at least 256, got {max_cells}")
        self._max_cells = max_cells
        self._shift = 0
        self._keys = torch.empty(0, dtype=torch.int64)
        self._sums = torch.empty(3, 0, dtype=torch.float64)  # counts, squared errors, variances
        self._low, self._high = torch.inf, -torch.inf
        self._at_low = torch.zeros(3, dtype=torch.float64)
        self._waiting: list[Tensor] = []  # squared errors and variances of batches not yet in the table
        self._num_waiting = 0

    @property
    def count(self) -> int:
        """Number of elements seen."""
        self._settle()
        return int(self._sums[0].sum())

    @property
    def exact(self) -> bool:
        """Whether every cell is still a single float32."""
        self._settle()
        return self._shift == 0

    @property
    def resolution(self) -> float:
        """Width of a cell relative to its variance."""
        self._settle()
        return 2.0 ** (self._shift - _MANTISSA_BITS)

    def update(self, squared_error: Values, variance: Values) -> None:
        """Add a batch.

        Args:
            squared_error: (target - mean)^2, any shape.
            variance: Predicted variance, as many values.

        Raises:
            ValueError: Different sizes, no values, negative values, NaN or infinity.
        """
        errors, variances = (each.cpu() for each in checked_values(squared_error, variance))
        low, high = (float(end) for end in variances.aminmax())
        for part in zip(errors.split(PART), variances.split(PART), strict=True):
            self._waiting.append(torch.stack([each.to(torch.float64) for each in part]))
            self._num_waiting += len(part[0])
            if self._num_waiting >= PART:
                self._settle()
        lowest = variances == low
        count = int(lowest.sum())
        at_low = [count, float(errors[lowest].sum(dtype=torch.float64)), low * count]
        self._note_range(low, high, torch.tensor(at_low, dtype=torch.float64))

    def merge(self, other: "StreamingCalibration") -> None:
        """Add everything that ``other`` has seen; the order of merging affects only rounding."""
        self._settle()
        other._settle()
        if not len(other._keys):
            return
        self._note_range(other._low, other._high, other._at_low)
        keys = other._keys
        if other._shift > self._shift:
            self._coarsen(other._shift - self._shift)
        self._insert(keys >> (self._shift - other._shift), other._sums)

    def bins(self, *, n_bins: int = 15, strategy: Strategy = "width", include_min: bool = True) -> CalibrationBins:
        """Bin everything seen so far; arguments as in ``uncertainty_calibration_error``.

        Raises:
            ValueError: No batch was seen, fewer than one bin, unknown strategy.
        """
        check_binning(n_bins, strategy)
        self._settle()
        if not len(self._keys):
            raise ValueError("bins need at least one batch, got none; call update first")
        sums = self._mass_sums(n_bins) if strategy == "mass" else self._width_sums(n_bins, include_min)
        return bins_of_sums(sums[0], sums[1], sums[2], self.count)

    def _width_sums(self, n_bins: int, include_min: bool) -> Tensor:
        result = torch.zeros(3, n_bins, dtype=torch.float64)
        if self._low == self._high:
            result[:, 0] = self._sums.sum(dim=1)
            return result
        centres = self._sums[2] / self._sums[0]
        place = torch.searchsorted(width_edges(self._low, self._high, n_bins), centres) - 1
        result.index_add_(1, place.clamp_(0, n_bins - 1), self._sums)
        if not include_min:
            result[:, 0] -= self._at_low
        return result

    def _mass_sums(self, n_bins: int) -> Tensor:
        """Differences of the cumulative sums at the bins' ends, linear within a cell."""
        ends = torch.full((n_bins,), self.count // n_bins, dtype=torch.float64)
        ends[: self.count % n_bins] += 1
        ends = ends.cumsum(0)
        nothing = torch.zeros(3, 1, dtype=torch.float64)
        cumulated = torch.cat([nothing, self._sums.cumsum(1)], dim=1)
        cell = (torch.searchsorted(cumulated[0], ends) - 1).clamp_(0, len(self._keys) - 1)
        share = (ends - cumulated[0, cell]) / self._sums[0, cell]
        at_ends = cumulated[:, cell] + share * self._sums[:, cell]
        return at_ends.diff(dim=1, prepend=nothing)

    def _settle(self) -> None:
        """Insert waiting batches into the table."""
        if not self._waiting:
            return
        errors, variances = torch.cat(self._waiting, dim=1)
        self._waiting, self._num_waiting = [], 0
        # The bits of non-negative floats, read as integers, order like the floats.
        keys = variances.to(torch.float32).view(torch.int32).to(torch.int64) >> self._shift
        self._insert(keys, torch.stack([torch.ones_like(errors), errors, variances]))

    def _note_range(self, low: float, high: float, at_low: Tensor) -> None:
        if low < self._low:
            self._low, self._at_low = low, at_low.clone()
        elif low == self._low:
            self._at_low = self._at_low + at_low
        self._high = max(self._high, high)

    def _insert(self, keys: Tensor, sums: Tensor) -> None:
        self._set(torch.cat([self._keys, keys]), torch.cat([self._sums, sums], dim=1))
        while len(self._keys) > self._max_cells:
            self._coarsen(1)

    def _coarsen(self, bits: int) -> None:
        self._shift += bits
        if len(self._keys):
            self._set(self._keys >> bits, self._sums)

    def _set(self, keys: Tensor, sums: Tensor) -> None:
        first, last = (int(end) for end in keys.aminmax())
        if last - first < 8 * len(keys):
            # One cell per possible key avoids the sort.
            cells, place = torch.arange(first, last + 1), keys - first
        else:
            cells, place = keys.unique(return_inverse=True)
        table = torch.stack([torch.bincount(place, row, minlength=len(cells)) for row in sums])
        filled = table[0] > 0
        self._keys, self._sums = cells[filled], table[:, filled]
