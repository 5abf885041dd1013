"""Every overlay builds and passes all checks that need no cluster."""

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifest_build import BuildError, Manifest, build
from manifest_checks import Checker
from manifest_operator import entrypoint_overrides
from manifest_pods import cluster_specs, pods, quantity

import tenfold

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(f"overlays/{path.parent.name}" for path in K8S.glob("overlays/*/kustomization.yaml"))
Built = Callable[[str], list[Manifest]]


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the only object of a kind."""
    (found,) = [each for each in manifests if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def has(manifests: list[Manifest], kind: str) -> bool:
    return any(each["kind"] == kind for each in manifests)


def test_there_are_overlays():
    assert {"overlays/dev", "overlays/gpu", "overlays/kueue"} <= set(OVERLAYS)


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_nothing_is_refused(built: Built, checker: Checker, folder: str):
    assert checker.problems(built(folder)) == []


def test_the_base_names_no_namespace(built: Built):
    assert [each for each in built("base") if "namespace" in each["metadata"] or each["kind"] == "Namespace"] == []


@pytest.mark.parametrize("folder", OVERLAYS)
def test_an_overlay_lives_in_one_hardened_namespace(built: Built, folder: str):
    manifests = built(folder)
    namespace = one(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    cluster_wide = {"Namespace", "PriorityClass"}
    names = {each["metadata"].get("namespace") for each in manifests if each["kind"] not in cluster_wide}
    assert names == {namespace["metadata"]["name"]}


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_no_secret_is_in_the_repository(built: Built, folder: str):
    assert not has(built(folder), "Secret")


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_image_is_that_of_the_tested_versions(built: Built, folder: str):
    ray = importlib.metadata.version("ray")
    manifests = built(folder)
    versions = {cluster["rayVersion"] for each in manifests for _, cluster in cluster_specs(each)}
    images = {container["image"] for pod in pods(manifests) for container in pod.spec["containers"]}
    assert versions == {ray}
    assert len(images) == 1, images
    assert images.pop().endswith(f"/tenfold:{tenfold.__version__}-ray{ray}")


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_entrypoints_are_jobs_of_this_project_that_fit_their_cluster(
    built: Built, folder: str, monkeypatch: pytest.MonkeyPatch
):
    from jobs.config import compose_job

    manifests = built(folder)
    settings = one(manifests, "ConfigMap", "tenfold-config")["data"]
    for name, value in settings.items():
        monkeypatch.setenv(name, value)  # as `envFrom` does in the driver
    spec = one(manifests, "RayJob")["spec"]
    job = compose_job(entrypoint_overrides(spec["entrypoint"], "jobs/train.py"))

    assert job.scale.kind == "ray"
    assert job.scale.storage == settings["TENFOLD_STORAGE"]
    limits = largest_workers(spec["rayClusterSpec"])
    assert job.scale.workers <= len(limits)
    for each in limits[: job.scale.workers]:
        # Less than all, as Ray Data's tasks need a CPU too.
        assert job.scale.cpus_per_worker < quantity(each["cpu"])
        assert job.scale.gpus_per_worker == quantity(each.get("nvidia.com/gpu", 0))


def largest_workers(cluster: dict[str, Any]) -> list[dict[str, str]]:
    """Limits of the initial workers of the job's cluster, those with GPUs first."""
    limits = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in cluster["workerGroupSpecs"]
        for _ in range(group["replicas"])
    ]
    return sorted(limits, key=lambda each: quantity(each.get("nvidia.com/gpu", 0)), reverse=True)


def test_only_the_autoscaler_sees_an_api_token(built: Built):
    seen = set()
    for pod in pods(built("overlays/gpu")):
        tokens = {
            volume["name"]
            for volume in pod.spec.get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        for container in pod.spec["containers"]:
            if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}:
                seen.add(container["name"])
    assert seen == {"autoscaler"}


def test_gpu_workers_ask_for_gpus_and_go_where_they_are(built: Built):
    manifests = built("overlays/gpu")
    found = [pod for pod in pods(manifests) if pod.labels.get("ray.io/group") == "gpu"]
    assert len(found) == 2  # one of the permanent cluster, one of the job
    for pod in found:
        assert pod.spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod.spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    asked = sum(pod.count for pod in found)
    assert asked <= quantity(one(manifests, "ResourceQuota")["spec"]["hard"]["requests.nvidia.com/gpu"])
    cpu = [pod for pod in pods(manifests) if pod.labels.get("ray.io/group") == "cpu"]
    assert [pod.spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in cpu] == [None]


def test_two_shapes_of_a_jobs_end(built: Built):
    free, queued = one(built("overlays/dev"), "RayJob"), one(built("overlays/kueue"), "RayJob")
    assert free["spec"]["deletionStrategy"]["deletionRules"]
    assert not free["spec"].get("suspend")
    assert queued["spec"]["suspend"] is True
    assert "deletionStrategy" not in queued["spec"]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]


def test_names_in_the_readme_exist(built: Built):
    text = (K8S / "README.md").read_text()
    known = {each["metadata"]["name"] for folder in OVERLAYS for each in built(folder)}
    known |= {"tenfold-head-svc", "ray-auth", "s3-credentials"}  # the operator's service; created by hand
    commands = re.findall(r"(?:service/|get secret |delete rayjob |generic )([\w-]+)", text)
    policies = re.findall(r"(?:NetworkPolicy|policy) `([\w-]+)`", text)
    assert len(commands) >= 5
    assert len(policies) >= 2
    assert set(commands + policies) <= known
    assert set(re.findall(r"`((?:base|overlays)/[\w/]+)`", text)) <= {
        str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")
    }


def test_a_broken_kustomization_is_reported_with_its_folder(tmp_path: Path, built: Built):
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    with pytest.raises(BuildError, match=r"missing\.yaml"):
        build(tmp_path)
