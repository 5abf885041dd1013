"""The work of ``jobs/deploy.py``: find the models, start or roll over the endpoint, or write a Serve config file."""

import errno
import json
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from jobs.cli import as_reference, main
from jobs.config import compose_container, default_values, store_settings
from serve.deployment import running
from serve.deployment.endpoint import OUTER_TIMEOUT_FACTOR, Endpoint, deploy, local_cpus
from serve.deployment.keeper import Keeper
from serve.deployment.running import Running
from serve.settings import Autoscaling, ServedModel, ServeSettings, check_models
from tenfold.config import ConfigError, build
from tenfold.engine import cluster
from tenfold.engine.storage import Storage
from tenfold.files import write_atomically
from tenfold.training import storage_tracking_uri

CONFIG = "deploy"
IMPORT_PATH = "serve.deployment.application:build"
_SCALING = ("each.autoscaling", "serve.ingress_autoscaling")
_OWN_OF_A_MODEL = ("name", "version", "folder")
_SHOWN_LENGTH = 4  # of an axis of any length, in the printed example


def _each_defaults() -> dict[str, Any]:
    return {key: value for key, value in default_values(ServedModel).items() if key not in _OWN_OF_A_MODEL}


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """Models to deploy; ``ServeSettings`` has the address and the limits of the endpoint."""

    models: Any = None
    """One model or a list: bundle folders, ``models:/name@alias``, ``models:/name/3``, or mappings of ``model`` (one of
    these) and any field of ``ServedModel``; ``model=X`` is the same for one. None: every registered champion."""
    each: dict[str, Any] = field(default_factory=_each_defaults)
    """Fields of every model that does not say otherwise; ``served=...`` is a preset of them."""
    tracking_uri: str | None = None
    """None: MLFLOW_TRACKING_URI, else the database in ``storage``."""
    storage: str = "outputs"
    """Folder or URL of the runs, and of the record by which a second deployment finds the first."""
    wait: bool = True
    """Keep the endpoint up until Ctrl-C; False returns at once, for a cluster that runs already."""
    write_config: str | None = None
    """Serve config file to write instead of deploying."""
    serve: ServeSettings = field(default_factory=ServeSettings)
    """Host, port, keys file, limits."""


def run(description: str, keeper: Keeper, words: Sequence[str]) -> int:
    """Run the command; see ``jobs.cli.main``."""
    return main(description, stored_config(), check, partial(work, keeper), as_settings(words))


def stored_config() -> str:
    """Store the defaults, and return the name of the configuration."""
    store_settings(f"{CONFIG}_defaults", DeploySettings)
    return CONFIG


def as_settings(words: Sequence[str]) -> list[str]:
    """Rename ``model=`` to ``models=``, and let ``each.autoscaling.max_replicas=4`` begin from the defaults."""
    words = as_reference(words, "models")
    for key in _SCALING:
        first = next((at for at, word in enumerate(words) if word.startswith(f"{key}.")), None)
        if first is None:
            continue
        others = [
            word for word in words if "=" in word and not word.startswith(("-", *(f"{one}." for one in _SCALING)))
        ]
        try:
            value: Any = compose_container(stored_config(), others)
        except ConfigError:
            return words  # told again, and properly, where the command is composed
        for part in key.split("."):
            value = value[part]
        if value is None:
            defaults = ", ".join(f"{name}: {default}" for name, default in default_values(Autoscaling).items())
            words.insert(first, f"{key}={{{defaults}}}")
    return words


