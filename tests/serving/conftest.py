"""Services over the stand-in models; a test file with other models overrides them."""

import pytest

from tests.serving.local import TintsService


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Shared by a file: for tests that change none of its models."""
    return TintsService(tmp_path_factory.mktemp("service"))


@pytest.fixture
def own_service(tmp_path):
    return TintsService(tmp_path)
