"""Runs, logged models and the registry, on one SQLite store for the whole file: its migrations take seconds."""

import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from safetensors.torch import save as to_safetensors

from tenfold.bundle import Bundle, BundleError, load_bundle, save_bundle
from tenfold.tracking.client import shown
from tenfold.tracking.registry import Registered, register, registered_champions, resolve, resolve_version
from tenfold.tracking.runs import (
    Tracker,
    child_runs,
    close_stale_children,
    find_run,
    resume_run,
    start_run,
    tracking_uri,
)
from tenfold.types import Preprocessing, Task, TensorSchema

mpl.use("Agg")
PLATFORM = Path(__file__).parents[2] / "platform"
PREDICTOR = '''
"""Mean colour times a weight, in a package that only PYTHONPATH knows."""
from tenfold.bundle import load_bundle

class Predictor:
    def __init__(self, bundle):
        self.weight = bundle.tensors()["weight"]

    def __call__(self, images):
        logits = images.float().mean(dim=(1, 2)) / 255 @ self.weight.T
        return {"probs": logits.sigmoid(), "logits": logits}

def load(folder, device="cpu"):
    return Predictor(load_bundle(folder))
'''
LOADER = "colour_predictor:load"
SWING = """
class Swing:
    def __call__(self, inputs):
        return {"mean": inputs["series"].mean(1) + inputs["count"][:, None]}

    def interval(self, outputs, level):
        return outputs["mean"] - level, outputs["mean"] + level

def load(folder, device):
    return Swing()
"""
FRESH_PROCESS = """
import sys
import mlflow
import numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
np.savez(sys.argv[3], **model.predict(np.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of the shared store; runs in a folder of its own, where MLflow must leave nothing."""
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "predictor").mkdir()
    (folder / "predictor" / "colour_predictor.py").write_text(PREDICTOR)
    (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("TENFOLD_CACHE", str(folder / "cache"))
        patch.syspath_prepend(str(folder / "predictor"))
        patch.chdir(folder / "elsewhere")
        before = mlflow.get_tracking_uri()
        yield tracking_uri(None, folder / "store")
        assert mlflow.get_tracking_uri() == before
        assert mlflow.active_run() is None
        assert list((folder / "elsewhere").iterdir()) == []


@pytest.fixture
def tracker(store: str, request: pytest.FixtureRequest) -> Tracker:
    return start_run(store, "tests", request.node.name)


def make_bundle(folder: Path, seed: int = 0, **changes: Any) -> Bundle:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 3, generator=generator)
    images = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8, generator=generator)
    probe = {"images": images, "logits": images.float().mean(dim=(1, 2)) / 255 @ weight.T}
    arguments: dict[str, Any] = {
        "config": {"made_for": str(folder)},  # two tests never share a digest, and so a cached copy
        "tensors": {"weight": weight},
        "method": "large_loss",
        "task": Task.MULTI_LABEL,
        "classes": ("one", "two"),
        "preprocessing": Preprocessing(image_size=4),
        "metrics": {"map": 0.5},
        "data_name": "scenes",
        "data_fingerprint": "f1",
        "files": {"probe.safetensors": to_safetensors(probe)},
    }
    return save_bundle(folder / f"bundle-{seed}", **{**arguments, **changes})


def log_and_register(
    tracker: Tracker, folder: Path, name: str, value: float, seed: int = 0, **changes: Any
) -> Registered:
    model_uri = tracker.log_bundle(make_bundle(folder, seed).folder, name, LOADER)
    arguments: dict[str, Any] = {"metric": "map", "mode": "max", "data_fingerprint": "f1"}
    return register(tracker.uri, model_uri, name, run_id=tracker.run_id, value=value, **{**arguments, **changes})


def stored_models(tracker: Tracker) -> list[Path]:
    """Folders of the models that the store holds, the latest last."""
    folder = Path(tracker.uri.removeprefix("sqlite:///")).parent / "artifacts" / "models"
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)


