"""Pods of a set of manifests, and their checks by Pod Security and project rules."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from manifest_build import Manifest, label

Spec = dict[str, Any]

# https://kubernetes.io/docs/concepts/security/pod-security-standards/, profile "restricted"
VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
SECCOMP = {"RuntimeDefault", "Localhost"}
SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{prefix}i": 2.0 ** (10 * power) for power, prefix in enumerate("KMGT", start=1)
}
WORKLOADS = {
    "Pod": (), "Deployment": ("template",), "StatefulSet": ("template",), "DaemonSet": ("template",),
    "ReplicaSet": ("template",), "Job": ("template",), "CronJob": ("jobTemplate", "spec", "template"),
}  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """One pod template, with the operator's additions."""

    name: str
    """Origin of the template, for messages."""
    labels: dict[str, str]
    """Labels, including those added by KubeRay."""
    spec: Spec
    is_ray: bool
    """Whether Ray runs in the pod and schedules by its limits."""
    count: int = 1
    """Maximum number of pods."""


def cluster_specs(manifest: Manifest) -> Iterator[tuple[str, Spec]]:
    """RayClusterSpecs in one object, with the path of each."""
    spec = manifest.get("spec") or {}
    kind = manifest.get("kind")
    if kind == "RayCluster":
        yield "spec", spec
    elif kind == "RayJob" and "rayClusterSpec" in spec:
        yield "spec.rayClusterSpec", spec["rayClusterSpec"]
    elif kind == "RayService":
        yield "spec.rayClusterConfig", spec["rayClusterConfig"]


def pods(manifests: list[Manifest]) -> list[Pod]:
    """All pod templates of the objects."""
    found: list[Pod] = []
    for manifest in manifests:
        found += workload_pods(manifest)
        for where, cluster in cluster_specs(manifest):
            found += ray_pods(f"{label(manifest)}: {where}", manifest["metadata"]["name"], cluster)
        spec = manifest.get("spec") or {}
        if manifest.get("kind") == "RayJob" and spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
            # If missing, the operator adds a default one, which `restricted` refuses, as does the check below.
            template = spec.get("submitterPodTemplate") or {"spec": {"containers": [{"name": "submitter"}]}}
            found.append(_pod(f"{label(manifest)}: spec.submitterPodTemplate", template))
    return found


def workload_pods(manifest: Manifest) -> list[Pod]:
    """Pod of a built-in workload, if the object is one."""
    if manifest.get("kind") not in WORKLOADS:
        return []
    template = manifest if manifest["kind"] == "Pod" else manifest["spec"]
    for key in WORKLOADS[manifest["kind"]]:
        template = template[key]
    return [_pod(f"{label(manifest)}: pod", template, count=(manifest.get("spec") or {}).get("replicas", 1))]


