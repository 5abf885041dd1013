"""Logged models: the same outputs in fresh processes, schemas, failed uploads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save as to_safetensors

from tenfold.bundle import load_bundle
from tenfold.tracking.runs import Tracker
from tenfold.types import Task, TensorSchema
from tests.tracking.bundles import LOADER, make_bundle
from tests.tracking.store import stored_models

PLATFORM = Path(__file__).parents[2] / "platform"
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