def check(container: dict[str, Any]) -> DeploySettings:
    """Check everything that can be known before a model is looked up.

    Raises:
        ConfigError: Names the key and the way out.
    """
    serve = build(ServeSettings, container["serve"], "serve")
    if serve.keys_file is not None:  # read by processes with other working folders
        serve = replace(serve, keys_file=str(Path(serve.keys_file).expanduser().absolute()))
    settings = build(DeploySettings, {key: value for key, value in container.items() if key != "serve"}, "deploy")
    settings = replace(settings, serve=serve)
    try:
        running.record_of(Path(), "", serve.app_name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    placeholder = {"name": "each", "version": "1", "folder": "."}
    build(ServedModel, placeholder | settings.each, "each")
    for number, entry in enumerate(_entries(settings.models) or ()):
        where = f"models.{number}"
        own = {key: value for key, value in entry.items() if key != "model"}
        if "folder" in own or not isinstance(entry.get("model"), str):
            raise ConfigError(f"{where} must say model, a bundle folder or models:/name@alias, got {entry}")
        build(ServedModel, placeholder | settings.each | own, where)
    if settings.write_config is not None and serve.port == 0:
        raise ConfigError("serve.port must be above 0 in a config file, got 0; choose one")
    return settings


def _entries(models: Any) -> list[dict[str, Any]] | None:
    if models is None:
        return None
    entries = models if isinstance(models, list) else [models]
    if not entries:
        raise ConfigError("models must hold at least one model, got []; leave it out for every registered champion")
    if wrong := [entry for entry in entries if not isinstance(entry, str | dict)]:
        raise ConfigError(f"models must be references, folders or mappings with model, got {wrong[0]!r}")
    return [{"model": entry} if isinstance(entry, str) else dict(entry) for entry in entries]


def pinned(settings: DeploySettings, uri: str) -> list[tuple[dict[str, Any], ServedModel]]:
    """Find the models to serve, each pinned to the version that its reference names now.

    Returns:
        Each as an entry of a config file and as what it stands for.

    Raises:
        ValueError: If there is no such model, or no champion at all.
    """
    from serve.deployment.application import served_model  # imported late: Serve reads the environment on import
    from tenfold.tracking.registry import registered_champions

    entries = _entries(settings.models)
    if entries is None:
        entries = [{"model": f"models:/{name}@champion"} for name in registered_champions(uri)]
    if not entries:
        raise ValueError(f"no champion is registered in {uri}; train a model first: python jobs/train.py")
    found = []
    for entry in entries:
        source = entry["model"]
        model = served_model(settings.each | entry, uri)
        said = {key: value for key, value in (settings.each | entry).items() if key not in ("model", "name", "version")}
        defaults = _each_defaults()
        said = {key: value for key, value in said.items() if value != defaults[key]}
        if source.startswith("models:/"):
            name = source.removeprefix("models:/").partition("@")[0].partition("/")[0]
            # The registry's number, whatever the entry calls it.
            number = model.version if "version" not in entry else served_model({"model": source}, uri).version
            own = {"model": f"models:/{name}/{number}"}
            own |= {key: entry[key] for key in ("name", "version") if key in entry}
        else:
            own = {"model": model.folder, "name": model.name, "version": model.version}
        found.append((own | said, model))
    check_models([model for _, model in found])
    return found


def work(keeper: Keeper, settings: DeploySettings) -> None:
    """Do what the settings say."""
    storage = Storage(settings.storage)
    uri = storage_tracking_uri(settings.tracking_uri, storage)
    if settings.write_config is not None:
        file = Path(settings.write_config).expanduser().absolute()
        write_atomically(file, config_text(settings, uri).encode())
        print(f"wrote {file}; these take it:\n{how_to_use(file, settings.serve)}")
        return
    if cluster.cluster_address():
        endpoint = deploy([model for _, model in pinned(settings, uri)], settings.serve)
        print(describe(endpoint), flush=True)
        if settings.wait:
            keeper.hand_over(endpoint.app_name, None)
        return
    folder = storage.local_path() if storage.is_local else None
    record = running.record_of(folder, storage.url, settings.serve.app_name)
    with running.locked(record):
        found = running.find(record)
        if found is None:
            _start(keeper, settings, uri, record)
        else:
            _roll_over(settings, uri, record, found)


def _start(keeper: Keeper, settings: DeploySettings, uri: str, record: Path) -> None:
    if not settings.wait:
        raise ValueError(
            "wait must be true where this command starts Ray, which ends with it, got false; name a cluster that runs "
            "in RAY_ADDRESS, or leave wait out"
        )
    check_free(settings.serve)
    models = [model for _, model in pinned(settings, uri)]
    address = keeper.start_ray(local_cpus(models, settings.serve))
    endpoint = deploy(models, settings.serve, address=address)
    holder = os.getppid()
    running.write(
        record,
        Running(
            pid=holder,
            started=running.start_time(holder) or "",
            machine=socket.gethostname(),
            address=address,
            host=settings.serve.host,
            port=endpoint.port,
            url=endpoint.url,
            models={model.name: model.version for model in models},
            environment=running.joining_environment(os.environ),
        ),
    )
    print(describe(endpoint), flush=True)
    keeper.hand_over(endpoint.app_name, record)


def _roll_over(settings: DeploySettings, uri: str, record: Path, found: Running) -> None:
    asked = at_running_address(settings.serve, found)
    print(f"rolling over {found.url}, which process {found.pid} keeps running", flush=True)
    running.adopt_environment(found)
    models = [model for _, model in pinned(settings, uri)]
    endpoint = deploy(models, asked, address=found.address)
    versions = {model.name: model.version for model in models}
    running.write(record, replace(found, models=versions))
    print(describe(endpoint))
    print(changes(found.models, versions))
    print(f"process {found.pid} keeps the endpoint; Ctrl-C there, or kill {found.pid}, stops it", flush=True)


def at_running_address(settings: ServeSettings, found: Running) -> ServeSettings:
    """Take the address of the endpoint that runs; the defaults, and port 0, mean any.

    Raises:
        ValueError: If the settings say another one.
    """
    for key, actual, any_of in (("host", found.host, ("127.0.0.1",)), ("port", found.port, (8000, 0))):
        said = getattr(settings, key)
        if said != actual and said not in any_of:
            raise ValueError(
                f"serve.{key} must be {actual}, where the endpoint {settings.app_name} already runs (process "
                f"{found.pid}), got {said}; leave it out to roll over, choose another serve.app_name, or stop that "
                f"process first"
            )
    return replace(settings, host=found.host, port=found.port)


def check_free(settings: ServeSettings) -> None:
    """Raise ValueError if another program listens on the address."""
    if not settings.port:
        return
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"serve.port must be free, got {settings.port}, on which another program listens; choose another port, "
                f"or 0 for any"
            ) from error
        raise ValueError(f"serve.host must be an address of this machine, got {settings.host}: {error}") from error


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Say which version of each model was served, and which one is."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "none"), after.get(name, "none")
        lines.append(f"  {name}: version {old}" + (", as before" if old == new else f" -> {new}"))
    return "\n".join(["versions before -> after:", *lines])


