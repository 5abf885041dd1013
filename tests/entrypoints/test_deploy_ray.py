"""A second ``jobs/deploy.py`` on the same machine, as a user types it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve.deployment.haproxy import free_port
from tests.serving.stand_ins import LOADER, SIZE, make_bundle
from tests.serving.v2_client import encode_request

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_second_deployment_rolls_over_the_first_without_a_failed_request(tmp_path):
    old, new = (make_bundle(tmp_path / name, seed=seed).folder for seed, name in enumerate(("old", "new")))
    port = free_port("127.0.0.1")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = f"{ROOT / 'platform'}:{ROOT}"

    def command(folder, *words):
        models = f"models=[{{model: '{folder}', name: colour, version: {folder.name}}}]"
        said = [models, f"each.loader={LOADER}", f"storage={tmp_path}/outputs", "serve.drain_timeout_s=5", *words]
        return [sys.executable, str(ROOT / "jobs/deploy.py"), *said]

    body, headers = encode_request(np.zeros((1, SIZE, SIZE, 3), np.uint8), binary=True)
    url, counts, over = f"http://127.0.0.1:{port}/v2/models/colour/infer", Counter(), threading.Event()

    def ask():
        while not over.is_set():
            reply = httpx.post(url, content=body, headers=headers, timeout=60)
            counts[reply.status_code, reply.headers.get("tenfold-model-version")] += 1
            time.sleep(0.05)

    with subprocess.Popen(
        command(old, f"serve.port={port}"), env=environment, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout.readline().startswith(f"serving on http://127.0.0.1:{port} ")
            asking = threading.Thread(target=ask)
            asking.start()
            wrong = subprocess.run(command(new, "serve.port=1"), env=environment, capture_output=True, text=True)
            second = subprocess.run(command(new), env=environment, capture_output=True, text=True)
            over.set()
            asking.join()
        finally:
            first.send_signal(signal.SIGINT)
        assert first.wait(60) == 0
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)
    assert f"serve.port must be {port}, where the endpoint tenfold already runs" in wrong.stderr
    assert second.returncode == 0, second.stderr
    assert "colour: version old -> new" in second.stdout
    assert f"process {first.pid} keeps the endpoint" in second.stdout
    assert {status for status, _ in counts} == {200}
    assert counts[200, "old"] > 0
    assert counts[200, "new"] > 0
    assert list((tmp_path / "outputs/serve").glob("*.json")) == []
