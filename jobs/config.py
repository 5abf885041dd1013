"""Composition of job settings from the command line with Hydra; the only module that uses Hydra.

Defaults are defined once, in the dataclasses; they enter Hydra as groups named ``..._defaults``, and the YAML files in
``conf/`` hold the differences. Hydra refuses unknown keys, ``tenfold.config`` checks types and ranges.
"""

import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import resources
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tenfold.catalog import METHODS
from tenfold.config import ConfigError, job_from_dict
from tenfold.data.catalog import DATA
from tenfold.engine.settings import JobConfig, RunConfig, ScaleConfig
from tenfold.models.catalog import NETWORKS


def compose_job(overrides: Sequence[str] = ()) -> JobConfig:
    """Compose a training from ``key=value`` overrides on top of the defaults.

    Raises:
        ConfigError: Unknown key, wrong type, or value out of range; names the key and the way out.
    """
    return job_from_dict(compose_container("config", overrides))


def compose_container(config_name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose a configuration as plain values.

    Args:
        config_name: A file of ``conf/`` without extension, or a name given to ``store_settings``.
        overrides: ``group=choice`` and ``key=value`` strings; those that add or delete keys are refused.

    Raises:
        ConfigError: Invalid overrides or choices, or a required value is missing.
    """
    for override in overrides:
        if override.startswith(("+", "~")):
            raise ConfigError(f"settings can only be changed, not added or removed, got {override!r}; write key=value")
        if "=" not in override:
            raise ConfigError(f"settings must be key=value, as in run.seed=1, got {override!r}")
        if override.startswith("hydra."):
            raise ConfigError(f"settings must not be Hydra's own, got {override!r}")
    _check_choices(config_name, overrides)
    _store_defaults()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("jobs.conf", version_base="1.3"):
            composed = compose(config_name, overrides=list(overrides))
            missing = sorted(OmegaConf.missing_keys(composed))
            if missing:
                raise ConfigError(f"{missing[0]} must be given: write {missing[0]}=...")
            return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_message(config_name, overrides, error)) from error


def store_settings(name: str, cls: type) -> str:
    """Store the defaults of a dataclass as a configuration, for jobs without groups; return its name."""
    ConfigStore.instance().store(name=name, node=default_values(cls))
    return name


def _store_defaults() -> None:
    store = ConfigStore.instance()
    store.store(group="run", name="defaults", node=default_values(RunConfig))
    store.store(group="scale", name="scale_defaults", node=default_values(ScaleConfig))
    for name, network in NETWORKS.items():
        store.store(group="model", name=f"{name}_defaults", node=default_values(network.config_class()))
    for group, table in (("method", METHODS), ("data", DATA)):
        for name, entry in table.items():
            defaults = {"name": name} | default_values(entry.config_class()) | {"name": name}
            store.store(group=group, name=f"{name}_defaults", node=defaults)


def default_values(cls: type) -> dict[str, Any]:
    """Default of every field; ``???``, Hydra's mark of a required value, if it has none."""
    if not is_dataclass(cls):
        raise TypeError(f"settings must be a dataclass, got {cls!r}")
    return {field.name: _default(field) for field in fields(cls)}


def _default(field: "Field[Any]") -> Any:
    if field.default is not MISSING:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    if field.default_factory is MISSING:
        return "???"
    value = field.default_factory()
    return default_values(type(value)) if is_dataclass(value) else value


def _one_message(config_name: str, overrides: Sequence[str], error: Exception) -> str:
    """Message of a Hydra error, without its misleading advice to add keys."""
    if isinstance(error, OverrideParseException):
        return f"settings must be key=value, got {error.override!r}; quote strings with special characters"
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None:
        return " ".join(text.split())
    key = unknown.group(1)
    others = [each for each in overrides if not each.startswith(f"{key}=")]
    if len(others) == len(overrides):
        return " ".join(text.split())  # the error is in a file of conf/, not in the overrides
    known: Any = compose_container(config_name, others)
    path = key.split(".")
    for part in path[:-1]:
        known = known.get(part, {}) if isinstance(known, dict) else {}
    choices = ", ".join(known) if isinstance(known, dict) and known else "nothing"
    return f"{key}: there is no such setting; {'.'.join(path[:-1]) or 'the job'} has {choices}"


def _check_choices(config_name: str, overrides: Sequence[str]) -> None:
    """Refuse an unknown choice of a group; Hydra ignores those of an optional group."""
    file = resources.files("jobs.conf") / f"{config_name}.yaml"
    if not file.is_file():
        return
    defaults = yaml.safe_load(file.read_text())["defaults"]
    groups = {key.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry}
    for override in overrides:
        group, _, name = override.partition("=")
        if group not in groups:
            continue
        choices = _choices(group)
        if not choices:
            raise ConfigError(f"{group} must be set key by key, got {override!r}; write {group}.KEY=VALUE")
        if name not in choices:
            raise ConfigError(f"{group} must be one of {', '.join(choices)}, got {name!r}")


def _choices(group: str) -> list[str]:
    """Files of a group; none if it has only defaults."""
    folder = resources.files("jobs.conf") / group
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