def reason(store: str, registered: Registered) -> str:
    version = MlflowClient(store, store).get_model_version(registered.name, registered.version)
    return str(version.tags["reason"])


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
    with pytest.raises(ValueError, match="no run 'absent' to resume"):
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

    children = {child.name: child for child in child_runs(store, tracker.run_id)}
    assert set(children) == {"trial", "stopped", "failed"}
    assert children["trial"].params == {"rate": "0.1"}
    assert children["trial"].metrics == {"map": 0.5}
    assert children["trial"].tags["trial"] == "it's the first"

    assert close_stale_children(store, tracker.run_id) == [stopped.run_id]
    assert {child.name: child.status for child in child_runs(store, tracker.run_id)} == {
        "trial": "FINISHED",
        "stopped": "KILLED",
        "failed": "FAILED",
    }
    assert close_stale_children(store, tracker.run_id) == []
    client = MlflowClient(store)
    assert client.get_run(grandchild.run_id).info.status == "RUNNING"
    assert client.get_run(tracker.run_id).info.status == "RUNNING"


def test_runs_are_found_by_all_of_their_tags(store: str, tmp_path: Path) -> None:
    older = start_run(store, "finding", "a", tags={"hash": "1", "odd key": "x"})
    newer = start_run(store, "finding", "b", tags={"hash": "1"})
    assert find_run(store, "finding", {"hash": "1"}) == newer.run_id
    assert find_run(store, "finding", {"hash": "1", "odd key": "x"}) == older.run_id
    assert find_run(store, "finding", {"hash": "2"}) is None
    assert find_run(store, "no such experiment", {"hash": "1"}) is None
    assert find_run(f"sqlite:///{tmp_path}/none.db", "finding", {"hash": "1"}) is None
    assert list(tmp_path.iterdir()) == []


def test_mistyped_store_is_told_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no database at sqlite:///.*none\.db"):
        registered_champions(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_deleted_experiment_is_told(store: str) -> None:
    start_run(store, "deleted", "a")
    client = MlflowClient(store)
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    with pytest.raises(ValueError, match=r"'deleted' was deleted; choose another name"):
        start_run(store, "deleted", "b")


def test_logged_bundle_answers_the_same_in_fresh_processes(
    store: str, tracker: Tracker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path)
    model_uri = tracker.log_bundle(bundle.folder, "tiny", LOADER)
    assert capfd.readouterr() == ("", "")  # MLflow kept quiet
    model = stored_models(tracker)[-1]
    assert model.name == model_uri.removeprefix("models:/")
    files = [path.relative_to(model / "artifacts") for path in model.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".joblib"}]
    assert load_bundle(model / "artifacts" / "artifacts" / "bundle-0").digest == bundle.digest

    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    logits = torch.from_numpy(images).float().mean(dim=(1, 2)) / 255 @ bundle.tensors()["weight"].T
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "images.json").write_text(json.dumps({"inputs": images.tolist()}))
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": os.pathsep.join([str(PLATFORM), next(p for p in sys.path if p.endswith("predictor"))]),
    }
    script = [sys.executable, "-c", FRESH_PROCESS, model_uri, "images.npy", "answer.npz"]
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--model-uri", model_uri, "--env-manager", "local"]
    command += ["--input-path", "images.json", "--output-path", "answer.json", "--content-type", "json"]
    processes = [subprocess.Popen(words, cwd=tmp_path, env=environment) for words in (script, command)]
    assert [process.wait(timeout=180) for process in processes] == [0, 0]

    arrays = dict(np.load(tmp_path / "answer.npz"))
    assert set(arrays) == {"probs", "logits"}
    assert np.array_equal(arrays["logits"], logits.numpy())
    assert np.array_equal(arrays["probs"], logits.sigmoid().numpy())
    served = json.loads((tmp_path / "answer.json").read_text())["predictions"]
    # Decimal text of a float32 in double precision: reading it back gives the float32 again.
    assert np.array_equal(np.float32(served["logits"]), logits.numpy())


