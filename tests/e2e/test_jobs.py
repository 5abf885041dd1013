"""Every job through ``ray job submit`` to a real head with token authentication, as a user of a cluster runs them."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TINY = "data.num_train=96 data.num_val=40 data.num_test=40 model.pretrained=false run.batch_size=16"
STUDY = """
name: tiny
description: Two schemes on a handful of scenes.
base: [method=large_loss, data=handwriting, scale=local, run.register=false, method.observatory=off, run.num_epochs=1,
       {tiny}]
space:
  method.scheme: {{grid: [LL-R, an]}}
search: grid
seeds: [0]
metric: val/mAP
mode: max
resources: {{cpu: 1}}
max_concurrent_trials: 1
figures:
  - {{kind: bar, name: schemes, title: Schemes, x: method.scheme, metric: val/mAP}}
"""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
Submit = Callable[..., str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """A running head: where its job server listens, and what a client needs in its environment."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
    dashboard = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TENFOLD_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    process = subprocess.Popen(
        [
            "ray", "start", "--head", "--block", f"--port={free_port()}", f"--temp-dir={folder}", "--num-cpus=4",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--object-store-memory=150000000",
            f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
    )  # fmt: skip
    running = Head(f"http://127.0.0.1:{dashboard}", environment)
    wait_for(running, process)
    yield running
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        each.terminate()
    for each in psutil.wait_procs(family, timeout=20)[1]:
        each.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def submit(head) -> Submit:
    """Send a job and return what it printed."""

    def send(*entrypoint: str) -> str:
        runtime = {"env_vars": {"PYTHONPATH": "platform", "TENFOLD_CACHE": head.environment["TENFOLD_CACHE"]}}
        command = ["ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--runtime-env-json"]
        done = subprocess.run(
            [*command, json.dumps(runtime), "--", "python", *entrypoint],
            cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return send


def wait_for(head: Head, process: "subprocess.Popen[bytes]") -> None:
    token = head.environment["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    for _ in range(240):
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"no job server at {head.address}")


@pytest.mark.e2e
def test_without_the_token_nothing_is_accepted(head):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=10)
    assert refused.value.code == 401


def train_submitted(submit: Submit, storage: Path) -> float:
    """Submit a training that ends with a champion; return its test mAP."""
    words = ["scale.cpus_per_worker=0.5", f"scale.storage={storage}", "run.num_epochs=2", *TINY.split()]
    trained = submit("jobs/train.py", *words)
    assert "models:/large_loss/1 @champion" in trained
    return float(re.search(r"test/mAP\s+([\d.]+)", trained)[1])


@pytest.mark.e2e
def test_a_training_as_a_submitted_job(submit, tmp_path):
    storage = tmp_path / "outputs"
    assert 0 < train_submitted(submit, storage) <= 100
    (bundle,) = storage.glob("stages/large_loss-*/bundle/model.safetensors")
    assert bundle.stat().st_size > 0


@pytest.mark.slow
def test_train_evaluate_deploy_and_sweep_as_submitted_jobs(submit, tmp_path):
    storage = tmp_path / "outputs"
    value = train_submitted(submit, storage)

    uri = f"tracking_uri=sqlite:///{storage}/mlflow.db"
    data = [word for word in TINY.split() if word.startswith("data.")]
    evaluated = submit("jobs/evaluate.py", "model=models:/large_loss@champion", uri, f"scale.storage={storage}", *data)
    assert float(re.search(r"test/mAP\s+([\d.]+)", evaluated)[1]) == pytest.approx(value, rel=1e-3)

    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY.format(tiny=TINY.replace(" ", ", ")))
    swept = submit("jobs/sweep.py", f"study={study}", "budget=null", f"storage={storage}", uri)
    assert "LL-R" in swept
    assert (next(storage.glob("tiny-*")) / "summary.csv").exists()

    port = free_port()
    deployed = submit("jobs/deploy.py", "wait=false", uri, f"storage={storage}", f"serve.port={port}")
    assert f"serving on http://127.0.0.1:{port}" in deployed
    picture = {"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8", "data": [0] * (64 * 64 * 3)}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/large_loss/infer",
        json.dumps({"inputs": [picture]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:  # the endpoint outlives the job that made it
        assert {output["name"] for output in json.load(reply)["outputs"]} >= {"probs"}


@pytest.mark.e2e
def test_demo_from_data_to_a_served_prediction(submit, tmp_path):
    small = ["scale.cpus_per_worker=0.5", "run.num_epochs=1", *TINY.split()]
    told = submit("jobs/demo.py", f"scale.storage={tmp_path}", *small)
    assert re.search(r"/predict says\s+\S+ \d\.\d\d", told), told
    assert "@champion" in told
    for file in ("example.png", "example_map.png"):
        assert Image.open(tmp_path / "demo" / file).size == (64, 64)
