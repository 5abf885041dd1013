"""Logged models: the same outputs in fresh processes, schemas, failed uploads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save as to_safetensors

from tenfold.bundle import load_bundle
from tenfold.tasks import Signature, Slot, classification, regression
from tenfold.tracking.model import mlflow_signature
from tenfold.tracking.runs import Tracker
from tenfold.types import Preprocessing, Task
from tests.tracking.bundles import LOADER, make_bundle
from tests.tracking.store import stored_models

PLATFORM = Path(__file__).parents[2] / "platform"
SWING = """
from tenfold.bundle import load_bundle

class Swing:
    def __init__(self, bundle):
        self.signature = bundle.metadata.signature

    def __call__(self, *, series, count, level=None):
        mean = series.mean(1) + count[:, None]
        bounds = {} if level is None else {"lower": mean - level, "upper": mean + level}
        return {"mean": mean, "std": mean.abs(), **bounds}

def load(folder, device):
    return Swing(load_bundle(folder))
"""
OPEN = """
from tenfold.bundle import load_bundle
from tenfold.tasks import prompts_by_class

class Open:
    # Prototypes are the lengths of the prompts; what is corrected moves the logits.
    def __init__(self, bundle):
        self.signature = bundle.metadata.signature

    def __call__(
        self, images, classes=None, prompts=None, prompt_classes=None, corrections=None, explain=False
    ):
        asked = prompts_by_class("a {}", classes, prompts, prompt_classes)
        texts = ["abc", "abcd"] if asked is None else ["".join(each) for each in asked.values()]
        logits = images.float().mean((1, 2, 3))[:, None] / 255 * images.new_tensor([len(t) for t in texts]).float()
        if corrections is not None:
            logits = logits + corrections.sum(1, keepdim=True)
        maps = {"attributions": images.float().mean(3), "explained": logits.argmax(1)} if explain else {}
        return {"probs": logits.softmax(1), "logits": logits, **maps}

def load(folder, device):
    return Open(load_bundle(folder))
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
    inputs = (Slot(name="series", dtype="float32", shape=(2, -1)), Slot(name="count", dtype="int64"))
    bundle = make_bundle(
        tmp_path,
        signature=regression(("height [m]",), inputs, (3,)),
        files={"probe.safetensors": to_safetensors(probe)},
    )
    tracker.log_bundle(bundle.folder, "swing", "swing_predictor:load")
    model = mlflow.pyfunc.load_model(str(stored_models(tracker)[-1] / "artifacts"))
    assert {spec.name: (spec.type, spec.shape) for spec in model.metadata.signature.inputs} == {
        "series": (np.dtype("float32"), (-1, 2, -1)),
        "count": (np.dtype("int64"), (-1,)),
    }
    assert {spec.name: (spec.type, spec.shape) for spec in model.metadata.signature.outputs} == {
        "mean": (np.dtype("float32"), (-1, 3)),
        "std": (np.dtype("float32"), (-1, 3)),
    }
    answer = model.predict({"series": series.numpy(), "count": count.numpy()})
    assert np.array_equal(answer["mean"], probe["outputs.mean"].numpy())
    assert set(answer) == {"mean", "std"}
    with_interval = model.predict({"series": series.numpy(), "count": count.numpy()}, params={"level": 0.5})
    assert np.array_equal(with_interval["lower"], answer["mean"] - 0.5)
    assert np.array_equal(with_interval["upper"], answer["mean"] + 0.5)


PREPROCESSING = Preprocessing(image_size=4)


def log_open(store: str, tracker: Tracker, folder: Path, signature: Signature) -> Any:
    """Log an open-vocabulary model with this signature and return it as MLflow loads it."""
    (Path(store.removeprefix("sqlite:///")).parents[1] / "predictor" / "open_predictor.py").write_text(OPEN)
    bundle = make_bundle(folder, signature=signature)
    tracker.log_bundle(bundle.folder, "open", "open_predictor:load")
    return mlflow.pyfunc.load_model(str(stored_models(tracker)[-1] / "artifacts"))


