"""Checks of the API server: schemas with unknown keys refused, list keys, CEL rules.

Custom kinds by KubeRay's own definitions, built-in kinds by the schemas in ``kubernetes-validate``.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import yaml
from manifest_build import Manifest, label

Schema = dict[str, Any]

# The API server checks these itself; a definition only requires `metadata` to be an object.
OBJECT_META: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "finalizers": {"type": "array", "items": {"type": "string"}},
    },
}


@dataclass(frozen=True)
class CustomKind:
    """One version of one custom resource definition."""

    schema: Schema
    """Schema of the definition, with the ``x-kubernetes-`` keys."""
    validator: jsonschema.Draft202012Validator
    """Schema as strict JSON Schema."""


CustomKinds = dict[tuple[str, str], CustomKind]
"""Definitions by ``apiVersion`` and ``kind``."""


def load_custom_kinds(folder: Path) -> CustomKinds:
    """Load every served version of every ``*.yaml.gz`` definition in ``folder``."""
    kinds: CustomKinds = {}
    for path in sorted(folder.glob("*.yaml.gz")):
        definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            if version["served"] and version["name"] == "v1":
                schema = version["schema"]["openAPIV3Schema"]
                strict = strict_schema(schema)
                strict["properties"]["metadata"] = OBJECT_META
                strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
                key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
                kinds[key] = CustomKind(schema, jsonschema.Draft202012Validator(strict))
    if not kinds:
        raise FileNotFoundError(f"no custom resource definitions (*.yaml.gz) in {folder}")
    return kinds


def strict_schema(schema: Schema) -> Schema:
    """Convert a structural schema to JSON Schema that refuses unknown keys."""
    strict = {key: value for key, value in schema.items() if key in ("enum", "minimum", "minItems", "maxLength")}
    strict |= {key: schema[key] for key in ("minLength", "maximum", "maxItems", "pattern") if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    elif "type" in schema:
        strict["type"] = [schema["type"], "null"] if schema.get("nullable") else schema["type"]
    if "items" in schema:
        strict["items"] = strict_schema(schema["items"])
    if "properties" in schema:
        strict["properties"] = {name: strict_schema(each) for name, each in schema["properties"].items()}
        # The server applies defaults before it checks for required keys.
        required = [name for name in schema.get("required", []) if "default" not in schema["properties"][name]]
        strict["required"] = required
        strict["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = strict_schema(schema["additionalProperties"])
    return strict


def schema_problems(manifest: Manifest, kinds: CustomKinds, *, kubernetes: str) -> list[str]:
    """Violations of the API server's checks in one object.

    Args:
        manifest: Any object; of a kind that nobody knows: that is the problem.
        kinds: ``load_custom_kinds``.
        kubernetes: Version such as "1.34" whose built-in kinds hold.
    """
    key = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if key not in kinds:
        return builtin_problems(manifest, kubernetes)
    kind = kinds[key]
    problems = []
    for error in kind.validator.iter_errors(manifest):
        where = ".".join(str(part) for part in error.absolute_path)
        problems.append(f"{label(manifest)}: {where}: {error.message[:300]}")
    if problems:
        return problems  # the rules below need well-formed objects
    return [f"{label(manifest)}: {each}" for each in rule_problems(manifest, kind.schema, "")]


def builtin_problems(manifest: Manifest, kubernetes: str) -> list[str]:
    """Violations in one object of a built-in kind."""
    try:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"{label(manifest)}: {error.message}"]
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        return [f"{label(manifest)}: {where}: {error.message[:300]}"]
    return []


def rule_problems(value: Any, schema: Schema, where: str) -> Iterator[str]:
    """Violations of CEL rules and unique list keys, at every depth of a well-formed value."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue  # about an update, and there is no earlier object
        if not holds(rule["rule"], value):
            yield f"{where}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        free = schema.get("additionalProperties")
        for name, each in value.items():
            below = inner.get(name, free)
            if isinstance(below, dict):
                yield from rule_problems(each, below, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list):
        names = schema.get("x-kubernetes-list-map-keys")
        if names:
            fields = schema["items"]["properties"]
            keys = [tuple(each.get(name, fields[name].get("default")) for name in names) for each in value]
            if len(set(keys)) < len(keys):
                yield f"{where}: two entries have the same {' and '.join(names)}"
        for index, each in enumerate(value):
            yield from rule_problems(each, schema.get("items", {}), f"{where}.{index}")


_PROGRAMS: dict[str, celpy.Runner] = {}


def holds(rule: str, value: Any) -> bool:
    """Evaluate a CEL rule on ``self``."""
    if rule not in _PROGRAMS:
        environment = celpy.Environment()
        _PROGRAMS[rule] = environment.program(environment.compile(rule))
    return bool(_PROGRAMS[rule].evaluate({"self": celpy.json_to_cel(value)}))
