"""Names that manifests refer to, and whether they exist: a pod waits for ever for a missing one."""

import re
from collections.abc import Iterator
from typing import Any

from manifest_build import Manifest, label
from manifest_pods import Pod, cluster_specs, containers, pods

# Kubernetes creates this one in every namespace.
GIVEN = {("ConfigMap", "kube-root-ca.crt"): {"ca.crt"}}

Names = dict[tuple[str, str], set[str] | None]
"""Kind and name to its keys; None for kinds without keys."""


def provided(manifests: list[Manifest]) -> Names:
    """Names that the objects define."""
    names: Names = {}
    for each in manifests:
        keys = set(each.get("data") or {}) if each["kind"] in ("ConfigMap", "Secret") else None
        names[each["kind"], each["metadata"]["name"]] = keys
    return names


def create_first(readme: str) -> Names:
    """Parse the table "create these first": rows ``| Secret | name | key, key | ... |``."""
    rows = re.findall(r"^\s*\|\s*(Secret|ConfigMap)\s*\|\s*([\w.-]+)\s*\|\s*([\w., -]+?)\s*\|", readme, re.MULTILINE)
    return {(kind, name): {key.strip() for key in keys.split(",")} for kind, name, keys in rows}


def used(manifests: list[Manifest]) -> Iterator[tuple[str, str, str, str | None]]:
    """References as place, kind, name and, if given, key."""
    for pod in pods(manifests):
        yield from _used_by_pod(pod)
    for manifest in manifests:
        for where, cluster in cluster_specs(manifest):
            secret = (cluster.get("authOptions") or {}).get("secretName")
            if secret:
                yield f"{label(manifest)}: {where}.authOptions", "Secret", secret, "auth_token"


def _used_by_pod(pod: Pod) -> Iterator[tuple[str, str, str, str | None]]:
    where, spec = pod.name, pod.spec
    if "serviceAccountName" in spec:
        yield where, "ServiceAccount", spec["serviceAccountName"], None
    if "priorityClassName" in spec:
        yield where, "PriorityClass", spec["priorityClassName"], None
    for each in spec.get("imagePullSecrets", []):
        yield where, "Secret", each["name"], None
    for container in containers(spec):
        for each in container.get("envFrom", []):
            yield from _reference(where, "ConfigMap", each.get("configMapRef"))
            yield from _reference(where, "Secret", each.get("secretRef"))
        for each in container.get("env", []):
            source = each.get("valueFrom") or {}
            yield from _reference(where, "ConfigMap", source.get("configMapKeyRef"))
            yield from _reference(where, "Secret", source.get("secretKeyRef"))
    for volume in spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield where, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
        for source in (volume, *(volume.get("projected") or {}).get("sources", [])):
            for key, kind, name in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
                target = source.get(key)
                if target:
                    items: list[dict[str, Any]] = target.get("items") or [{}]
                    for item in items:
                        yield where, kind, target.get(name) or target["name"], item.get("key")


def _reference(where: str, kind: str, target: dict[str, Any] | None) -> Iterator[tuple[str, str, str, str | None]]:
    if target and not target.get("optional"):
        yield where, kind, target["name"], target.get("key")


def reference_problems(manifests: list[Manifest], first: Names) -> list[str]:
    """References that are neither built, nor listed in ``first``, nor provided by Kubernetes."""
    names = GIVEN | first | provided(manifests)
    problems = []
    for where, kind, name, key in used(manifests):
        keys = names.get((kind, name))
        if (kind, name) not in names:
            problems.append(f"{where}: there is no {kind} {name}")
        elif key and keys is not None and key not in keys:
            problems.append(f"{where}: {kind} {name} has no key {key}")
    return sorted(set(problems))