def test_logged_model_states_its_schema_and_refuses_other_inputs(store: str, tracker: Tracker, tmp_path: Path) -> None:
    tracker.log_bundle(make_bundle(tmp_path).folder, "tiny", LOADER)
    model = mlflow.pyfunc.load_model(str(stored_models(tracker)[-1] / "artifacts"))
    inputs, outputs = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert [(spec.name, spec.type, spec.shape) for spec in inputs] == [(None, np.dtype("uint8"), (-1, 4, 4, 3))]
    assert {spec.name: (spec.type, spec.shape) for spec in outputs} == {
        "probs": (np.dtype("float32"), (-1, 2)),
        "logits": (np.dtype("float32"), (-1, 2)),
    }
    assert model.input_example.shape == (2, 4, 4, 3)
    assert model.predict(np.zeros((1, 4, 4, 3), np.uint8))["logits"].shape == (1, 2)
    for wrong in (np.zeros((1, 5, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32)):
        with pytest.raises(mlflow.MlflowException):
            model.predict(wrong)


def test_a_model_of_named_inputs_states_them_and_answers(store: str, tracker: Tracker, tmp_path: Path) -> None:
    module = Path(store.removeprefix("sqlite:///")).parents[1] / "predictor" / "swing_predictor.py"
    module.write_text(SWING)
    series, count = torch.arange(12.0).view(2, 2, 3), torch.tensor([3, 4])
    probe = {"inputs.series": series, "inputs.count": count, "outputs.mean": series.mean(1) + count[:, None]}
    bundle = make_bundle(
        tmp_path,
        task=Task.REGRESSION,
        preprocessing=None,
        inputs=(
            TensorSchema(name="series", dtype="float32", shape=(2, -1)),
            TensorSchema(name="count", dtype="int64", shape=()),
        ),
        files={"probe.safetensors": to_safetensors(probe)},
    )
    tracker.log_bundle(bundle.folder, "swing", "swing_predictor:load")
    model = mlflow.pyfunc.load_model(str(stored_models(tracker)[-1] / "artifacts"))
    assert {spec.name: (spec.type, spec.shape) for spec in model.metadata.signature.inputs} == {
        "series": (np.dtype("float32"), (-1, 2, -1)),
        "count": (np.dtype("int64"), (-1,)),
    }
    answer = model.predict({"series": series.numpy(), "count": count.numpy()})
    assert np.array_equal(answer["mean"], probe["outputs.mean"].numpy())
    assert set(answer) == {"mean"}
    with_interval = model.predict({"series": series.numpy(), "count": count.numpy()}, params={"level": 0.5})
    assert np.array_equal(with_interval["lower"], answer["mean"] - 0.5)
    assert np.array_equal(with_interval["upper"], answer["mean"] + 0.5)


def test_model_whose_upload_failed_is_marked(
    store: str, tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fail)
    with pytest.raises(OSError, match="disk full"):
        tracker.log_bundle(make_bundle(tmp_path).folder, "unlucky", LOADER)
    client = MlflowClient(store)
    experiment = client.get_run(tracker.run_id).info.experiment_id
    models = client.search_logged_models([experiment], "name = 'unlucky'")
    assert [str(model.status) for model in models] == ["FAILED"]


def test_champion_is_replaced_by_a_better_one_only(store: str, tracker: Tracker, tmp_path: Path) -> None:
    def alias(value: float, seed: int) -> str:
        return log_and_register(tracker, tmp_path, "better", value, seed).alias

    assert alias(0.5, seed=0) == "champion"
    assert alias(0.4, seed=1) == "candidate"
    assert alias(0.5, seed=2) == "candidate"  # a tie keeps the champion
    assert resolve(store, "models:/better@champion").version == "1"
    assert resolve_version(store, "models:/better@candidate") == "3"
    assert alias(0.6, seed=3) == "champion"
    assert resolve_version(store, "models:/better@champion") == "4"
    assert resolve(store, "models:/better/1").version == "1"

    version = MlflowClient(store).get_model_version("better", "2")
    assert version.tags == {
        "metric": "map",
        "value": "0.4",
        "mode": "max",
        "data_fingerprint": "f1",
        "run_id": tracker.run_id,
        "bundle_digest": load_bundle(tmp_path / "bundle-1").digest,
        "reason": "the champion, version 1, has map 0.5, this version 0.4 (max is better)",
    }


def test_less_is_better_in_mode_min(tracker: Tracker, tmp_path: Path) -> None:
    values = (0.5, 0.6, 0.4)
    aliases = [
        log_and_register(tracker, tmp_path, "lower", value, seed, metric="loss", mode="min").alias
        for seed, value in enumerate(values)
    ]
    assert aliases == ["champion", "candidate", "champion"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data_fingerprint": "f2"}, "has data_fingerprint f1, this version f2: not comparable"),
        ({"metric": "accuracy"}, "has metric map, this version accuracy: not comparable"),
        ({"mode": "min"}, "has mode max, this version min: not comparable"),
        ({"value": math.nan}, "map is nan, which can't be compared"),
    ],
)
def test_what_can_not_be_compared_is_a_candidate(
    store: str, tracker: Tracker, tmp_path: Path, request: pytest.FixtureRequest, changes: dict[str, Any], why: str
) -> None:
    name = f"incomparable-{next(iter(changes))}-{next(iter(changes.values()))}"
    log_and_register(tracker, tmp_path, name, 0.5)
    second = log_and_register(tracker, tmp_path, name, **({"value": 0.9, "seed": 1} | changes))
    assert second.alias == "candidate"
    assert why in reason(store, second)
    assert resolve_version(store, f"models:/{name}@champion") == "1"


