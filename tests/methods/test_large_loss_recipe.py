"""Large Loss from settings to a registered model, in a plain process on a few dozen scenes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from jobs.config import compose_job
from tenfold.bundle import check_probe, load_bundle, load_probes
from tenfold.catalog import load_predictor
from tenfold.data.catalog import load_multilabel
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.engine.run import Interrupted, PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.engine.storage import Storage
from tenfold.methods.large_loss import recipe
from tenfold.methods.large_loss.noise_record import read_treated
from tenfold.pretraining.digits import pretrained_backbone
from tenfold.tracking.registry import resolve
from tenfold.training import TrainResult, train
from tests.methods.partial_labels import TINY, Place, open_place, read_losses

ROOT = Path(__file__).parents[2]
FRESH_PROCESS = """
import sys
import mlflow
import numpy as np
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[1])
np.savez(sys.argv[4], **model.predict(np.load(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_place(tmp_path_factory.mktemp("recipe"), "large_loss", "method.stop_after_drop=null") as place:
        yield place


@pytest.fixture(scope="module")
def job(place: Place) -> JobConfig:
    return place.job("run.num_epochs=4", "method.delta_rel_percent=5")


@pytest.fixture(scope="module")
def trained(job: JobConfig) -> TrainResult:
    return train(job, progress=False)


def weights(bundle: Path | str) -> dict[str, torch.Tensor]:
    return load_bundle(bundle).tensors()


def same_weights(first: Path | str, second: Path | str) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# -- one training, and all that it leaves


def test_the_training_says_what_it_reached_and_where(trained, job):
    assert trained.status == "finished"
    assert trained.metric == "val/mAP"
    assert set(trained.metrics) == {"val/mAP", "test/mAP"}
    assert all(0 < value <= 100 for value in trained.metrics.values())
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4]
    assert max(row["val/mAP"] for row in trained.history) == pytest.approx(trained.metrics["val/mAP"])
    assert Path(trained.folder) == Path(job.scale.storage) / job.run_name


def test_the_predictor_answers_as_the_training_did(trained, job):
    bundle = load_bundle(trained.bundle)
    predictor = load_predictor(bundle)
    assert check_probe(bundle, predictor) == 0.0
    (probe,) = load_probes(bundle)
    answer = predictor(probe["images"])
    torch.testing.assert_close(answer["probs"], answer["logits"].sigmoid())
    images = load_multilabel(job.data).test.images.read(np.arange(len(probe["images"])))
    assert torch.equal(probe["images"], images)


def test_evaluating_the_predictor_gives_the_metrics_of_the_training(trained, job, tmp_path):
    predictor = load_predictor(trained.bundle)
    run = PlainRun(folder=tmp_path, progress=False)
    found = recipe.evaluate(predictor, job.data, run)
    assert found == pytest.approx(trained.metrics, abs=1e-3)
    predictor.classes = (*predictor.classes[:-1], "eleven")
    with pytest.raises(ValueError, match=r"the model knows 10 classes .* data 'handwriting' has 10"):
        recipe.evaluate(predictor, job.data, run)


def test_the_same_settings_again_train_nothing(trained, job, monkeypatch):
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("launched again")

    monkeypatch.setattr("tenfold.training.launch", never)
    again = train(job, progress=False)
    assert again == replace(trained, status="unchanged")


def test_everything_is_on_record(trained, job, place):
    client = MlflowClient(place.uri)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["method.scheme"] == "LL-R"
    assert run.data.params["data.num_train"] == "64"
    assert run.data.tags["tenfold.run"] == job.run_name
    for name in ("val/mAP", "train/loss"):
        points = sorted((point.step, point.value) for point in client.get_metric_history(trained.run_id, name))
        assert points[:4] == [(int(row["epoch"]), pytest.approx(row[name])) for row in trained.history]
    assert run.data.metrics["test/mAP"] == pytest.approx(trained.metrics["test/mAP"])
    assert {"config.yaml", "observatory"} <= {entry.path for entry in client.list_artifacts(trained.run_id)}
    for name in ("curves.png", "predictions.png", "detected_false_negatives.png", "memorisation.png"):
        path = Path(client.download_artifacts(trained.run_id, f"figures/{name}"))
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_the_label_noise_record_names_its_run_and_holds_every_loss(trained, job, place):
    folder = Path(MlflowClient(place.uri).download_artifacts(trained.run_id, "observatory"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["run_id"] == trained.run_id
    assert manifest["config_digest"] == job.digest()
    assert manifest["delta_rel"] == 0.05
    assert len(read_losses(folder)) == 4 * 64
    treated = read_treated(folder)
    assert set(treated["action"]) == {"rejected"}
    # 5, 10 and 15 % of the 160 entries of each of 4 batches; none in the epoch of warm-up
    assert treated.groupby("epoch").size().to_dict() == {2: 32, 3: 64, 4: 96}


def test_the_first_model_is_champion_and_a_worse_one_a_candidate(trained, place):
    assert trained.registered is not None
    assert (trained.registered.name, trained.registered.alias) == ("large_loss", "champion")
    worse = train(place.job("run.num_epochs=1", "method.learning_rate=1e-8"), progress=False)
    assert worse.metrics["val/mAP"] < trained.metrics["val/mAP"]
    assert worse.registered is not None
    assert worse.registered.alias == "candidate"
    champion = resolve(place.uri, "models:/large_loss@champion")
    assert champion.run_id == trained.run_id
    same_weights(champion.folder, trained.bundle)


def test_mlflow_loads_the_model_in_a_fresh_process_with_the_same_answers(trained, place, tmp_path):
    images = load_probes(load_bundle(trained.bundle))[0]["images"]
    np.save(tmp_path / "images.npy", images.numpy())
    words = [trained.model_uri, place.uri, str(tmp_path / "images.npy"), str(tmp_path / "answer.npz")]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, *words], check=True, env=environment(place), timeout=300)
    with np.load(tmp_path / "answer.npz") as answer:
        expected = load_predictor(trained.bundle)(images)
        assert set(answer) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(answer[name], values.numpy(), rtol=0, atol=1e-6)


def test_a_model_that_was_not_registered_is_when_that_is_asked_for(place, monkeypatch):
    words = ("run.num_epochs=1", "run.tag=register later")
    first = train(place.job(*words, "run.register=false"), progress=False)
    assert first.registered is None
    monkeypatch.setattr("tenfold.training.launch", lambda *args, **options: pytest.fail("trained again"))
    second = train(place.job(*words), progress=False)
    assert second.registered is not None
    assert second.run_id == first.run_id
    assert train(place.job(*words), progress=False).registered == second.registered


# -- stopped and resumed


def environment(place: Place) -> dict[str, str]:
    paths = f"{ROOT / 'platform'}:{ROOT}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.mark.e2e
def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_ends_with_the_same_weights(place, tmp_path):
    more = ("run.num_epochs=30", "method.scheme=LL-Cp", "run.register=false")
    whole = train(place.job(*more), progress=False)

    words = place.overrides(*more, storage=tmp_path / "runs")
    command = [sys.executable, str(ROOT / "jobs/train.py"), *words]
    options: dict[str, Any] = {"text": True, "cwd": tmp_path, "env": environment(place)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    try:
        checkpoints = tmp_path / "runs" / place.job(*more).run_name / "checkpoints/fit"
        deadline = time.monotonic() + 240
        while not (checkpoints.is_dir() and Storage(checkpoints).list()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopping: writing a checkpoint" in err
    assert "stopped; finished work is kept. To resume: python " in err
    assert "run.num_epochs=30" in err
    assert "Traceback" not in err
    record = json.loads((checkpoints.parents[1] / "job.json").read_text())
    assert record["status"] == "running"
    assert MlflowClient(place.uri).get_run(record["run_id"]).info.status == "KILLED"

    done = subprocess.run(command, capture_output=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    result = json.loads((checkpoints.parents[1] / "job.json").read_text())["result"]
    assert result["run_id"] == record["run_id"]
    assert MlflowClient(place.uri).get_run(record["run_id"]).info.status == "FINISHED"
    same_weights(result["bundle"], whole.bundle)
    assert result["history"] == whole.history
    assert result["metrics"] == whole.metrics


VARIANTS = {
    "LL-R": ("method.delta_rel_percent=5",),
    "LL-Cp": ("method.scheme=LL-Cp", "method.delta_rel_percent=5"),
    "role": ("method.scheme=role",),
    "em_apl": ("method.scheme=em_apl", "method.apl_warmup_epochs=1"),
    "linear": ("model.init=linear", "model.linear_epochs=2", "method.optimizer=sgd"),
    "averaged": ("run.ema_decay=0.9", "run.accumulate=3", "run.clip_norm=1", "run.precision=bf16"),
}


def one_run(job: JobConfig, storage: str, stop_after: int | None = None) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Train without tracking; return the tensors and the label-noise record."""
    stop = threading.Event()

    def on_epoch(metrics: dict[str, float], epoch: int) -> None:
        if epoch == stop_after:
            stop.set()

    run = PlainRun(
        folder=f"{storage}/run", shared=storage, seed=job.run.seed, stop=stop, on_epoch=on_epoch, progress=False
    )
    try:
        outcome = recipe.train(job, run)
        observatory = outcome.bundle.parent / "observatory"
        found = {name: tensor.numpy() for name, tensor in load_bundle(outcome.bundle).tensors().items()}
        return {**found, "history": outcome.history}, read_losses(observatory) if observatory.exists() else None
    finally:
        run.close()


@pytest.mark.parametrize(
    ("variant", "place_name"), [*((name, "local") for name in VARIANTS), ("LL-R", "remote"), ("linear", "remote")]
)
def test_a_stopped_training_ends_where_it_would_have(place, tmp_path, variant, place_name):
    job = place.job("run.num_epochs=3", *VARIANTS[variant])
    root = str(tmp_path) if place_name == "local" else f"memory://recipe-{variant}-{os.getpid()}"
    whole, losses = one_run(job, f"{root}/whole")
    for epoch in (1, 2):  # stopped twice
        with pytest.raises(Interrupted):
            one_run(job, f"{root}/cut", stop_after=epoch)
    resumed, again = one_run(job, f"{root}/cut")
    assert resumed.keys() == whole.keys()
    assert resumed.pop("history") == whole.pop("history")
    for name, tensor in whole.items():
        np.testing.assert_array_equal(resumed[name], tensor, err_msg=name)
    if losses is not None:
        assert again is not None
        pd.testing.assert_frame_equal(again, losses)  # also of the epochs before the stop


# -- what starts nothing, and what comes before


def test_data_that_a_scheme_can_not_learn_from_are_refused_before_training(place, tmp_path):
    run = PlainRun(folder=tmp_path, progress=False)
    for overrides, message in (
        (("method.scheme=iu",), "must have negatives for scheme iu"),
        (("method.scheme=em_apl", "method.apl_warmup_epochs=2"), r"apl_warmup_epochs .*less than .*num_epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.train(place.job(*overrides), run)
    assert not (tmp_path / "stages").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_runs_in_an_object_store_need_a_server_that_is_named(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="must be an MLflow server that all workers reach"):
        train(compose_job([*TINY, "scale.storage=memory://runs"]), progress=False)


@pytest.mark.parametrize("observatory", ["off", "treated"])
def test_the_observatory_keeps_what_it_is_told_to(place, tmp_path, observatory):
    job = place.job(f"method.observatory={observatory}", "method.delta_rel_percent=5")
    run = PlainRun(folder=tmp_path, progress=False)
    folder = recipe.train(job, run).bundle.parent / "observatory"
    assert folder.exists() == (observatory == "treated")
    if observatory == "treated":
        assert len(read_treated(folder)) == 32
        assert not (folder / "losses").exists()


def test_pretraining_does_not_depend_on_which_run_came_first(place, tmp_path, monkeypatch):
    """Runs of all seeds share its result, which therefore must not depend on the run that produced it."""
    data = HandwritingConfig(num_train=32, num_val=32, num_test=32, cache=str(place.folder / "cache"))
    monkeypatch.setattr("tenfold.pretraining.digits.NUM_EPOCHS", 1)
    monkeypatch.setattr("tenfold.pretraining.digits.replace", lambda config, **changes: replace(config, max_digits=1))
    found = []
    for seed in (1, 2):
        run = PlainRun(folder=tmp_path / f"{seed}", seed=seed, progress=False)
        found.append(pretrained_backbone(run, data))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_only_handwriting_pretrains_the_small_network(tmp_path):
    data = compose_job(["data=coco", "data.root=/nowhere"]).data
    with pytest.raises(ValueError, match=r"pre-trained on handwriting only.*model\.pretrained=false"):
        pretrained_backbone(PlainRun(folder=tmp_path), data)


def test_a_network_is_built_from_its_bundle_without_looking_for_pretrained_weights(trained):
    bundle = load_bundle(trained.bundle)
    config = {**bundle.config, "model": {**bundle.config["model"], "pretrained": True, "checkpoint": "/gone.pth"}}
    loaded = load_predictor(replace(bundle, config=config))
    assert torch.equal(loaded.model.head.weight, bundle.tensors()["head.weight"])
    other = {**bundle.config, "model": {**bundle.config["model"], "name": "timm:resnet10t"}}
    with pytest.raises(ValueError, match="don't fit model 'timm:resnet10t'"):
        load_predictor(replace(bundle, config=other))
