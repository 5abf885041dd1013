"""Registered models behind one HTTP endpoint (Open Inference Protocol v2, and /predict for people).

python jobs/deploy.py                                   # every registered champion
python jobs/deploy.py model=models:/large_loss@champion serve.port=8001

Models with an open vocabulary (CLIP) also take classes that a request brings along; regressions take numbers by name,
and answer with mean, std and the interval at a level that the request asks for.
"""

import json
import signal
import sys
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jobs.cli import as_reference, main
from jobs.config import store_settings
from serve.deploying import Endpoint, ServedModel, ServeSettings, deploy
from tenfold.config import build
from tenfold.engine import cluster
from tenfold.engine.storage import Storage
from tenfold.tracking.registry import registered_champions, resolve
from tenfold.training import storage_tracking_uri

_SHOWN_LENGTH = 4  # of an axis that may have any length, in the example that is printed


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """Which models, and how they are served; the endpoint's own limits are ``ServeSettings``."""

    reference: str | None = None
    """Written ``model=...``: ``models:/name@alias`` or ``models:/name/3``; None: every registered champion."""
    tracking_uri: str | None = None
    """None: MLFLOW_TRACKING_URI, else the database in ``storage``."""
    storage: str = "outputs"
    """Where runs are kept."""
    replicas: int = 1
    """Processes per model."""
    max_batch_size: int = 32
    """Pictures in one call of a model."""
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    wait: bool = True
    """Keep the endpoint up until Ctrl-C; on a cluster that goes on by itself, False returns at once."""
    serve: ServeSettings = field(default_factory=ServeSettings)
    """Host, port, keys file, limits."""


def check(container: dict[str, Any]) -> DeploySettings:
    serve = build(ServeSettings, container["serve"], "serve")
    settings = build(DeploySettings, {key: value for key, value in container.items() if key != "serve"}, "deploy")
    return replace(settings, serve=serve)


def served_models(settings: DeploySettings, uri: str) -> list[ServedModel]:
    """The models asked for, each pinned to the version that its reference names now.

    Raises:
        ValueError: There is no such model, or no champion at all.
    """
    references = (
        [settings.reference]
        if settings.reference
        else [f"models:/{name}@champion" for name in registered_champions(uri)]
    )
    if not references:
        raise ValueError(f"no model is registered in {uri}; train one first: python jobs/train.py")
    models = []
    for reference in references:
        found = resolve(uri, reference)
        models.append(
            ServedModel(
                name=found.name,
                version=found.version,
                folder=str(found.folder),
                num_replicas=settings.replicas,
                max_batch_size=settings.max_batch_size,
                device=settings.device,
            )
        )
    return models


def work(settings: DeploySettings) -> None:
    uri = storage_tracking_uri(settings.tracking_uri, Storage(settings.storage))
    endpoint = deploy(served_models(settings, uri), settings.serve)
    print(describe(endpoint), flush=True)
    if not settings.wait:
        return
    wait(endpoint)


def wait(endpoint: Endpoint) -> None:
    """Until Ctrl-C or SIGTERM, then let running requests finish."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
    print("\nstopping: running requests finish first", file=sys.stderr, flush=True)
    endpoint.drain()
    cluster.stop()  # Serve ends with it


def describe(endpoint: Endpoint) -> str:
    """Where it listens and how to ask it."""
    lines = [f"serving on {endpoint.url} (docs: {endpoint.url}/docs)"]
    open_models, explaining, inputs = endpoint.open_models(), endpoint.explaining_models(), endpoint.named_inputs()
    for model in endpoint.models:
        lines.append(f"  {model.name} version {model.version}")
        if model.name in inputs:
            lines += _ask_for_numbers(f"{endpoint.url}/predict/{model.name}", inputs[model.name])
        else:
            lines.append(f"    curl -F image=@picture.png {endpoint.url}/predict/{model.name}")
        if model.name in open_models:
            own = """-F 'classes=["cat", "dog"]'"""
            lines.append(f"    any classes: curl -F image=@picture.png {own} {endpoint.url}/predict/{model.name}")
        if model.name in explaining:
            asked = f"{endpoint.url}/predict/{model.name}?explain=true"
            lines.append(f"    where it looked: curl -H 'Accept: image/png' -F image=@picture.png -o map.png '{asked}'")
        lines.append(f"    v2: {endpoint.url}/v2/models/{model.name}/infer")
    return "\n".join(lines)


def _ask_for_numbers(url: str, inputs: list[dict[str, Any]]) -> list[str]:
    """How to ask a regression: with a picture, where it takes one, else with zeros in place of an example."""
    if len(inputs) == 1 and inputs[0]["max_value"] is not None:
        return [
            f"    with an interval: curl -F image=@picture.png '{url}?level=0.9'",
            f"    as a picture: curl -H 'Accept: image/png' -F image=@picture.png -o answer.png {url}",
        ]
    example: dict[str, Any] = {}
    for schema in inputs:
        shape = [_SHOWN_LENGTH if length < 0 else length for length in schema["shape"]]
        example[schema["name"]] = np.zeros(shape, schema["dtype"]).tolist()
    body = json.dumps({"inputs": example, "level": 0.9})
    return [f"    with an interval: curl -H 'Content-Type: application/json' -d '{body}' {url}"]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", store_settings("deploy", DeploySettings), check, work, as_reference(sys.argv[1:])))