def test_registering_again_after_a_crash_makes_no_second_version(store: str, tracker: Tracker, tmp_path: Path) -> None:
    model_uri = tracker.log_bundle(make_bundle(tmp_path).folder, "again", LOADER)
    arguments: dict[str, Any] = {"run_id": tracker.run_id, "metric": "map", "mode": "max", "data_fingerprint": "f1"}
    first = register(store, model_uri, "again", value=0.5, **arguments)
    assert register(store, model_uri, "again", value=0.5, **arguments) == first
    # Killed between the version and its alias: the second call sets it.
    client = MlflowClient(store, store)
    client.delete_registered_model_alias("again", "champion")
    assert register(store, model_uri, "again", value=0.5, **arguments) == first
    assert len(client.search_model_versions("name = 'again'")) == 1


def test_registering_checks_its_arguments(store: str, tracker: Tracker, tmp_path: Path) -> None:
    model_uri = tracker.log_bundle(make_bundle(tmp_path).folder, "checked", LOADER)
    good: dict[str, Any] = {"name": "checked", "metric": "map", "mode": "max", "data_fingerprint": "f1"}
    for changes, why in [
        ({"name": "../checked"}, "model's name"),
        ({"name": "Checked"}, "model's name"),
        ({"mode": "most"}, "max, min, got 'most'"),
        ({"data_fingerprint": ""}, "must not be empty"),
        ({"model_uri": "runs:/x/model"}, "model_uri must be like"),
    ]:
        arguments = {"model_uri": model_uri} | good | changes
        with pytest.raises(ValueError, match=why):
            register(store, run_id=tracker.run_id, value=0.5, **arguments)
    assert "checked" not in registered_champions(store)


def test_resolved_bundle_is_a_verified_copy(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "copied", 0.5)
    resolved = resolve(store, "models:/copied@champion")
    assert (resolved.name, resolved.version, resolved.run_id) == ("copied", "1", tracker.run_id)
    assert resolved.metrics == {"map": 0.5}
    assert load_bundle(resolved.folder).digest == load_bundle(tmp_path / "bundle-0").digest
    assert not resolved.folder.is_relative_to(stored_models(tracker)[-1])
    # A copy that was damaged is fetched again, and nothing is left lying about.
    (resolved.folder / "config.yaml").write_text("damaged: true\n")
    assert resolve(store, "models:/copied@champion") == resolved
    load_bundle(resolved.folder)
    assert not [path for path in resolved.folder.parent.iterdir() if path.name.startswith(".")]


def test_changed_byte_in_the_store_is_refused(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "tampered", 0.5)
    weights = next(stored_models(tracker)[-1].rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"models:/tampered/1 is refused: .*model\.safetensors"):
        resolve(store, "models:/tampered@champion")


