"""Pixel average precision: precision and recall over all pixels of a set, as the threshold of the maps varies.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020. Two histograms, of foreground
and background scores, replace one pass per threshold.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold.metrics.localisation.arrays import Array, to_tensor

IGNORE = 255
_PIXELS_AT_ONCE = 1 << 16
_CELL_BITS = 14
"""float32 numbers that differ only in their last 14 bits share a cell: 512 cells between 1/2 and 1 and in every octave
below, so that even and logarithmic thresholds rarely share one."""


class PixelAveragePrecision:
    """Histogram of the scores of foreground and background pixels.

    The bins are half-open between the thresholds, then [1, 2) for scores of exactly 1, and [2, 3), which is empty. With
    logarithmic thresholds, the last of which is 1, one more bin is empty. Scores below the first threshold are not
    counted, not even in the denominator of the recall.

    Args:
        thresholds: Ascending, in [0, 1]; see ``score_thresholds``.

    Raises:
        ValueError: No threshold, not ascending, or outside [0, 1].
    """

    def __init__(self, thresholds: Array | Sequence[float]) -> None:
        given = torch.as_tensor(thresholds, dtype=torch.float64)
        if given.ndim != 1 or not len(given) or not (given[0] >= 0 and given[-1] <= 1 and (given.diff() > 0).all()):
            raise ValueError(f"thresholds must ascend within [0, 1], got {given.tolist()[:5]} ...")
        self._edges = torch.cat([given, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)])
        cells = _cell(self._edges[self._edges <= 1])
        in_cell = torch.bincount(cells, minlength=int(_cell(torch.ones(1))) + 1)
        self._edges_before, self._crowded = in_cell.cumsum(0) - in_cell, in_cell > 1
        self.counts = torch.zeros(2, len(given) + 2, dtype=torch.int64)
        """Background and foreground pixels per bin, int64 ``(2, T + 2)``; the counts of workers can be added."""

    def update(self, score: Array, gt: Array) -> None:
        """Count the pixels of one image or of a batch.

        Args:
            score: Map ``(H, W)`` or maps ``(B, H, W)``, in [0, 1].
            gt: 1 foreground, 0 background, 255 ignored; same shape.

        Raises:
            ValueError: Different or wrong shapes, NaN, scores outside [0, 1], other values in ``gt``.
        """
        scores, truth = to_tensor(score), to_tensor(gt)
        if scores.ndim not in (2, 3) or scores.shape != truth.shape:
            raise ValueError(
                f"score and gt must both be (H, W) or (B, H, W), got {tuple(scores.shape)} and {tuple(truth.shape)}"
            )
        if not scores.numel():
            return
        low, high = (float(end) for end in torch.aminmax(scores))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"score must lie in [0, 1] without NaN, got {low} to {high}; see normalize_score_map")
        positive, negative = truth == 1, truth == 0
        if not (positive | negative | (truth == IGNORE)).all():
            raise ValueError(f"gt must be 0, 1 or {IGNORE}, got {truth.unique().tolist()[:8]}")
        row = (positive.byte() + 2 * (truth == IGNORE)).to(scores.device)  # background, foreground, ignored
        # In parts that fit in the processor's cache; an accelerator takes all at once.
        at_once = _PIXELS_AT_ONCE if scores.device.type == "cpu" else scores.numel()
        for some, rows in zip(scores.flatten().split(at_once), row.flatten().split(at_once), strict=True):
            # The first column is for scores below every threshold.
            places = (self.counts.shape[1] + 1) * rows.long() + self._bins(some) + 1
            counts = torch.bincount(places, minlength=3 * (self.counts.shape[1] + 1)).view(3, -1)
            self.counts += counts[:2, 1:].cpu()

    def _bins(self, scores: Tensor) -> Tensor:
        """Return the bin of each score, -1 below the first threshold; compares in float64, so that no edge moves."""
        exact = scores.double()
        if scores.device.type != "cpu":
            return torch.bucketize(exact, self._edges.to(scores.device), right=True) - 1
        # A bisection per pixel is slow: look up the number of edges below the score's cell and compare with the one
        # inside.
        cell = _cell(scores)
        before = self._edges_before.take(cell)
        bins = before + (exact >= self._edges.take(before)) - 1
        crowded = self._crowded.take(cell)
        if crowded.any():
            bins[crowded] = torch.bucketize(exact[crowded], self._edges, right=True) - 1
        return bins

    def compute(self) -> float:
        """Area under the precision-recall curve, in percent.

        Raises:
            RuntimeError: No foreground pixel was counted.
        """
        false, true = self.counts.flip(1).cumsum(1)
        if true[-1] == 0:
            raise RuntimeError("recall needs at least one foreground pixel, got none; update with a map that has some")
        found = true + false
        precision = true / found.clamp(min=1).double()
        recall = true / true[-1].double()
        return float(100 * (precision[1:] * recall.diff()).sum())

    def reset(self) -> None:
        """Reset the counts to zero."""
        self.counts = torch.zeros_like(self.counts)

    def merge(self, other: "PixelAveragePrecision") -> None:
        """Add the counts of another instance.

        Raises:
            ValueError: Its thresholds differ.
        """
        if not torch.equal(self._edges, other._edges):
            raise ValueError("other must have the same thresholds, got different thresholds")
        self.counts = self.counts + other.counts


def _cell(values: Tensor) -> Tensor:
    """Return the leading bits of each float32, which are monotonic over values in [0, 1]."""
    # abs: the sign bit of minus zero differs.
    return (values.float().abs().view(torch.int32) >> _CELL_BITS).long()