IMAGES = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


def test_texts_are_parameters_that_may_be_left_out(store: str, tracker: Tracker, tmp_path: Path) -> None:
    signature = classification(("abc", "abcd"), PREPROCESSING, prompt_template="a {}", explains=True)
    model = log_open(store, tracker, tmp_path, signature)
    assert [(spec.name, spec.shape) for spec in model.metadata.signature.inputs] == [(None, (-1, 4, 4, 3))]
    assert [(spec.name, spec.shape) for spec in model.metadata.signature.outputs] == [
        ("probs", (-1, -1)), ("logits", (-1, -1)),
    ]  # fmt: skip
    assert [(each.name, each.dtype.name, each.shape, each.default) for each in model.metadata.signature.params] == [
        ("explain", "boolean", None, False),
        *((name, "string", (-1,), []) for name in ("classes", "prompts", "prompt_classes")),
    ]
    mean = IMAGES.astype(np.float32).mean((1, 2, 3))[:, None] / 255
    own = model.predict(IMAGES)
    assert set(own) == {"probs", "logits"}
    np.testing.assert_allclose(own["logits"], mean * [3, 4], rtol=1e-6)
    asked = model.predict(IMAGES, params={"classes": ["cat", "zwölf", "x"]})
    np.testing.assert_allclose(asked["logits"], mean * [5, 7, 3], rtol=1e-6)
    prompts = {"prompts": ["a cat", "dog", "cats"], "prompt_classes": ["cat", "dog", "cat"]}
    np.testing.assert_allclose(model.predict(IMAGES, params=prompts)["logits"], mean * [9, 3], rtol=1e-6)
    assert model.predict(IMAGES, params={"explain": True})["attributions"].shape == (3, 4, 4)
    with pytest.raises(mlflow.MlflowException, match="classes"):
        model.predict(IMAGES, params={"classes": "cat"})
    with pytest.raises(ValueError, match="prompts and prompt_classes must come together"):
        model.predict(IMAGES, params={"prompts": ["a cat"]})


def test_numbers_that_may_be_left_out_are_a_flat_parameter(store: str, tracker: Tracker, tmp_path: Path) -> None:
    corrections = Slot(name="corrections", dtype="float32", shape=(5,), optional=True)
    plain = classification(("abc", "abcd"), PREPROCESSING)
    model = log_open(store, tracker, tmp_path, replace(plain, inputs=(*plain.inputs, corrections)))
    assert [(each.name, each.dtype.name, each.shape) for each in model.metadata.signature.params] == [
        ("corrections", "double", (-1,))
    ]
    values = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    expected = model.predict(IMAGES)["logits"] + values.sum(1, keepdims=True)
    for flat in (values.ravel(), values.ravel().tolist()):
        answer = model.predict(IMAGES, params={"corrections": flat})
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"corrections must hold 3 rows of \(5,\), got 14 values"):
        model.predict(IMAGES, params={"corrections": values.ravel()[1:]})
    with pytest.raises(mlflow.MlflowException, match="1D array"):
        model.predict(IMAGES, params={"corrections": values})


def test_other_kinds_of_inputs_have_their_words_in_mlflow() -> None:
    text = Slot(name="text", dtype="text")
    flags = Slot(name="flags", dtype="bool", shape=(2,), optional=True)
    counts = Slot(name="counts", dtype="int32", optional=True)
    output = Slot(name="embeddings", dtype="float32", shape=(8,))
    found = mlflow_signature(
        Signature(kind="toy", task=Task.RETRIEVAL, inputs=(text, flags, counts), outputs=(output,))
    )
    assert [(spec.name, spec.type, spec.shape) for spec in found.inputs] == [("text", np.dtype(object), (-1,))]
    assert [(each.name, each.dtype.name) for each in found.params] == [("flags", "boolean"), ("counts", "long")]
    assert mlflow_signature(classification(("a",), PREPROCESSING)).params is None


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