def test_another_whole_bundle_in_its_place_is_refused(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "swapped", 0.5)
    inside = next(stored_models(tracker)[-1].rglob("model.safetensors")).parent
    inside.rename(tmp_path / "away")
    make_bundle(tmp_path, seed=1).folder.rename(inside)
    with pytest.raises(BundleError, match="the store holds the bundle"):
        resolve(store, "models:/swapped/1")


def test_model_that_points_outside_is_refused(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "outside", 0.5)
    description = next(stored_models(tracker)[-1].rglob("MLmodel"))
    description.write_text(description.read_text().replace("artifacts/bundle-0", "../../../../bundle-0"))
    with pytest.raises(BundleError, match="points outside"):
        resolve(store, "models:/outside/1")


def test_what_is_not_registered_is_answered_with_what_is(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "known", 0.5)
    for model, why in [
        ("models:/unknown@champion", r"no model 'unknown' is registered in sqlite:.*; registered: .*\bknown\b"),
        ("models:/known@production", r"no alias 'production'; its aliases: champion \(version 1\)"),
        ("models:/known/7", r"no version 7; its versions: \[1\]"),
        ("known", "must be like models:/name@alias or models:/name/3"),
        ("models:/known/latest", "must be like"),
        ("models:/known@champion/more", "must be like"),
        ("models:/../known/1", "must be like"),
        ("models:/Known@champion", "model's name must match"),
    ]:
        with pytest.raises(ValueError, match=why):
            resolve(store, model)


def test_version_without_a_bundle_is_told(store: str) -> None:
    client = MlflowClient(store, store)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///somewhere")
    with pytest.raises(ValueError, match="models:/foreign/1 holds no bundle"):
        resolve(store, "models:/foreign/1")


def test_champions_are_listed(store: str, tracker: Tracker, tmp_path: Path) -> None:
    log_and_register(tracker, tmp_path, "listed-b", 0.5)
    log_and_register(tracker, tmp_path, "listed-a", 0.5, seed=1)
    log_and_register(tracker, tmp_path, "listed-c", math.nan, seed=2)  # a candidate without a champion
    listed = [name for name in registered_champions(store) if name.startswith("listed")]
    assert listed == ["listed-a", "listed-b"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URI of an MLflow server that keeps artifacts to itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # a session of its own: the server and its workers only
            process.wait(timeout=30)


@pytest.mark.slow
def test_the_same_over_a_server(store: str, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start_run(store, "tests", "beside").finish()
    tracker = start_run(server, "remote", "parent", tags={"hash": "1"})
    child = start_run(server, "remote", "child", parent=tracker.run_id)
    tracker.log_metrics({"loss": 1.0, "other": math.nan}, step=0)
    tracker.log_text("config.yaml", "seed: 3\n")
    assert log_and_register(tracker, tmp_path, "remote", 0.5).alias == "champion"
    assert log_and_register(tracker, tmp_path, "remote", 0.4, seed=1).alias == "candidate"
    assert close_stale_children(server, tracker.run_id) == [child.run_id]
    resolved = resolve(server, "models:/remote@champion")
    assert load_bundle(resolved.folder).digest == load_bundle(tmp_path / "bundle-0").digest
    with pytest.raises(ValueError, match=r"no version 9; its versions: \[1, 2\]"):
        resolve(server, "models:/remote/9")
    with pytest.raises(ValueError, match="no run 'absent' to resume"):
        resume_run(server, "absent")
    tracker.finish()
    assert find_run(server, "remote", {"hash": "1"}) == tracker.run_id
    assert registered_champions(server) == ["remote"]
    assert "remote" not in registered_champions(store)  # two stores side by side in one process
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_processes_that_start_together_make_one_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = "import sys; from tenfold.tracking.runs import start_run; start_run(sys.argv[1], 'together', 'run').finish()"
    environment = os.environ | {"PYTHONPATH": str(PLATFORM)}
    processes = [subprocess.Popen([sys.executable, "-c", code, uri], env=environment) for _ in range(3)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    client = MlflowClient(uri)
    assert len(client.search_runs([client.get_experiment_by_name("together").experiment_id])) == 3


def test_passwords_stay_out_of_messages() -> None:
    assert shown("https://me:secret@host/path") == "https://host/path"
