"""Runs: logged values, resuming, nesting."""

import math
import pickle
from pathlib import Path

import mlflow
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient

from tenfold.tracking.runs import Tracker, close_stale_children, resume_run, start_run, tracking_uri
from tests.tracking.bundles import LOADER, make_bundle
from tests.tracking.store import child_runs


def test_uri_comes_from_the_environment_then_the_settings_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("http://configured", "runs") == "http://configured"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri("http://configured", "runs") == "http://environment"
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_what_was_logged(store: str, tracker: Tracker, tmp_path: Path) -> None:
    tracker = pickle.loads(pickle.dumps(tracker))  # as it reaches a worker
    tracker.log_params({"method": {"name": "large_loss", "rates": [1e-5, 0.5]}, "seed": 3, "nothing": None})
    for epoch in range(3):
        tracker.log_metrics({"loss": 1 / (epoch + 1), "val/map": torch.tensor(0.25 * epoch)}, step=epoch)
    figure = Figure()
    figure.subplots().plot([0, 1])
    tracker.log_figure("curves", figure)
    tracker.log_text("config.yaml", "seed: 3\n")
    (tmp_path / "table.csv").write_text("a,b\n")
    tracker.log_file(tmp_path / "table.csv", "tables/first")
    tracker.set_tags({"stage": 2})
    tracker.finish()

    client = MlflowClient(store)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test_a_run_keeps_what_was_logged"
    assert run.data.params == {
        "method.name": "large_loss",
        "method.rates": "[1e-05, 0.5]",
        "seed": "3",
        "nothing": "None",
    }
    assert run.data.tags["stage"] == "2"
    history = client.get_metric_history(tracker.run_id, "val/map")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    artifacts = Path(mlflow.artifacts.download_artifacts(run_id=tracker.run_id, tracking_uri=store))
    assert (artifacts / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (artifacts / "config.yaml").read_text() == "seed: 3\n"
    assert (artifacts / "tables" / "first" / "table.csv").read_text() == "a,b\n"


def test_more_values_than_one_request_takes(store: str, tracker: Tracker) -> None:
    tracker.log_metrics({f"m{index}": float(index) for index in range(1001)}, step=0)
    tracker.log_params({f"p{index}": index for index in range(201)})
    data = MlflowClient(store).get_run(tracker.run_id).data
    assert data.metrics == {f"m{index}": float(index) for index in range(1001)}
    assert len(data.params) == 201


def test_values_that_are_not_finite_become_a_note(store: str, tracker: Tracker) -> None:
    tracker.log_metrics({"loss": 0.5, "map": 0.1}, step=0)
    tracker.log_metrics({"loss": math.nan, "map": 0.2}, step=1)
    tracker.log_metrics({"loss": -math.inf}, step=2)
    client = MlflowClient(store)
    assert [point.value for point in client.get_metric_history(tracker.run_id, "loss")] == [0.5]
    assert [point.value for point in client.get_metric_history(tracker.run_id, "map")] == [0.1, 0.2]
    assert client.get_run(tracker.run_id).data.tags["not_finite.loss"] == "-inf at step 2"


def test_names_and_statuses_are_checked_before_anything_is_logged(tracker: Tracker, tmp_path: Path) -> None:
    for name in ("../up", "/etc/x", "a//b", "a/../../b", ""):
        with pytest.raises(ValueError, match="artifact's name"):
            tracker.log_text(name, "")
    with pytest.raises(FileNotFoundError, match="absent"):
        tracker.log_file(tmp_path / "absent")
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED, got 'DONE'"):
        tracker.finish("DONE")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got 'Not A Name'"):
        tracker.log_bundle(make_bundle(tmp_path).folder, "Not A Name", LOADER)
    with pytest.raises(ValueError, match=r"'package\.module:function', got 'os\.system'"):
        tracker.log_bundle(make_bundle(tmp_path, seed=1).folder, "name", "os.system")


def test_resumed_run_goes_on(store: str, tracker: Tracker) -> None:
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.finish("KILLED")
    again = resume_run(store, tracker.run_id)
    assert again == tracker
    client = MlflowClient(store)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    again.log_metrics({"loss": 0.5}, step=1)
    again.finish()
    assert [point.step for point in client.get_metric_history(tracker.run_id, "loss")] == [0, 1]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    with pytest.raises(ValueError, match="got 'absent'"):
        resume_run(store, "absent")


def test_children_of_a_sweep(store: str, tracker: Tracker) -> None:
    tags = {"trial": "it's the first"}
    first = start_run(store, "tests", "trial", parent=tracker.run_id, tags=tags)
    stopped = start_run(store, "tests", "stopped", parent=tracker.run_id)
    failed = start_run(store, "tests", "failed", parent=tracker.run_id)
    first.log_params({"rate": 0.1})
    first.log_metrics({"map": 0.5}, step=0)
    first.finish()
    failed.finish("FAILED")
    grandchild = start_run(store, "tests", "inner", parent=first.run_id)

    children = {child.info.run_name: child.data for child in child_runs(store, tracker.run_id)}
    assert set(children) == {"trial", "stopped", "failed"}
    assert children["trial"].params == {"rate": "0.1"}
    assert children["trial"].metrics == {"map": 0.5}
    assert children["trial"].tags["trial"] == "it's the first"

    assert close_stale_children(store, tracker.run_id) == [stopped.run_id]
    assert {child.info.run_name: child.info.status for child in child_runs(store, tracker.run_id)} == {
        "trial": "FINISHED",
        "stopped": "KILLED",
        "failed": "FAILED",
    }
    assert close_stale_children(store, tracker.run_id) == []
    client = MlflowClient(store)
    assert client.get_run(grandchild.run_id).info.status == "RUNNING"
    assert client.get_run(tracker.run_id).info.status == "RUNNING"


def test_deleted_experiment_is_told(store: str) -> None:
    start_run(store, "deleted", "a")
    client = MlflowClient(store)
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with pytest.raises(ValueError, match=r"got 'deleted', which was deleted; choose another name"):
        start_run(store, "deleted", "b")
