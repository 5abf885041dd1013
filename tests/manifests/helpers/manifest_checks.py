"""All checks of a set of manifests that need no cluster."""

import json
from pathlib import Path

from manifest_build import Manifest
from manifest_operator import operator_problems
from manifest_pods import house_problems, pods, security_problems
from manifest_references import Names, reference_problems
from manifest_schema import CustomKinds, load_custom_kinds, schema_problems

CRDS = Path(__file__).parents[1] / "crds"
KUBERNETES = ("1.31", "1.37")
"""Oldest and newest Kubernetes version whose schemas must accept the manifests."""


class Checker:
    """Checks with their schemas, loaded once."""

    def __init__(self, first: Names) -> None:
        """Args: first: What users create before they apply (``manifest_references.create_first``)."""
        self.kinds: CustomKinds = load_custom_kinds(CRDS)
        self.first = first
        self._known: dict[str, list[str]] = {}  # by content: builds share most objects

    def problems(self, manifests: list[Manifest]) -> list[str]:
        """One line for each violation of the API server's, the operator's, Pod Security's or the project's rules."""
        found = [each for manifest in manifests for each in self._schema_problems(manifest)]
        if found:
            return found  # later checks need well-formed objects
        for manifest in manifests:
            found += operator_problems(manifest)
        for pod in pods(manifests):
            found += [*security_problems(pod), *house_problems(pod)]
        return found + reference_problems(manifests, self.first)

    def _schema_problems(self, manifest: Manifest) -> list[str]:
        content = json.dumps(manifest, sort_keys=True)
        if content not in self._known:
            found = [
                each for version in KUBERNETES for each in schema_problems(manifest, self.kinds, kubernetes=version)
            ]
            self._known[content] = list(dict.fromkeys(found))
        return self._known[content]