def config_text(settings: DeploySettings, uri: str) -> str:
    """Serve config file of an endpoint, with pinned versions.

    Raises:
        ValueError: If a model can't be found, or the file would hold a password.
    """
    if urlsplit(uri).password:
        raise ValueError(
            "tracking_uri must hold no password in a config file; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD where the file is used"
        )
    serve = settings.serve
    told = {key: _plain(value) for key, value in vars(serve).items() if value != getattr(ServeSettings(), key)}
    entries = [entry for entry, _ in pinned(settings, uri)]
    arguments: dict[str, Any] = {"models": entries, "settings": {"host": serve.host} | told}
    if any(entry["model"].startswith("models:/") for entry in entries):
        arguments["tracking_uri"] = uri
    content = {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": serve.host,
            "port": serve.port,
            "request_timeout_s": OUTER_TIMEOUT_FACTOR * serve.request_timeout_s,
        },
        "applications": [
            {
                "name": serve.app_name,
                "route_prefix": serve.route_prefix,
                "import_path": IMPORT_PATH,
                "args": arguments,
            }
        ],
    }
    note = "# Written by jobs/deploy.py. The machines need the packages tenfold and serve, and the paths below.\n"
    return note + yaml.safe_dump(content, sort_keys=False, width=110)


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Autoscaling) else value


def how_to_use(file: Path, settings: ServeSettings) -> str:
    """Commands that take a config file."""
    patch = "{spec: {serveConfigV2: $(python -c 'import json, sys; print(json.dumps(sys.stdin.read()))' < %s)}}"
    text = patch % shlex.quote(str(file))
    return "\n".join(
        [
            f"  serve deploy {shlex.quote(str(file))}    # RAY_DASHBOARD_ADDRESS names the cluster",
            f'  kubectl patch rayservice {settings.app_name} --type merge --patch "{text}"',
        ]
    )


def describe(endpoint: Endpoint) -> str:
    """Describe the address of an endpoint and example requests."""
    lines = [f"serving on {endpoint.url} (docs: {endpoint.url}/docs)"]
    open_models, explaining, inputs = endpoint.open_models(), endpoint.explaining_models(), endpoint.named_inputs()
    for model in endpoint.models:
        lines.append(f"  {model.name} version {model.version}")
        if model.name in inputs:
            lines += _regression_requests(f"{endpoint.url}/predict/{model.name}", inputs[model.name])
        else:
            lines.append(f"    curl -F image=@image.png {endpoint.url}/predict/{model.name}")
        if model.name in open_models:
            own = """-F 'classes=["cat", "dog"]'"""
            lines.append(f"    any classes: curl -F image=@image.png {own} {endpoint.url}/predict/{model.name}")
        if model.name in explaining:
            asked = f"{endpoint.url}/predict/{model.name}?explain=true"
            lines.append(f"    attribution map: curl -H 'Accept: image/png' -F image=@image.png -o map.png '{asked}'")
        lines.append(f"    v2: {endpoint.url}/v2/models/{model.name}/infer")
    return "\n".join(lines)


def _regression_requests(url: str, inputs: list[dict[str, Any]]) -> list[str]:
    """Example requests to a regression: an image file if it takes one, else JSON with zeros."""
    if len(inputs) == 1 and inputs[0]["max_value"] is not None:
        return [
            f"    with an interval: curl -F image=@image.png '{url}?level=0.9'",
            f"    as an image: curl -H 'Accept: image/png' -F image=@image.png -o answer.png {url}",
        ]
    example: dict[str, Any] = {}
    for schema in inputs:
        shape = [_SHOWN_LENGTH if length < 0 else length for length in schema["shape"]]
        example[schema["name"]] = np.zeros(shape, schema["dtype"]).tolist()
    body = json.dumps({"inputs": example, "level": 0.9})
    return [f"    with an interval: curl -H 'Content-Type: application/json' -d '{body}' {url}"]
