"""The one door: everything that can be said of a set of manifests without a cluster."""

import json
from pathlib import Path

from manifest_build import Manifest
from manifest_operator import operator_problems
from manifest_pods import house_problems, pods, security_problems
from manifest_references import Names, reference_problems
from manifest_schema import CustomKinds, load_custom_kinds, schema_problems

CRDS = Path(__file__).parents[1] / "crds"
KUBERNETES = ("1.31", "1.37")
"""Oldest and newest version whose schemas must take the manifests."""


class Checker:
    """The checks with what they need, loaded once."""

    def __init__(self, first: Names) -> None:
        """Args: first: What users create before they apply (``manifest_references.create_first``)."""
        self.kinds: CustomKinds = load_custom_kinds(CRDS)
        self.first = first
        self._known: dict[str, list[str]] = {}  # by content: most objects of a build are those of the last one

    def problems(self, manifests: list[Manifest]) -> list[str]:
        """One line for each thing that the API server, the operator, Pod Security or the house would refuse."""
        found = [each for manifest in manifests for each in self._schema_problems(manifest)]
        if found:
            return found  # what follows reads well-formed objects
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
