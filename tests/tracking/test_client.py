"""Connections: databases are created once, on purpose, and passwords stay hidden."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tenfold.tracking.client import shown
from tenfold.tracking.registry import registered_champions

PLATFORM = Path(__file__).parents[2] / "platform"


def test_mistyped_store_is_told_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracking_uri must be an existing database, got sqlite:///.*none\.db"):
        registered_champions(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


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
