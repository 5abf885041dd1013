"""Execution of a study on Ray Tune: every trial is a plain job, every finished trial is recorded.

The study's own records (``studies.records``) define what is finished, not Tune's snapshots, which lag behind and would
restore the settings of the first start. On a restart, independent trials (grid, random) are submitted unless they have
a record; for searches that depend on past trials (Optuna, ASHA), recorded trials are replayed in order without
computing, to restore the state of searcher and scheduler. Then the remaining trials run, with the concurrency of the
new start.

Seeds: a grid or random search without a scheduler runs every (point, seed) as a trial of its own. Optuna and ASHA
select points, so there a Tune trial is a point that runs its seeds in sequence: Optuna gets their mean; ASHA judges the
epochs of the first seed, and the other seeds run only for points that survive.
"""

import logging
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tenfold.engine import cluster
from tenfold.files import write_atomically
from tenfold.studies.jobs import study_folder_name
from tenfold.studies.records import StudyFolder, TrialRecord, write_json
from tenfold.studies.results import StudyResult, collect
from tenfold.studies.space import Axis
from tenfold.studies.study import Point, Study, StudyError, digest, format_value, short_name
from tenfold.studies.tracking import StudyTracking, open_study_run
from tenfold.studies.trial import TrainTrial, Work

if "ray" not in sys.modules:
    cluster.set_environment()  # Ray reads it on import, in the next line

from ray import tune
from ray.tune.schedulers import ASHAScheduler

log = logging.getLogger(__name__)

SAMPLERS: dict[str, Callable[..., Any]] = {
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "quniform": tune.quniform,
    "randint": tune.randint,
    "lograndint": tune.lograndint,
}
QUIET = ("ray.tune.tune", "ray.tune.execution.tune_controller", "ray.tune.analysis.experiment_analysis")
"""Loggers with advice on restoring Tune's own snapshots, and with warnings about files that are not written."""
COLOURS = re.compile("\x1b\\[[0-9;]*m")
ATTEMPTS_AGAIN = 1
"""Retries of a trial whose worker died; the job resumes from its checkpoint."""


class StudyFailedError(RuntimeError):
    """All trials of a study failed; the report in the study's folder has the errors."""


def run_study(
    study: Study,
    base: Mapping[str, Any],
    train: TrainTrial,
    *,
    storage: Path | str,
    identity: str = "",
    tracking: StudyTracking | None = None,
    command: str = "",
    max_concurrent_trials: int | None = None,
    trials_use_ray_train: bool = False,
) -> StudyResult:
    """Run or resume a study, and write its tables, figures and report.

    Args:
        study: The study, checked (``studies.jobs.check_study``).
        base: The job's container with ``study.base`` applied.
        train: Runs one job; sent to Ray's workers by cloudpickle and called outside the main thread. An exception ends
            only that trial.
        storage: Parent of the study's folder, readable and writable on every node.
        identity: Hash of the keys of ``base`` that affect results; equal hashes resume the same study. Empty: a hash of
            ``base``.
        tracking: Tracking of the study; None for no tracking.
        command: Command that runs this study, for the report and the message after an interruption.
        max_concurrent_trials: Overrides the study's own; may differ between starts.
        trials_use_ray_train: Whether a trial starts Ray Train; this needs Ray's dashboard, or a trial stopped early
            would never release its workers.

    Raises:
        StudyError: If another process is running this study, or this machine lacks the resources of a trial.
        StudyFailedError: If every trial failed.
        KeyboardInterrupt: After Ctrl-C, once the trials are stopped and the report is written.
    """
    from tenfold.studies.report import write_report  # imported late: workers need no plotting

    started = time.monotonic()
    concurrent = study.max_concurrent_trials if max_concurrent_trials is None else max_concurrent_trials
    if concurrent < 1:
        raise ValueError(f"max_concurrent_trials must be at least 1, got {concurrent}")
    records = StudyFolder(Path(storage).expanduser().absolute() / study_folder_name(study, base, identity))
    with records.locked(), open_study_run(study, records.path, tracking, command) as tracked:
        write_json(records.path / "study.json", {"study": study.model_dump(mode="json"), "base": dict(base)})
        _start_ray(study, concurrent, dashboard=trials_use_ray_train)
        work = Work(study, dict(base), records.path, train, tracked.run_id)
        complete = _run_points(work, concurrent)
        points = collect(study, _all_points(study, records), records)
        seconds = time.monotonic() - started
        result = StudyResult(study, records.path, points, tracked.run_id, seconds, interrupted=not complete)
        result = write_report(result, command)
        tracked.log(result)
        if not complete:
            _say_interrupted(result, command)
            raise KeyboardInterrupt
        if result.records and all(record.status == "failed" for record in result.records):
            raise StudyFailedError(
                f"study {study.name}: all {len(result.records)} trials failed, the first with: "
                f"{result.records[0].error} (all of them in {result.folder / 'report.md'})"
            )
    return result