def ray_pods(where: str, cluster_name: str, cluster: Spec) -> list[Pod]:
    """Head and workers of a RayClusterSpec."""
    found = []
    head = cluster["headGroupSpec"]
    added = {"ray.io/is-ray-node": "yes", "ray.io/cluster": cluster_name}
    head_pod = _pod(f"{where}.headGroupSpec", head["template"], added | {"ray.io/node-type": "head"}, is_ray=True)
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions") or {}
        # The operator adds this container, hardened only by these options.
        container = {"name": "autoscaler", "image": head_pod.spec["containers"][0].get("image", "")}
        container |= {key: options[key] for key in ("securityContext", "volumeMounts", "env") if key in options}
        container["resources"] = options.get("resources", {"limits": {"cpu": "500m", "memory": "512Mi"}})
        head_pod.spec["containers"] = [*head_pod.spec["containers"], container]
    found.append(head_pod)
    for group in cluster.get("workerGroupSpecs", []):
        name = f"{where}.workerGroupSpecs[{group['groupName']}]"
        worker = added | {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
        found.append(_pod(name, group["template"], worker, is_ray=True, count=group.get("maxReplicas", 1)))
    return found


def _pod(
    name: str, template: Spec, added: dict[str, str] | None = None, *, is_ray: bool = False, count: int = 1
) -> Pod:
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    return Pod(name, labels | (added or {}), dict(template["spec"]), is_ray, count)


def containers(spec: Spec) -> list[Spec]:
    """All containers of a pod, init containers first."""
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def security_problems(pod: Pod) -> list[str]:
    """Violations of the Pod Security profile ``restricted``."""
    spec, context = pod.spec, pod.spec.get("securityContext") or {}
    problems = [f"{key} must not be set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUME_TYPES:
            problems.append(f"volume {volume.get('name')}: {', '.join(sorted(kinds - VOLUME_TYPES))} is not allowed")
    unsafe = {each["name"] for each in context.get("sysctls", [])} - SAFE_SYSCTLS
    problems += [f"sysctl {name} is not allowed" for name in sorted(unsafe)]
    for container in containers(spec):
        own = container.get("securityContext") or {}
        name = container.get("name", "?")
        capabilities = own.get("capabilities") or {}
        expectations = {
            "privileged must not be set": not own.get("privileged"),
            "allowPrivilegeEscalation must be false": own.get("allowPrivilegeEscalation") is False,
            "capabilities must drop ALL": "ALL" in capabilities.get("drop", []),
            "capabilities may add NET_BIND_SERVICE alone": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "runAsNonRoot must be true": own.get("runAsNonRoot", context.get("runAsNonRoot")) is True,
            "runAsUser must not be 0": own.get("runAsUser", context.get("runAsUser")) != 0,
            "seccompProfile must be RuntimeDefault or Localhost": (
                own.get("seccompProfile", context.get("seccompProfile")) or {}
            ).get("type")
            in SECCOMP,
            "procMount must be Default": own.get("procMount", "Default") == "Default",
            "hostPort must not be set": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        problems += [f"container {name}: {text}" for text, is_met in expectations.items() if not is_met]
    return [f"{pod.name}: {each}" for each in problems]


def house_problems(pod: Pod) -> list[str]:
    """Violations of the project's rules: no API token, no plain-text secrets, sizes that Ray can rely on."""
    problems = []
    if pod.spec.get("automountServiceAccountToken") is not False:
        problems.append("automountServiceAccountToken must be false; mount a token only where it is needed")
    for container in containers(pod.spec):
        name = container.get("name", "?")
        if not re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", container.get("image", "")):
            problems.append(f"container {name}: image needs a tag other than latest, or a digest")
        problems += [
            f"container {name}: {variable['name']} must come from a Secret, not from this file"
            for variable in container.get("env", [])
            if SECRET_NAME.search(variable["name"]) and "value" in variable
        ]
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            problems.append(f"container {name}: readOnlyRootFilesystem must be true")
        limits = (container.get("resources") or {}).get("limits") or {}
        problems += [f"container {name}: no limit of {key}" for key in ("cpu", "memory") if key not in limits]
    if pod.is_ray:
        problems += _ray_size_problems(pod.spec)
    return [f"{pod.name}: {each}" for each in problems]


def _ray_size_problems(spec: Spec) -> list[str]:
    container = spec["containers"][0]  # the operator uses the first as Ray's
    resources = container.get("resources") or {}
    problems = []
    if resources.get("requests") != resources.get("limits"):
        problems.append("requests and limits of Ray's container must be equal: Ray schedules by the limits")
    mounted = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", [])}
    volumes = {each["name"]: each for each in spec.get("volumes", [])}
    problems += [
        f"{path} must be an emptyDir"
        for path in ("/dev/shm", "/tmp/ray")
        if "emptyDir" not in volumes.get(mounted.get(path, ""), {})
    ]
    shared = volumes.get(mounted.get("/dev/shm", ""), {}).get("emptyDir") or {}
    if shared.get("medium") != "Memory":
        problems.append("/dev/shm must have medium Memory: else Ray's object store is a disk")
    elif "memory" in (resources.get("limits") or {}):
        memory = quantity(resources["limits"]["memory"])
        share = quantity(shared.get("sizeLimit", 0)) / memory
        if not 0.3 <= share <= 0.5:
            problems.append(f"/dev/shm must hold 0.3 (Ray's object store) to 0.5 of the memory limit, got {share:.2f}")
    return problems


def quantity(value: str | float) -> float:
    """Convert a Kubernetes quantity such as ``500m`` or ``16Gi`` to a number.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(m|[kMGT]|[KMGT]i)?", str(value))
    if match is None:
        raise ValueError(f"expected a quantity such as 500m or 16Gi, got {value!r}")
    return float(match[1]) * UNITS[match[2] or ""]
