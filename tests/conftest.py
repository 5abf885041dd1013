"""Fixtures that several folders share. Environment first: Ray reads it when it is imported."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # a second report waits for the next look
os.environ.setdefault("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1")  # a model that cannot start is told at once

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# A slow machine must not fail a law.
hypothesis.settings.register_profile("tenfold", deadline=None)
hypothesis.settings.load_profile("tenfold")


def pytest_configure(config: pytest.Config) -> None:
    is_one_of_several = "PYTEST_XDIST_WORKER" in os.environ
    if is_one_of_several:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    torch.set_num_threads(1 if is_one_of_several else min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, and begin with what uses Ray: of two processes each takes whole files, long ones first."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole session, however many processes run it."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def embedded_cache(shared_folder: Path) -> Iterator[Path]:
    """Cache of the embedded data for the session: each set is built once. A cold build has tests of its own."""
    folder = shared_folder / "embedded"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENFOLD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for every test marked ``ray`` in this process; four logical CPUs whatever the machine has."""
    from serve.deployment.haproxy import prepare_environment
    from tenfold.engine import cluster

    prepare_environment()
    # Short and outside pytest's folders: the socket path inside must stay under 107 characters.
    folder = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
    cluster.start(num_cpus=4, dashboard=True, object_store_mib=150, _temp_dir=folder)
    yield
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)
