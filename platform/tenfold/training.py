"""Training from settings to a registered model, for ``jobs/train.py``, the demo and the trials of a sweep.

The same settings resume where they stopped: the name of the run's folder has a hash of them, and finished work is not
repeated.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tenfold.catalog import load_predictor, method
from tenfold.config import job_from_dict
from tenfold.engine import cluster
from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.run import Interrupted, Run
from tenfold.engine.settings import JobConfig, ScaleConfig
from tenfold.engine.storage import Storage
from tenfold.tracking.registry import Registered, register, resolve
from tenfold.tracking.runs import Tracker, resume_run, start_run, tracking_uri

RECORD = "job.json"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Results of a training, and where they are stored."""

    status: str
    """``finished``, or ``unchanged`` if these settings were trained to the end before."""
    run_id: str
    tracking_uri: str
    model_uri: str
    registered: Registered | None
    metrics: dict[str, float]
    metric: str
    """Metric that compares models in the registry."""
    folder: str
    bundle: str
    """Folder of the bundle, as seen by the worker."""
    history: list[dict[str, float]]


def train(
    job: JobConfig,
    *,
    parent_run_id: str | None = None,
    run_name: str | None = None,
    on_epoch: Callable[[dict[str, float], int], None] | None = None,
    callbacks: Sequence[Any] = (),
    progress: bool = True,
) -> TrainResult:
    """Train, track and register.

    Args:
        job: Checked settings.
        parent_run_id: MLflow run of the sweep, for a trial.
        run_name: Name in MLflow; None: ``job.run_name``.
        on_epoch: Called after each epoch in a plain process (see ``launch``).
        callbacks: ``ray.train.UserCallback`` objects, for Ray.
        progress: Whether to show progress bars.

    Raises:
        Interrupted: If stopped by the user; the same call resumes.
        ValueError: If settings, data and model don't fit together; nothing was trained.
    """
    folder = Storage(job.scale.storage) / job.run_name
    uri = job_tracking_uri(job)
    record = folder.read_json(RECORD) or {}
    if record.get("status") == "finished":
        return _finished_before(job, folder, record)
    tracker = _open_run(job, uri, record, parent_run_id, run_name)
    folder.write_json(RECORD, {"status": "running", "run_id": tracker.run_id, "job": job.as_dict()})
    options = LaunchOptions(
        name=job.run_name,
        folder=folder.url,
        shared=Storage(job.scale.storage).url,
        seed=job.run.seed,
        deterministic=job.run.deterministic,
        recorder=tracker,
        progress=progress,
    )
    with _closing(tracker):
        if job.scale.kind == "ray":
            start_ray(job.scale)
        answer = launch(_work, job.as_dict(), job.scale, options, on_epoch=on_epoch, callbacks=callbacks)
        model = {name: answer[name] for name in ("model_uri", "metric", "metrics", "mode", "data_fingerprint")}
        entry = _register(job, uri, tracker.run_id, model) if job.run.register else None
    result = TrainResult(
        status="finished",
        run_id=tracker.run_id,
        tracking_uri=uri,
        model_uri=answer["model_uri"],
        registered=entry,
        metrics=answer["metrics"],
        metric=answer["metric"],
        folder=folder.url,
        bundle=answer["bundle"],
        history=answer["history"],
    )
    record = {"status": "finished", "run_id": tracker.run_id, "model": model}
    folder.write_json(RECORD, {**record, "result": asdict(result)})
    return result


def _finished_before(job: JobConfig, folder: Storage, record: dict[str, Any]) -> TrainResult:
    """Result of a training that ended earlier, registered now if it was not then."""
    before = record["result"]
    if before["registered"] is None and job.run.register:
        before["registered"] = asdict(_register(job, before["tracking_uri"], record["run_id"], record["model"]))
        folder.write_json(RECORD, record)
    registered = Registered(**before["registered"]) if before["registered"] else None
    return TrainResult(**{**before, "status": "unchanged", "registered": registered})


def _register(job: JobConfig, uri: str, run_id: str, model: dict[str, Any]) -> Registered:
    """Register a logged model under its method's name."""
    return register(
        uri,
        model["model_uri"],
        job.method_name,
        run_id=run_id,
        metric=model["metric"],
        value=model["metrics"][model["metric"]],
        mode=model["mode"],
        data_fingerprint=model["data_fingerprint"],
    )


def job_tracking_uri(job: JobConfig) -> str:
    """Tracking URI of a job; see ``storage_tracking_uri``."""
    return storage_tracking_uri(job.run.tracking_uri, Storage(job.scale.storage))


def storage_tracking_uri(configured: str | None, storage: Storage) -> str:
    """Tracking URI from settings or environment, else a database beside the runs.

    Raises:
        ValueError: If runs are in an object store and no MLflow server is given.
    """
    if storage.is_local:
        folder = storage.local_path()
        folder.mkdir(parents=True, exist_ok=True)
        return tracking_uri(configured, folder)
    if configured is None and "MLFLOW_TRACKING_URI" not in os.environ:
        raise ValueError(
            f"run.tracking_uri must be an MLflow server that all workers reach for runs in {storage.url}, got none; "
            f"set it (tracking_uri for other jobs) or MLFLOW_TRACKING_URI"
        )
    return tracking_uri(configured, "/")


def start_ray(scale: ScaleConfig) -> None:
    """Start or join a cluster with enough CPUs for the workers of a job."""
    needed = int(-(-scale.workers * scale.cpus_per_worker // 1)) + 1
    cluster.start(num_cpus=max(os.cpu_count() or 1, needed))


def _work(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the recipe in every worker; rank 0 logs the model."""
    job = job_from_dict(settings)
    outcome = method(job.method_name).recipe().train(job, run, **_base_model(job, run))
    model_uri = ""
    if isinstance(run.recorder, Tracker) and run.is_main:
        run.log_metrics(outcome.metrics, len(outcome.history))
        model_uri = run.recorder.log_bundle(outcome.bundle, job.method_name)
    return {**asdict(outcome), "bundle": str(outcome.bundle), "model_uri": run.share(model_uri)}


def _base_model(job: JobConfig, run: Run) -> dict[str, Any]:
    """Model of another method that this one builds on, as its recipe takes it; none where the settings name none.

    Raises:
        ValueError: There is no such model, or its bundle is damaged.
    """
    reference = getattr(job.method, "base_model", None)
    if reference is None:
        return {}
    is_registered = reference.startswith("models:/")
    folder = resolve(job_tracking_uri(job), reference).folder if is_registered else Path(reference)
    return {"base": load_predictor(folder, str(run.device))}


def _open_run(job: JobConfig, uri: str, record: dict[str, Any], parent: str | None, run_name: str | None) -> Tracker:
    if "run_id" in record:
        return resume_run(uri, record["run_id"])
    tags = {"tenfold.run": job.run_name, "tenfold.method": job.method_name, "tenfold.data": job.data.name}
    tracker = start_run(uri, job.run.experiment, run_name or job.run_name, parent=parent, tags=tags)
    settings = job.as_dict()
    tracker.log_params({f"{group}.{key}": value for group, keys in settings.items() for key, value in keys.items()})
    tracker.log_text("config.yaml", yaml.safe_dump(settings, sort_keys=False))
    return tracker


@contextmanager
def _closing(tracker: Tracker) -> Iterator[None]:
    """Close the MLflow run with the status of the block."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt, SystemExit):  # Tune raises the last to stop a trial
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