def _train_seed(config: dict[str, Any], work: Work, tasks: list[tuple[Point, int]]) -> None:
    """Run a Tune trial that is one point with one seed."""
    point, seed = tasks[config["task"]]
    record = work.run(point, seed, scheduled=False)
    tune.report({"objective": work.objective(record.metrics[work.study.metric]), "final": True})


def _train_point(config: dict[str, Any], work: Work, points: list[Point] | None) -> None:
    """Run a Tune trial that is one point with all of its seeds; ``points`` is None if a searcher suggests them."""
    study = work.study
    point = _point_of(config, points)
    last_epoch = 0.0

    def report(row: dict[str, float]) -> None:
        nonlocal last_epoch
        if study.metric in row:
            last_epoch = row["epoch"]
            tune.report({"objective": work.objective(row[study.metric]), "epoch": row["epoch"], "row": row})

    values = []
    for seed in study.seeds:
        judged = study.scheduler is not None and seed == study.seeds[0]
        record = work.run(point, seed, scheduled=study.scheduler is not None, on_epoch=report if judged else None)
        if record.status == "stopped":
            return  # a replay: the order of trials may differ now, but the recorded decision stands
        if judged and not last_epoch:
            raise StudyError(
                f"{study.metric} must be reported at every epoch for scheduler asha, got "
                f"{sorted(record.history[-1]) if record.history else 'no epochs'}; write scheduler: none"
            )
        values.append(work.objective(record.metrics[study.metric]))
    tune.report({"objective": statistics.fmean(values), "epoch": last_epoch, "final": True})


def _run_points(work: Work, concurrent: int) -> bool:
    """Run all trials without a record; False if interrupted."""
    study, records = work.study, StudyFolder(work.folder)
    baselines = study.baseline_points()
    if study.search != "optuna" and study.scheduler is None:
        return _run_seeds(work, [*baselines, *study.planned_points()], concurrent)
    # Baselines are never stopped early, and their keys lie outside the searcher's space.
    if not _run_seeds(work, baselines, concurrent):
        return False
    points = None if study.search == "optuna" else study.planned_points()
    config = tune.TuneConfig(
        metric="objective",
        mode=study.mode,
        max_concurrent_trials=concurrent,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    if study.scheduler is not None:
        config.scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=study.scheduler.max_epochs,
            grace_period=study.scheduler.grace_epochs,
            reduction_factor=study.scheduler.reduction_factor,
            stop_last_trials=False,  # after its last epoch, a point still has to run its other seeds
        )
    if points is None:
        config.num_samples = study.num_samples or 1
        config.search_alg = _optuna_search(study, records)
        space: dict[str, Any] = {key: _sampler(axis) for key, axis in study.space.items()}
    else:
        space = {"point": tune.grid_search(list(range(len(points))))}

    def seeds_left(config: dict[str, Any]) -> tuple[Point, int]:
        point = _point_of(config, points)
        scheduled = study.scheduler is not None
        left = [seed for seed in study.seeds if records.finished(point, seed, scheduled=scheduled) is None]
        return point, left[0] if left else study.seeds[-1]

    trainable = tune.with_parameters(_train_point, work=work, points=points)
    return _fit(work, trainable, space, config, seeds_left, study.num_points if points is None else len(points))


def _run_seeds(work: Work, points: Sequence[Point], concurrent: int) -> bool:
    """Run every (point, seed) without a record, each as a trial of its own."""
    records = StudyFolder(work.folder)
    every = {(point.id, seed): (point, seed) for point in points for seed in work.study.seeds}
    tasks = [task for task in every.values() if records.finished(*task, scheduled=False) is None]
    if len(tasks) < len(every):
        log.info("%d of %d trials are already finished: %s", len(every) - len(tasks), len(every), work.folder)
    if not tasks:
        return True
    config = tune.TuneConfig(
        max_concurrent_trials=concurrent, reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id
    )
    space = {"task": tune.grid_search(list(range(len(tasks))))}
    trainable = tune.with_parameters(_train_seed, work=work, tasks=tasks)
    return _fit(work, trainable, space, config, lambda config: tasks[config["task"]], len(tasks))


def _fit(
    work: Work,
    trainable: Callable[..., None],
    space: dict[str, Any],
    config: tune.TuneConfig,
    locate: Callable[[dict[str, Any]], tuple[Point, int]],
    num_trials: int,
) -> bool:
    """Run Tune once; True if all of its trials ended, successfully or not."""
    study = work.study
    with tqdm(total=num_trials, desc=study.name, unit="trial", dynamic_ncols=True) as bar, _quiet_tune():
        recorder = _Recorder(work, locate, bar)
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": study.resources.cpu, "gpu": study.resources.gpu}),
            param_space=space,
            tune_config=config,
            run_config=tune.RunConfig(
                # Never read again, as only the records persist. A new name separates starts.
                name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
                storage_path=str(work.folder / "tune"),
                callbacks=[recorder],
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS_AGAIN),
                verbose=0,
            ),
        ).fit()
    return recorder.num_ended == num_trials


