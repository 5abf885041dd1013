"""Errors that the checks must find."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from manifest_build import Manifest
from manifest_checks import Checker
from manifest_pods import quantity

Built = Callable[[str], list[Manifest]]
HEAD = ("spec", "headGroupSpec", "template", "spec")
JOB_HEAD = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec")
POD = ("spec", "template", "spec")


def dig(value: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def put(*path: str | int, value: Any) -> Callable[[Manifest], None]:
    """Set the value at a path."""

    def change(manifest: Manifest) -> None:
        dig(manifest, path[:-1])[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[Manifest], None]:
    """Remove the value at a path."""

    def change(manifest: Manifest) -> None:
        del dig(manifest, path[:-1])[path[-1]]

    return change


def every(*changes: Callable[[Manifest], None]) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for each in changes:
            each(manifest)

    return change


BROKEN: dict[str, tuple[str, Callable[[Manifest], None], str]] = {
    # the API server, by schema
    "misspelt key deep in a pod": (
        "RayCluster",
        put(*HEAD, "containers", 0, "env", 0, "valeu", value="x"),
        r"template\.spec\.containers\.0\.env\.0: .*'valeu' was unexpected",
    ),
    "misspelt key in a submitter": (
        "RayJob",
        put("spec", "submitterPodTemplate", "spec", "tollerations", value=[]),
        "tollerations",
    ),
    "misspelt metadata": ("RayCluster", put("metadata", "lables", value={}), "lables"),
    "wrong type": (
        "RayCluster",
        put("spec", "headGroupSpec", "rayStartParams", "num-cpus", value=0),
        "is not of type 'string'",
    ),
    "unknown policy": (
        "RayJob",
        put("spec", "deletionStrategy", "deletionRules", 0, "policy", value="DeleteAll"),
        "DeleteAll",
    ),
    "required key missing": (
        "RayJob",
        drop("spec", "deletionStrategy", "deletionRules", 0, "policy"),
        "'policy' is a required",
    ),
    "no upper end of workers": (
        "RayCluster",
        drop("spec", "workerGroupSpecs", 0, "maxReplicas"),
        "maxReplicas is missing",
    ),
    "bad quantity": ("RayCluster", put(*HEAD, "containers", 0, "resources", "limits", "memory", value="8GiB"), "8GiB"),
    "misspelt key of a built-in kind": ("Service", put("spec", "prots", value=[]), "prots"),
    "no such kind": ("Service", put("apiVersion", value="v9"), "Couldn't find schema"),
    # the API server, beyond the schema
    "two containers of one name": (
        "RayCluster",
        lambda manifest: dig(manifest, HEAD)["containers"].append(dict(dig(manifest, HEAD)["containers"][0])),
        "containers: two entries have the same name",
    ),
    "legacy policy beside rules": (
        "RayJob",
        put("spec", "deletionStrategy", "onSuccess", value={"policy": "DeleteSelf"}),
        "legacy policies",
    ),
    "rule with two conditions": (
        "RayJob",
        put("spec", "deletionStrategy", "deletionRules", 0, "condition", "jobDeploymentStatus", value="Failed"),
        "cannot be used together within the same deletion condition",
    ),
    "foreign manager": ("RayJob", put("spec", "managedBy", value="someone"), "managedBy field value must be"),
    # the operator
    "rules and suspend": ("RayJob", put("spec", "suspend", value=True), "suspend needs shutdownAfterJobFinishes"),
    "rules and shutdown": ("RayJob", put("spec", "shutdownAfterJobFinishes", value=True), "exclude each other"),
    "TTL without shutdown": (
        "RayJob",
        put("spec", "ttlSecondsAfterFinished", value=9),
        "needs shutdownAfterJobFinishes",
    ),
    "workers outlive the cluster": (
        "RayJob",
        put("spec", "deletionStrategy", "deletionRules", 0, "condition", "ttlSeconds", value=9999),
        "workers must go no later than the cluster",
    ),
    "workers deleted under the autoscaler": (
        "RayJob",
        put("spec", "rayClusterSpec", "enableInTreeAutoscaling", value=True),
        "DeleteWorkers does not work with enableInTreeAutoscaling",
    ),
    "long name": ("RayJob", put("metadata", "name", value="a" * 48), "at most 47 characters"),
    "name that starts with a digit": ("RayCluster", put("metadata", "name", value="10fold"), "starts with a letter"),
    "alpha network policy": ("RayCluster", put("spec", "networkPolicy", value={"mode": "DenyAll"}), "alpha gate"),
    "alpha TLS": ("RayCluster", put("spec", "tlsOptions", value={"enabled": True}), "alpha gate"),
    "no token": ("RayCluster", drop("spec", "authOptions"), "authOptions is missing"),
    "Ray too old for tokens": ("RayCluster", put("spec", "rayVersion", value="2.51.0"), "2.52.0 or later"),
    "Ray version of another image": (
        "RayCluster",
        put("spec", "rayVersion", value="2.6.0"),
        "named by the image's tag",
    ),
    "restart policy under autoscaler v2": ("RayCluster", put(*HEAD, "restartPolicy", value="Always"), "Never or unset"),
    "labels as start parameter": (
        "RayCluster",
        put("spec", "headGroupSpec", "rayStartParams", "labels", value="a=b"),
        "go into `labels`",
    ),
    "resources twice": ("RayCluster", put("spec", "headGroupSpec", "resources", value={"CPU": "0"}), "set both"),
    "sidecar with a submitter": ("RayJob", put("spec", "submissionMode", value="SidecarMode"), "takes neither"),
    "unknown runtime_env key": (
        "RayJob",
        put("spec", "runtimeEnvYAML", value="env_var: {A: b}"),
        "Ray knows no env_var",
    ),
    "wrong runtime_env type": (
        "RayJob",
        put("spec", "runtimeEnvYAML", value="env_vars: {A: 1}"),
        "runtimeEnvYAML: .*Dict",
    ),
    "runtime_env that a shell would change": (
        "RayJob",
        put("spec", "runtimeEnvYAML", value="env_vars: {A: $B}"),
        "expand",
    ),
    "entrypoint that a shell would change": (
        "RayJob",
        put("spec", "entrypoint", value="python jobs/train.py 'data.classes=[1, 2]'"),
        "words must be plain",
    ),
    # Pod Security
    "bare default submitter": (
        "RayJob",
        drop("spec", "submitterPodTemplate"),
        "submitterPodTemplate: container submitter: capab",
    ),
    "missing container securityContext": (
        "RayJob",
        drop(*JOB_HEAD, "containers", 0, "securityContext"),
        "allowPrivilegeEscalation",
    ),
    "missing pod securityContext": ("RayJob", drop(*JOB_HEAD, "securityContext"), "runAsNonRoot must be true"),
    "missing autoscaler securityContext": (
        "RayCluster",
        drop("spec", "autoscalerOptions", "securityContext"),
        "container autoscaler: capabilities must drop ALL",
    ),
    "root": ("Deployment", put(*POD, "securityContext", "runAsUser", value=0), "runAsUser must not be 0"),
    "no seccomp profile": ("Deployment", drop(*POD, "securityContext", "seccompProfile"), "seccompProfile"),
    "host path": (
        "Deployment",
        put(*POD, "volumes", 1, value={"name": "tmp", "hostPath": {"path": "/"}}),
        "hostPath is not allowed",
    ),
    "host network": ("Deployment", put(*POD, "hostNetwork", value=True), "hostNetwork"),
    "privileged init container": (
        "Deployment",
        put(*POD, "initContainers", 0, "securityContext", "privileged", value=True),
        "container migrate: privileged",
    ),
    # project rules
    "API token for all": ("Deployment", drop(*POD, "automountServiceAccountToken"), "automountServiceAccountToken"),
    "secret in clear": (
        "Deployment",
        put(*POD, "containers", 0, "env", 0, value={"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "must come from a Secret",
    ),
    "latest image": ("Deployment", put(*POD, "containers", 0, "image", value="tenfold:latest"), "other than latest"),
    "no limits": ("Deployment", drop(*POD, "containers", 0, "resources"), "no limit of memory"),
    "Ray below its limits": (
        "RayCluster",
        put(*HEAD, "containers", 0, "resources", "requests", "cpu", value="500m"),
        "requests and limits of Ray's container must be equal",
    ),
    "shared memory on disk": ("RayCluster", drop(*HEAD, "volumes", 0, "emptyDir", "medium"), "medium Memory"),
    "shared memory too small": ("RayCluster", put(*HEAD, "volumes", 0, "emptyDir", "sizeLimit", value="64Mi"), "0.3"),
    # references
    "unknown Secret": (
        "RayCluster",
        put("spec", "authOptions", "secretName", value="ray-token"),
        "there is no Secret ray-token",
    ),
    "unknown key": (
        "Deployment",
        put(*POD, "containers", 0, "env", 3, "valueFrom", "configMapKeyRef", "key", value="REGION"),
        "has no key REGION",
    ),
    "unknown ConfigMap": (
        "RayCluster",
        put(*HEAD, "containers", 0, "envFrom", 0, "configMapRef", "name", value="tenfold-config-6ft7"),
        "there is no ConfigMap",
    ),
    "unknown service account": ("RayCluster", put(*HEAD, "serviceAccountName", value="head"), "no ServiceAccount head"),
    "unknown claim": (
        "Deployment",
        put(*POD, "volumes", 0, "persistentVolumeClaim", "claimName", value="disk"),
        "no PersistentVolumeClaim disk",
    ),
    "unknown priority class": ("RayCluster", put(*HEAD, "priorityClassName", value="high"), "no PriorityClass high"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifest_is_refused(built: Built, checker: Checker, name: str):
    kind, change, message = BROKEN[name]
    manifests = built("overlays/dev")
    change(next(each for each in manifests if each["kind"] == kind))
    problems = checker.problems(manifests)
    assert any(re.search(message, each) for each in problems), problems


def test_quantities():
    assert [quantity(each) for each in ("500m", "2", "1.5", "1k", "16Gi", 3)] == [0.5, 2, 1.5, 1000, 16 * 2**30, 3]
    with pytest.raises(ValueError, match="expected a quantity such as 500m"):
        quantity("8GiB")
