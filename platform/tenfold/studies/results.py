"""Results of a study: mean and spread of each point's metrics over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tenfold.studies.records import StudyFolder, TrialRecord
from tenfold.studies.space import Scalar
from tenfold.studies.study import Point, Study


@dataclass(frozen=True)
class Spread:
    """One metric of a point over its seeds."""

    values: tuple[float, ...]
    """One value for each seed that reported the metric."""

    @property
    def num_seeds(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean; NaN without values or if any is NaN, so that a diverged seed counts against its point."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1); NaN below two values."""
        if self.num_seeds < 2 or not all(math.isfinite(value) for value in self.values):
            return math.nan
        return statistics.stdev(self.values)

    @property
    def min(self) -> float:
        return min(self.values) if self.values and not math.isnan(self.mean) else math.nan

    @property
    def max(self) -> float:
        return max(self.values) if self.values and not math.isnan(self.mean) else math.nan


@dataclass(frozen=True)
class PointResult:
    """A point with the results of its trials."""

    point: Point
    status: str
    """``done``: every seed; ``stopped`` by the scheduler; ``failed``: at least one; ``missing``: one has not run."""
    spreads: dict[str, Spread]
    """Metric to its spread over the finished seeds (for a stopped point, over all that ran)."""
    records: tuple[TrialRecord, ...] = ()

    @property
    def params(self) -> dict[str, Scalar]:
        return self.point.params

    def spread(self, metric: str) -> Spread:
        return self.spreads.get(metric, Spread(()))


@dataclass(frozen=True)
class StudyResult:
    """Result of a study; the files in ``folder`` hold the same."""

    study: Study
    folder: Path
    points: list[PointResult]
    """Baselines first, then the points of the space in the order planned or drawn."""
    run_id: str | None = None
    """Tracked run of the study."""
    seconds: float = 0.0
    """Wall time since this start, in seconds."""
    figures: dict[str, Path] = field(default_factory=dict)

    interrupted: bool = False
    """Whether trials are missing because the study was interrupted."""

    @property
    def best(self) -> PointResult | None:
        """Best point of the space by the mean of the study's metric, among points with every seed done."""
        best = None
        for result in self.points:
            if result.status != "done" or result.point.baseline or math.isnan(result.spread(self.study.metric).mean):
                continue
            if best is None or self.study.better(
                result.spread(self.study.metric).mean, best.spread(self.study.metric).mean
            ):
                best = result
        return best

    @property
    def records(self) -> list[TrialRecord]:
        """Every trial once, even if a baseline is also a point of the space."""
        return list({record.id: record for result in self.points for record in result.records}.values())


def collect(study: Study, points: Sequence[Point], folder: StudyFolder) -> list[PointResult]:
    """Collect the records of a study, point by point."""
    return [summarise(study, point, [folder.read(point, seed) for seed in study.seeds]) for point in points]


def summarise(study: Study, point: Point, records: Sequence[TrialRecord | None]) -> PointResult:
    """Summarise one point from its records, one for each seed of the study, None for a missing one."""
    present = [record for record in records if record is not None]
    states = {record.status for record in present}
    if "stopped" in states and study.scheduler is not None:
        status = "stopped"
    elif "failed" in states:
        status = "failed"
    elif len(present) < len(records) or "stopped" in states:
        status = "missing"
    else:
        status = "done"
    # A stopped seed is measured at another epoch than a finished one: never average both.
    counted = [record for record in present if record.status == "done"] if status != "stopped" else present
    names = {name for record in counted for name in record.metrics}
    spreads = {
        name: Spread(tuple(record.metrics[name] for record in counted if name in record.metrics)) for name in names
    }
    return PointResult(point, status, spreads, tuple(present))


def format_spread(spread: Spread, num_expected: int | None = None) -> str:
    """Format as ``91.2 ± 0.4``, two significant digits of spread; ``(n = 1)`` if fewer seeds than expected count."""
    if not spread.values:
        return "-"
    short = f" (n = {spread.num_seeds})" if num_expected is not None and spread.num_seeds != num_expected else ""
    if math.isnan(spread.std):
        return f"{spread.mean:.4g}{short}"
    digits = 0 if spread.std == 0 else max(0, 1 - math.floor(math.log10(spread.std)))
    digits = min(digits, 6) if spread.std else 3
    return f"{spread.mean:.{digits}f} ± {spread.std:.{digits}f}{short}"