class _Recorder(tune.Callback):
    """Driver-side callback that writes the records of stopped and failed trials, which they cannot write."""

    def __init__(self, work: Work, locate: Callable[[dict[str, Any]], tuple[Point, int]], bar: Any) -> None:
        self.work, self.locate, self.bar = work, locate, bar
        self.records = StudyFolder(work.folder)
        self.rows: dict[str, dict[float, dict[str, float]]] = {}
        self.num_ended = 0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks into a snapshot that is never restored

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.work.study.search == "optuna" and "task" not in trial.config:
            self.records.add_point(self.locate(trial.config)[0].params)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "row" in result:
            self.rows.setdefault(trial.trial_id, {})[result["epoch"]] = result["row"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.num_ended += 1
        rows = self.rows.pop(trial.trial_id, {})
        point, seed = self.locate(trial.config)
        name = f"{point.label}, seed {seed}" if "task" in trial.config else point.label
        # Without a final report, ASHA stopped the trial in an epoch of its first seed.
        stopped = bool(rows) and not trial.last_result.get("final")
        if stopped and self.records.finished(point, self.work.study.seeds[0], scheduled=True) is None:
            history = [rows[epoch] for epoch in sorted(rows)]
            metrics = {name: value for name, value in history[-1].items() if name != "epoch"}
            seconds = float(trial.last_result.get("time_total_s", 0.0))
            self.records.write(
                TrialRecord(
                    params=point.params,
                    seed=self.work.study.seeds[0],
                    status="stopped",
                    metrics=metrics,
                    history=history,
                    seconds=seconds,
                )
            )
        value = trial.last_result.get("objective")
        metric = short_name(self.work.study.metric)
        self._advance(f"{name}: {metric} {value:.4g}" if value is not None else name)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.num_ended += 1
        point, seed = self.locate(trial.config)
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "no error was recorded"
        text = COLOURS.sub("", text)
        reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)
        write_atomically(self.records.trial_folder(point, seed) / "error.txt", text.encode())
        self.records.write(TrialRecord(params=point.params, seed=seed, status="failed", error=reason))
        self._advance(f"{point.label}, seed {seed} failed: {reason}")

    def _advance(self, text: str) -> None:
        self.bar.write(text)
        self.bar.update()


def _optuna_search(study: Study, records: StudyFolder) -> Any:
    import optuna  # imported late: only some studies need it
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = _searched_points(study, records)
    if asked:
        log.info("%d of %d points were suggested before: %s", len(asked), study.num_points, records.path)
    sampler = optuna.samplers.TPESampler(
        # Points suggested before consume no random numbers: the same seed would draw them again.
        seed=int(digest([study.search_seed, len(asked)], 8), 16),
        n_startup_trials=min(10, max(3, study.num_points // 3)),
        constant_liar=True,  # running trials count as bad, so that their neighbours are not tried concurrently
    )
    return OptunaSearch(sampler=sampler, points_to_evaluate=[point.params for point in asked])


def _searched_points(study: Study, records: StudyFolder) -> list[Point]:
    """Points suggested so far that still lie in the space, at most ``num_samples``."""
    points = [point for point in records.points() if point.params.keys() == study.space.keys()]
    inside = [point for point in points if all(axis.holds(point.params[key]) for key, axis in study.space.items())]
    return inside[: study.num_samples]


def _all_points(study: Study, records: StudyFolder) -> list[Point]:
    points = _searched_points(study, records) if study.search == "optuna" else study.planned_points()
    return [*study.baseline_points(), *points]


def _point_of(config: Mapping[str, Any], points: list[Point] | None) -> Point:
    return Point(dict(config)) if points is None else points[config["point"]]


def _sampler(axis: Axis) -> Any:
    return tune.choice(list(axis.values)) if axis.is_listed else SAMPLERS[axis.kind](*axis.values)


def _start_ray(study: Study, concurrent: int, *, dashboard: bool) -> None:
    if study.resources.gpu and not cluster.cluster_address():
        import torch

        if torch.cuda.device_count() < study.resources.gpu:  # Tune would wait for ever
            raise StudyError(
                f"resources.gpu must be at most {torch.cuda.device_count()}, the GPUs of this machine, got "
                f"{format_value(study.resources.gpu)}; change it, or run the study on a cluster (RAY_ADDRESS)"
            )
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the records replace its files
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # verbose=0 silences only the old one
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # keeps relative paths of a job valid
    num_cpus = max(os.cpu_count() or 1, math.ceil(concurrent * study.resources.cpu))
    cluster.start(num_cpus=num_cpus, dashboard=dashboard)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Silence misleading messages of Tune: the same command resumes, and errors are in the report."""
    loggers = [logging.getLogger(name) for name in QUIET]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _say_interrupted(result: StudyResult, command: str) -> None:
    done = sum(record.status != "failed" for record in result.records)
    again = f"the same command resumes: {command}" if command else "the same command resumes"
    log.warning("interrupted with %d finished trials kept in %s; %s", done, result.folder, again)
