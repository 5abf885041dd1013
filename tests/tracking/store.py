"""Reads of an MLflow store that only tests need."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from tenfold.tracking.client import quoted
from tenfold.tracking.runs import PARENT_TAG, Tracker


def stored_models(tracker: Tracker) -> list[Path]:
    """Folders of the models that the store holds, the latest last."""
    folder = Path(tracker.uri.removeprefix("sqlite:///")).parent / "artifacts" / "models"
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)


def child_runs(uri: str, parent: str) -> list[Run]:
    """Runs nested directly in the run ``parent``."""
    client = MlflowClient(uri)
    return list(
        client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`{PARENT_TAG}` = {quoted(parent)}")
    )
