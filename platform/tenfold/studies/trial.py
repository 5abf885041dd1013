"""One trial of a study: a job with some of its keys set, run once and kept for good. Nothing here needs Ray."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.studies.jobs import apply_values
from tenfold.studies.records import StudyFolder, TrialRecord
from tenfold.studies.space import Scalar
from tenfold.studies.study import Point, Study, StudyError

WORST = 1e30
"""What searcher and scheduler are told of a metric that is not finite; large, yet safe to interpolate."""


@dataclass(frozen=True)
class Trial:
    """What the train function is told beside the job's container."""

    name: str
    """For people: the study, the point and the seed."""
    params: dict[str, Scalar]
    """The swept keys, already set in the container."""
    seed: int
    folder: Path
    """The trial's own folder; what is written there stays."""
    parent_run_id: str | None
    """Tracked run of the study, under which the trial opens its own."""
    on_epoch: Callable[[Mapping[str, float], int], None]
    """To be called with the metrics and the number (from 1) of every epoch, in the process of the trial."""


@dataclass(frozen=True)
class TrialOutcome:
    """What the train function returns."""

    metrics: Mapping[str, float]
    """Final metrics, the study's metric among them."""
    run_id: str | None = None
    """Tracked run of the trial."""
    history: Sequence[Mapping[str, float]] = ()
    """Metrics of each epoch, its number under ``epoch``; read only where ``on_epoch`` was never called, as by a job
    that finds itself trained already."""


TrainTrial = Callable[[dict[str, Any], Trial], TrialOutcome]


@dataclass(frozen=True)
class Work:
    """All that is needed to run the trials of a study; travels to the workers as a whole."""

    study: Study
    base: dict[str, Any]
    folder: Path
    train: TrainTrial
    parent_run_id: str | None

    def run(
        self, point: Point, seed: int, *, scheduled: bool, on_epoch: Callable[[dict[str, float]], None] | None = None
    ) -> TrialRecord:
        """Run one trial and keep its record; one that has a record already is replayed from it."""
        records = StudyFolder(self.folder)
        finished = records.finished(point, seed, scheduled=scheduled)
        if finished is not None:
            for row in finished.history if on_epoch else ():
                on_epoch(row)  # type: ignore[misc]  # the loop is empty without it
            return finished
        history: dict[int, dict[str, float]] = {}

        def keep(metrics: Mapping[str, float], epoch: int) -> None:
            history[epoch] = {"epoch": epoch, **{name: float(value) for name, value in metrics.items()}}
            if on_epoch:
                on_epoch(history[epoch])

        folder = records.trial_folder(point, seed)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.study.name}: {point.label}, seed {seed}"
        trial = Trial(name, dict(point.params), seed, folder, self.parent_run_id, keep)
        started = time.monotonic()
        outcome = self.train(apply_values(self.base, {**point.params, self.study.seed_key: seed}), trial)
        for told in outcome.history if not history else ():
            keep({name: value for name, value in told.items() if name != "epoch"}, int(told["epoch"]))
        metrics = {name: float(value) for name, value in outcome.metrics.items()}
        if self.study.metric not in metrics:
            raise StudyError(f"the job ended without the study's metric {self.study.metric}, only {sorted(metrics)}")
        record = TrialRecord(
            params=dict(point.params),
            seed=seed,
            status="done",
            metrics=metrics,
            history=[history[epoch] for epoch in sorted(history)],
            run_id=outcome.run_id,
            seconds=time.monotonic() - started,
        )
        records.write(record)
        return record

    def objective(self, value: float) -> float:
        """The metric as searcher and scheduler are told it: a number in every case."""
        if math.isfinite(value):
            return value
        return -WORST if self.study.mode == "max" else WORST
