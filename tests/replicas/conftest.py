"""Fixtures of the replicas' tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all trainings of a test module, so that none is repeated."""
    return tmp_path_factory.mktemp("replica")
