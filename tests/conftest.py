"""Fixtures that several folders share. Environment first: Ray reads it when it is imported."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import shutil
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# A slow machine must not fail a law.
hypothesis.settings.register_profile("tenfold", deadline=None)
hypothesis.settings.load_profile("tenfold")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for every test marked ``ray``; four logical CPUs whatever the machine has."""
    from serve.fast_path import prepare_environment
    from tenfold.engine import cluster

    prepare_environment()
    # Short and outside pytest's folders: the socket path inside must stay under 107 characters.
    folder = tempfile.mkdtemp(prefix="tf-", dir="/tmp")
    cluster.start(num_cpus=4, dashboard=True, object_store_mib=150, _temp_dir=folder)
    yield
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)
