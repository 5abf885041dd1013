"""Runs, models and the registry over an MLflow server."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenfold.bundle import load_bundle
from tenfold.tracking.registry import registered_champions, resolve
from tenfold.tracking.runs import close_stale_children, resume_run, start_run
from tests.tracking.bundles import log_and_register


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
    tracker = start_run(server, "remote", "parent")
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
    with pytest.raises(ValueError, match="got 'absent'"):
        resume_run(server, "absent")
    tracker.finish()
    assert registered_champions(server) == ["remote"]
    assert "remote" not in registered_champions(store)  # two stores side by side in one process
    assert capfd.readouterr() == ("", "")
