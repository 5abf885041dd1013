"""Evaluation of NetworkPolicies: which pods may connect to which."""

import ipaddress
from dataclasses import dataclass
from typing import Any

from manifest_build import Manifest

Labels = dict[str, str]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod by its labels, or an address outside."""

    labels: Labels | None = None
    namespace: str = "tenfold"
    address: str | None = None


def is_allowed(manifests: list[Manifest], source: Peer, target: Peer, port: int, *, home: str = "tenfold") -> bool:
    """Return True if a TCP connection passes the source's egress and the target's ingress policies.

    Args:
        manifests: A build; its policies hold in the namespace ``home``.
        source: Who opens the connection.
        target: Who listens.
        port: By number; a named port counts as refused.
        home: Namespace of the policies.
    """
    policies = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    return _passes(policies, "Egress", source, target, port, home) and _passes(
        policies, "Ingress", target, source, port, home
    )


def _passes(policies: list[dict[str, Any]], way: str, own: Peer, other: Peer, port: int, home: str) -> bool:
    if own.labels is None or own.namespace != home:
        return True  # not restricted by these policies
    holding = [
        each for each in policies if way in each["policyTypes"] and selects(each.get("podSelector") or {}, own.labels)
    ]
    if not holding:
        return True
    rules = [rule for each in holding for rule in each.get(way.lower(), [])]
    side = "to" if way == "Egress" else "from"
    return any(
        (side not in rule or any(_is_peer(peer, other, home) for peer in rule[side])) and _is_port(rule, port)
        for rule in rules
    )


def _is_port(rule: dict[str, Any], port: int) -> bool:
    ports = rule.get("ports")
    if ports is None:
        return True
    for each in ports:
        first = each.get("port", 0)
        last = each.get("endPort", first) if "port" in each else 65535
        if each.get("protocol", "TCP") == "TCP" and isinstance(first, int) and first <= port <= last:
            return True
    return False


def _is_peer(rule: dict[str, Any], other: Peer, home: str) -> bool:
    if "ipBlock" in rule:
        if other.address is None:
            return False  # pods are selected by labels
        address = ipaddress.ip_address(other.address)
        block = rule["ipBlock"]
        excepted = any(address in ipaddress.ip_network(each) for each in block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not excepted
    if other.labels is None:
        return False
    if "namespaceSelector" in rule:
        if not selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != home:
        return False
    return selects(rule.get("podSelector") or {}, other.labels)


def selects(selector: dict[str, Any], labels: Labels) -> bool:
    """Return True if a label selector matches these labels; an empty one matches everything."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or []:
        value, values = labels.get(each["key"]), each.get("values", [])
        met = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not met[each["operator"]]:
            return False
    return True
