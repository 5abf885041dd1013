"""MLflow runs: starting, logging, resuming and closing.

Every call names its tracking URI; MLflow's process-wide URI and active run are never touched, so trackers with
different URIs coexist in one process, and Ray workers in other folders write to the same database.
"""

import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

# Before MLflow: this module silences it, which works only before its import.
from tenfold.tracking.client import SQLITE, check_model_name, database_path, open_client, quoted, shown  # isort: split

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tenfold.bundle import git_revision, load_bundle
from tenfold.tracking.model import check_loader, example_and_signature, write_model
from tenfold.tracking.registry import DIGEST_TAG

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

PARENT_TAG = "mlflow.parentRunId"
_OPEN_STATUSES = ("RUNNING", "SCHEDULED")

_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)


def tracking_uri(configured: str | None, folder: Path | str) -> str:
    """Tracking URI: ``$MLFLOW_TRACKING_URI``, else ``configured``, else SQLite in ``folder``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or configured or f"{SQLITE}{Path(folder).absolute() / 'mlflow.db'}"


@dataclass(frozen=True)
class Tracker:
    """Handle of one run; can be pickled, as it connects on first use.

    For rank 0 only: a second writer would log every value twice.
    """

    uri: str
    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted keys, values strings (at most 6000 characters).

        Raises:
            MlflowException: If a key was logged before with another value.
        """
        self._log(params=[Param(key, str(value)) for key, value in _flatten(params)])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step of each metric, in one request.

        NaN and infinities are not logged; the tag ``not_finite.<name>`` records the latest of them with its step.
        """
        now_ms = time.time_ns() // 1_000_000
        values = {name: float(value) for name, value in metrics.items()}
        self._log(
            metrics=[Metric(name, value, now_ms, step) for name, value in values.items() if math.isfinite(value)],
            tags=[
                RunTag(f"not_finite.{name}", f"{value} at step {step}")
                for name, value in values.items()
                if not math.isfinite(value)
            ],
        )

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Store a figure as ``figures/<name>.png``, or with the extension of ``name``, without closing it."""
        file = f"figures/{name}" if Path(name).suffix else f"figures/{name}.png"
        open_client(self.uri).log_figure(self.run_id, figure, _artifact_name(file))

    def log_text(self, name: str, text: str) -> None:
        """Store a text as the artifact ``name``, such as ``config.yaml``."""
        open_client(self.uri).log_text(self.run_id, text, _artifact_name(name))

    def log_file(self, path: Path | str, folder: str = "") -> None:
        """Store a file or folder under its own name in the artifact folder ``folder``.

        Raises:
            FileNotFoundError: If ``path`` does not exist.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"nothing to log at {path}")
        open_client(self.uri).log_artifact(self.run_id, str(path), _artifact_name(folder) if folder else None)

    def log_bundle(self, folder: Path | str, name: str, load_predictor: str = "tenfold.catalog:load_predictor") -> str:
        """Log a bundle as a model for ``mlflow.pyfunc.load_model`` and ``mlflow models predict``.

        The model takes images uint8 ``(B, S, S, 3)`` or named inputs, and returns the predictor's outputs as a dict of
        arrays. It is logged from code, without pickles. Its requirements pin the packages that affect the outputs;
        ``tenfold`` itself must be installed where the model runs.

        Args:
            folder: Folder of the bundle; verified first.
            name: Name of the logged model; lower case letters, digits, ``_`` and ``-``.
            load_predictor: ``package.module:function``, called as ``function(bundle_folder, device=...)``.

        Returns:
            The model's URI, ``models:/m-...``.

        Raises:
            BundleError: If the bundle is damaged.
            ValueError: If a name is malformed.
        """
        check_model_name(name)
        check_loader(load_predictor)
        bundle = load_bundle(folder)
        example, signature = example_and_signature(bundle, load_predictor)
        client = open_client(self.uri)
        logged = client.create_logged_model(
            client.get_run(self.run_id).info.experiment_id,
            name=name,
            source_run_id=self.run_id,
            tags={DIGEST_TAG: bundle.digest, "data_fingerprint": bundle.metadata.data_fingerprint},
            params={"method": bundle.metadata.method, "task": bundle.metadata.task, "data": bundle.metadata.data_name},
        )
        try:
            with tempfile.TemporaryDirectory() as scratch:
                model_folder = Path(scratch) / "model"
                write_model(
                    model_folder,
                    bundle,
                    load_predictor,
                    example,
                    signature,
                    model_id=logged.model_id,
                    run_id=self.run_id,
                )
                client.log_model_artifacts(logged.model_id, str(model_folder))
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return f"models:/{logged.model_id}"

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, with values as strings, replacing existing ones."""
        self._log(tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run.

        Raises:
            ValueError: If ``status`` is none of FINISHED, FAILED, KILLED.
        """
        check_status(status)
        open_client(self.uri).set_terminated(self.run_id, status)

    def _log(
        self,
        *,
        metrics: list[Metric] | None = None,
        params: list[Param] | None = None,
        tags: list[RunTag] | None = None,
    ) -> None:
        metrics, params, tags = metrics or [], params or [], tags or []
        # Limits of one request: 1000 metrics, 100 params, 100 tags, 1000 of all.
        for turn in range(max(-(-len(metrics) // 800), -(-len(params) // 100), -(-len(tags) // 100))):
            open_client(self.uri).log_batch(
                self.run_id,
                metrics=metrics[turn * 800 : (turn + 1) * 800],
                params=params[turn * 100 : (turn + 1) * 100],
                tags=tags[turn * 100 : (turn + 1) * 100],
            )


def start_run(
    uri: str, experiment: str, run_name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None
) -> Tracker:
    """Start a run; the experiment, and for SQLite the database, are created if missing.

    Args:
        uri: Tracking URI. For SQLite, artifacts go to the folder ``artifacts`` beside the database; a server has its
            own location.
        experiment: Name of the experiment.
        run_name: Display name; need not be unique.
        parent: Id of the parent run.
        tags: Initial tags.

    Raises:
        ValueError: If the experiment was deleted.
    """
    client = open_client(uri, create=True)
    automatic = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "JOB"}
    with suppress(OSError, KeyError):  # a container's user often has no name
        automatic["mlflow.user"] = getuser()
    if revision := git_revision(Path(__file__).parent):
        automatic["mlflow.source.git.commit"] = revision
    if parent is not None:
        automatic[PARENT_TAG] = parent
    run = client.create_run(
        _experiment_id(client, uri, experiment), tags=automatic | dict(tags or {}), run_name=run_name
    )
    return Tracker(uri, run.info.run_id)


def resume_run(uri: str, run_id: str) -> Tracker:
    """Reopen a run: set its status to RUNNING and append to it.

    Raises:
        ValueError: If there is no such run.
    """
    client = open_client(uri)
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ValueError(f"run_id must be a run in {shown(uri)}, got {run_id!r}; {error.message}") from error
    return Tracker(uri, run_id)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        if uri.startswith(SQLITE):
            # The default would be ./mlruns of the current folder.
            location = (database_path(uri).parent / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # a concurrent trial may have been faster
                raise
            return _experiment_id(client, uri, name)
    if experiment.lifecycle_stage != "active":
        raise ValueError(
            f"experiment must be active, got {name!r}, which was deleted; choose another name, "
            f"or `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _artifact_name(name: str) -> str:
    if not _ARTIFACT_NAME.fullmatch(name):
        raise ValueError(f"an artifact's name must be relative parts matching {_ARTIFACT_NAME.pattern}, got {name!r}")
    return name


def check_status(status: str) -> None:
    if status not in get_args(Status):
        raise ValueError(f"status must be one of {', '.join(get_args(Status))}, got {status!r}")


def close_stale_children(uri: str, parent: str, status: Status = "KILLED") -> list[str]:
    """End the nested runs that are still open: a trial stopped by the scheduler does not end its own.

    Call it only when no trial is running any more.

    Returns:
        Ids of the closed runs.

    Raises:
        ValueError: If ``status`` is none of FINISHED, FAILED, KILLED.
    """
    check_status(status)
    client = open_client(uri)
    stale = [run.info.run_id for run in _search_children(client, parent) if run.info.status in _OPEN_STATUSES]
    for run_id in stale:
        client.set_terminated(run_id, status)
    return stale


def _search_children(client: MlflowClient, parent: str) -> "Iterator[Run]":
    experiment_id = client.get_run(parent).info.experiment_id
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`{PARENT_TAG}` = {quoted(parent)}",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return
