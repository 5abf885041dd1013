"""Rules of KubeRay 1.7's operator for objects that the API server accepts.

Most of these come from the operator's validation and from how it builds `ray start` and the submitter's shell line.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml
from manifest_build import Manifest, label
from manifest_pods import cluster_specs
from ray.runtime_env import RuntimeEnv

Spec = dict[str, Any]

NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
ALPHA_FIELDS = {"networkPolicy": "RayClusterNetworkPolicy", "tlsOptions": "mTLS", "historyServerOptions": "history"}
RAY_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
REDIS_VARIABLES = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
UPGRADES = {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")


def operator_problems(manifest: Manifest) -> list[str]:
    """Violations of the operator's rules in one object; an empty list for kinds other than Ray's."""
    kind = manifest.get("kind", "")
    if kind == "RayCronJob":
        return [f"{label(manifest)}: RayCronJob is behind an alpha gate that is off"]
    if kind not in NAME_LENGTHS:
        return []
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    problems = []
    if len(name) > NAME_LENGTHS[kind] or not DNS_1035.fullmatch(name):
        problems.append(f"name must be a DNS label that starts with a letter, at most {NAME_LENGTHS[kind]} characters")
    for where, cluster in cluster_specs(manifest):
        problems += [f"{where}: {each}" for each in cluster_problems(cluster)]
    if kind == "RayJob":
        problems += [*job_problems(spec), *deletion_problems(spec), *runtime_env_problems(spec)]
        problems += entrypoint_problems(spec.get("entrypoint", ""))
    if kind == "RayService":
        upgrade = (spec.get("upgradeStrategy") or {}).get("type", "NewCluster")
        if upgrade not in UPGRADES:
            problems.append(f"upgradeStrategy.type must be one of {', '.join(sorted(UPGRADES))}, got {upgrade}")
    return [f"{label(manifest)}: {each}" for each in problems]


def cluster_problems(cluster: Spec) -> Iterator[str]:
    """Violations in one RayClusterSpec."""
    head = cluster["headGroupSpec"]
    groups = {"head": head} | {each["groupName"]: each for each in cluster.get("workerGroupSpecs", [])}
    if len(groups) != 1 + len(cluster.get("workerGroupSpecs", [])):
        yield "two worker groups have the same groupName"
    for field, gate in ALPHA_FIELDS.items():
        if field in cluster:
            yield f"{field} is behind the alpha gate {gate}, which is off"
    version = cluster.get("rayVersion", "")
    if "authOptions" not in cluster:
        yield "authOptions is missing: whoever reaches the head could run code"
    elif not re.fullmatch(r"\d+\.\d+\.\d+", version) or tuple(map(int, version.split("."))) < (2, 52, 0):
        yield f"authOptions needs rayVersion 2.52.0 or later, got {version!r}"
    is_scaled = bool(cluster.get("enableInTreeAutoscaling"))
    is_v2 = is_scaled and (cluster.get("autoscalerOptions") or {}).get("version", "v2") == "v2"
    for name, group in groups.items():
        params, pod = group.get("rayStartParams") or {}, group["template"]["spec"]
        if "labels" in params:
            yield f"{name}: Ray's labels go into `labels`, not into rayStartParams"
        if group.get("resources") and any(params.get(key) for key in RAY_RESOURCES):
            yield f"{name}: resources are set both in rayStartParams and in `resources`"
        if is_v2 and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy must be Never or unset with autoscaler v2"
        if is_scaled and group.get("suspend"):
            yield f"{name}: a group can't be suspended with the autoscaler"
        if group is not head:
            least, most = group.get("minReplicas", 0), group.get("maxReplicas")
            if most is None:
                yield f"{name}: maxReplicas is missing, so the autoscaler would know no end"
            elif not least <= group.get("replicas", least) <= most:
                yield f"{name}: replicas must lie between minReplicas and maxReplicas"
        image = pod["containers"][0].get("image", "")
        if version and not re.search(rf"(^|[^0-9.]){re.escape(version)}([^0-9.]|$)", image.rpartition(":")[2]):
            yield f"{name}: rayVersion {version} must be named by the image's tag, got {image!r}"
    variables = {each["name"] for each in head["template"]["spec"]["containers"][0].get("env", [])}
    if REDIS_VARIABLES & variables or "redis-password" in (head.get("rayStartParams") or {}):
        yield "head: Redis is set by gcsFaultToleranceOptions alone"
    if "RAY_enable_autoscaler_v2" in variables:
        yield "head: the autoscaler's version is set by autoscalerOptions.version alone"


def job_problems(spec: Spec) -> Iterator[str]:
    """Violations in a RayJob, outside its cluster."""
    if ("rayClusterSpec" in spec) == bool(spec.get("clusterSelector")):
        yield "one of rayClusterSpec and clusterSelector must be set"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "SidecarMode" and ({"submitterPodTemplate", "submitterConfig"} & spec.keys()):
        yield "SidecarMode takes neither submitterPodTemplate nor submitterConfig"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode takes no backoffLimit"
    if (spec.get("rayClusterSpec") or {}).get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth works for a RayCluster only"
    submitter = (spec.get("submitterPodTemplate") or {}).get("spec", {})
    if submitter and submitter.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "submitterPodTemplate: restartPolicy must be Never or OnFailure, it becomes a Job's pod"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) < 1:
            yield f"{key} must be positive"


def deletion_problems(spec: Spec) -> Iterator[str]:
    """Violations in the deletion of a finished job: shutdown with a TTL, or rules, never both."""
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules", [])
    shuts_down = bool(spec.get("shutdownAfterJobFinishes"))
    is_scaled = bool((spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"))
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes: true (and so no deletionRules)"
    if spec.get("suspend") and spec.get("clusterSelector"):
        yield "suspend does not work with clusterSelector"
    if spec.get("suspend") and is_scaled:
        yield "Kueue admits no suspended job with enableInTreeAutoscaling"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if rules and shuts_down:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    waits: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        if policy == "DeleteWorkers" and is_scaled:
            yield "DeleteWorkers does not work with enableInTreeAutoscaling"
        if policy in ("DeleteWorkers", "DeleteCluster") and spec.get("clusterSelector"):
            yield f"{policy} does not work with clusterSelector"
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus", "")
        if policy in waits.setdefault(status, {}):
            yield f"two rules of {policy} for {status}"
        waits[status][policy] = condition.get("ttlSeconds", 0)
    for status, by_policy in waits.items():
        in_order = [by_policy[policy] for policy in DELETION_ORDER if policy in by_policy]
        if in_order != sorted(in_order):
            yield f"{status}: workers must go no later than the cluster, the cluster no later than the job"


def runtime_env_problems(spec: Spec) -> Iterator[str]:
    """Violations in a runtime env: Ray only warns of unknown keys, and the submitter's shell expands dollar signs."""
    text = spec.get("runtimeEnvYAML", "")
    if re.search(r"[$`]", text):
        yield "runtimeEnvYAML: the submitter's shell would expand $ and backticks"
    content = yaml.safe_load(text) or {}
    if not isinstance(content, dict):
        yield f"runtimeEnvYAML must be a mapping, got {type(content).__name__}"
        return
    known = {each for each in RuntimeEnv.known_fields if not each.startswith("_")}
    if unknown := sorted(set(content) - known):
        yield f"runtimeEnvYAML: Ray knows no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        return
    try:
        RuntimeEnv(**content)
    except (TypeError, ValueError) as error:
        yield f"runtimeEnvYAML: {error}"


def entrypoint_problems(entrypoint: str) -> Iterator[str]:
    """Violations in an entrypoint, which passes through the submitter's shell and another one on the head."""
    odd = [word for word in entrypoint.split() if not PLAIN_WORD.fullmatch(word)]
    if odd:
        yield f"entrypoint: two shells read it, so words must be plain ([A-Za-z0-9_./:=,@%+-]), got {' '.join(odd)}"
    if not entrypoint.strip():
        yield "entrypoint is empty"


def entrypoint_overrides(entrypoint: str, script: str) -> list[str]:
    """Arguments after ``python <script>`` in an entrypoint.

    Raises:
        ValueError: It starts another program.
    """
    words = shlex.split(entrypoint)
    if words[:2] != ["python", script]:
        raise ValueError(f"expected an entrypoint that starts with 'python {script}', got {entrypoint!r}")
    return words[2:]
