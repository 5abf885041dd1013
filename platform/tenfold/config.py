"""Settings of a job: five groups of plain values to validated dataclasses.

The same function checks values composed by Hydra, sampled by a sweep, and received by a worker.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tenfold.catalog import METHODS
from tenfold.data.catalog import DATA
from tenfold.engine.settings import GROUPS, JobConfig, RunConfig, ScaleConfig

Config = TypeVar("Config")


class ConfigError(ValueError):
    """Invalid settings; the message has the key, the expected and the actual value."""


def job_from_dict(container: Mapping[str, Any]) -> JobConfig:
    """Validate the five groups of a job.

    Args:
        container: Plain values by group: ``method`` and ``data`` (each with its ``name``), ``model``, ``scale`` and
            ``run``; a missing group has its defaults.

    Raises:
        ConfigError: Unknown group, key, method or data set; wrong type; value out of range. Lists every error.
    """
    unknown = sorted(set(container) - set(GROUPS))
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; a job has the groups {', '.join(GROUPS)}")
    groups: dict[str, dict[str, Any]] = {}
    for name in GROUPS:
        given = container.get(name)
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"{name} must be a group of settings, got {given!r}")
        groups[name] = dict(given or {})
    method_name = groups["method"].pop("name", None)
    if method_name not in METHODS:
        raise ConfigError(f"method.name must be one of {', '.join(METHODS)}, got {method_name!r}")
    data_name = groups["data"].get("name")
    if data_name not in DATA:
        raise ConfigError(f"data.name must be one of {', '.join(DATA)}, got {data_name!r}")
    classes: dict[str, type] = {
        "method": METHODS[method_name].config_class(),
        "data": DATA[data_name].config_class(),
        "model": METHODS[method_name].model_class(),
        "scale": ScaleConfig,
        "run": RunConfig,
    }
    offences: list[str] = []
    built: dict[str, Any] = {}
    for group, cls in classes.items():
        try:
            built[group] = build(cls, groups[group], group)
        except ConfigError as error:
            offences.append(str(error))
    if offences:
        raise ConfigError("\n".join(offences))
    return JobConfig(method_name=method_name, **built)


def build(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build a dataclass from plain values: types are checked (``"3"`` counts as a number), unknown keys are refused.

    Raises:
        ConfigError: One line for each error, with the full key.
    """
    known = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        lines = [f"{where}.{key}: there is no such setting; {where} has {', '.join(known)}" for key in unknown]
        raise ConfigError("\n".join(lines))
    if "__pydantic_config__" not in vars(cls):
        cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        lines = []
        for offence in error.errors():
            key = ".".join(str(part) for part in (where, *offence["loc"]))
            message = offence["msg"].removeprefix("Value error, ")
            got = "" if offence["type"] in ("value_error", "missing") else f", got {offence['input']!r}"
            # Ranges are checked by the dataclass, whose messages begin with the name of the field.
            of_field = not offence["loc"] and message.split(" ", 1)[0] in known
            lines.append(f"{key}.{message}" if of_field else f"{key}: {message}{got}")
        raise ConfigError("\n".join(lines)) from error
