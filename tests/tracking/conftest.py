"""One SQLite store for all of tracking: its migrations take seconds."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import mlflow
import pytest

from tenfold.tracking.runs import Tracker, start_run, tracking_uri
from tests.tracking.bundles import PREDICTOR

mpl.use("Agg")


@pytest.fixture(scope="session")
def tracking_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "predictor").mkdir()
    (folder / "predictor" / "colour_predictor.py").write_text(PREDICTOR)
    (folder / "elsewhere").mkdir()
    return folder


@pytest.fixture(scope="module")
def store(tracking_folder: Path) -> Iterator[str]:
    """URI of the shared store; tests run in a folder of their own, where MLflow must leave nothing."""
    folder = tracking_folder
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
