"""Connections that the overlays' network policies allow and deny."""

from collections.abc import Callable

import pytest
from manifest_build import Manifest
from manifest_network import Peer, is_allowed, selects
from manifest_pods import pods

Built = Callable[[str], list[Manifest]]
OUTSIDE = Peer(address="203.0.113.7")
METADATA = Peer(address="169.254.169.254")
OPERATOR = Peer({"app.kubernetes.io/name": "kuberay-operator"}, namespace="kuberay-system")


@pytest.fixture(scope="module")
def manifests(built: Built) -> list[Manifest]:
    return built("overlays/gpu")


@pytest.fixture(scope="module")
def peers(manifests: list[Manifest]) -> dict[str, Peer]:
    """Pods by component and, for Ray, node type; plus some foreign ones."""
    found = {"stranger": Peer({"app": "x"}), "foreign head": Peer({"ray.io/node-type": "head"}, namespace="other")}
    for pod in pods(manifests):
        name = pod.labels["app.kubernetes.io/component"]
        found[f"{name} {pod.labels.get('ray.io/node-type', '')}".strip()] = Peer(pod.labels)
    dns = Peer({"k8s-app": "kube-dns"}, namespace="kube-system")
    return found | {"outside": OUTSIDE, "metadata": METADATA, "operator": OPERATOR, "dns": dns}


OPEN = [
    ("cluster worker", "cluster head", 6379),
    ("cluster head", "cluster worker", 40123),
    ("train worker", "train head", 6379),
    ("train head", "train worker", 40123),
    ("train worker", "train worker", 29500),  # torch.distributed between workers
    ("submit", "train head", 8265),
    ("operator", "train head", 8265),
    ("operator", "cluster head", 8265),
    ("cluster head", "mlflow", 5000),
    ("train worker", "mlflow", 5000),
    ("train worker", "outside", 443),
    ("mlflow", "outside", 443),
    ("cluster head", "outside", 6443),
    ("submit", "dns", 53),
    ("mlflow", "dns", 53),
    ("train worker", "dns", 53),
]
CLOSED = [
    ("stranger", "cluster head", 8265),
    ("stranger", "mlflow", 5000),
    ("foreign head", "cluster head", 6379),
    ("outside", "cluster head", 8265),
    ("operator", "train head", 6379),
    ("operator", "train worker", 8265),
    ("submit", "train head", 6379),
    ("submit", "train worker", 8265),
    ("submit", "cluster head", 8265),
    ("submit", "mlflow", 5000),
    ("submit", "outside", 443),
    ("train worker", "cluster head", 6379),
    ("cluster head", "train head", 8265),
    ("mlflow", "train head", 8265),
    ("mlflow", "cluster head", 8265),
    ("train worker", "outside", 80),
    ("train worker", "metadata", 443),
    ("cluster head", "metadata", 443),
    ("train worker", "stranger", 443),
    ("train worker", "foreign head", 6379),
    ("stranger", "outside", 443),
]


@pytest.mark.parametrize(("source", "target", "port"), OPEN)
def test_open(manifests: list[Manifest], peers: dict[str, Peer], source: str, target: str, port: int):
    assert is_allowed(manifests, peers[source], peers[target], port)


@pytest.mark.parametrize(("source", "target", "port"), CLOSED)
def test_closed(manifests: list[Manifest], peers: dict[str, Peer], source: str, target: str, port: int):
    assert not is_allowed(manifests, peers[source], peers[target], port)


def test_without_the_default_denial_a_stranger_gets_out(manifests: list[Manifest], peers: dict[str, Peer]):
    open_ones = [each for each in manifests if each["metadata"]["name"] != "default-deny"]
    assert is_allowed(open_ones, peers["stranger"], OUTSIDE, 443)


def test_selectors():
    labels = {"a": "1"}
    assert selects({}, labels)
    assert selects({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, labels)
    assert selects({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, labels)
    assert not selects({"matchLabels": {"a": "1", "b": "2"}}, labels)
    assert not selects({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, labels)
    assert not selects({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, labels)
