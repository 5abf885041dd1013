"""Trials of a study: a job with some keys set, run once and recorded. Independent of Ray."""

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
"""Stand-in for a metric that is not finite, for searcher and scheduler; large, yet safe to interpolate."""


@dataclass(frozen=True)
class Trial:
    """Arguments of the train function beside the job's container."""

    name: str
    """Readable name: study, point and seed."""
    params: dict[str, Scalar]
    """The swept keys, already set in the container."""
    seed: int
    folder: Path
    """Folder of the trial, kept after it ends."""
    parent_run_id: str | None
    """Tracked run of the study, parent of the trial's run."""
    on_epoch: Callable[[Mapping[str, float], int], None]
    """Callback with the metrics and the number (from 1) of every epoch, in the process of the trial."""


@dataclass(frozen=True)
class TrialOutcome:
    """Result of the train function."""

    metrics: Mapping[str, float]
    """Final metrics, including the study's metric."""
    run_id: str | None = None
    """Tracked run of the trial."""
    history: Sequence[Mapping[str, float]] = ()
    """Metrics of each epoch, its number under ``epoch``; used only if ``on_epoch`` was never called, as by a job that
    was trained before."""


TrainTrial = Callable[[dict[str, Any], Trial], TrialOutcome]


@dataclass(frozen=True)
class Work:
    """Everything needed to run the trials of a study; sent to the workers as a whole."""

    study: Study
    base: dict[str, Any]
    folder: Path
    train: TrainTrial
    parent_run_id: str | None

    def run(
        self, point: Point, seed: int, *, scheduled: bool, on_epoch: Callable[[dict[str, float]], None] | None = None
    ) -> TrialRecord:
        """Run one trial and write its record; a trial with a record is replayed from it."""
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
            raise StudyError(f"metrics of the job must include the study's {self.study.metric}, got {sorted(metrics)}")
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
        """Metric for searcher and scheduler: always a finite number."""
        if math.isfinite(value):
            return value
        return -WORST if self.study.mode == "max" else WORST
