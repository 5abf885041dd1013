"""Serve registered models at one HTTP endpoint (Open Inference Protocol v2, and /predict).

python jobs/deploy.py                                   # every registered champion
python jobs/deploy.py model=models:/large_loss@champion serve.port=8001

Open-vocabulary models (CLIP) also accept classes with the request; regressions take numbers by input name and reply
with mean, std and the interval at the level of the request. See serve/README.md.
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

_SHOWN_LENGTH = 4  # of an axis of any length, in the printed example


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """Models to deploy and their replicas; ``ServeSettings`` has the limits of the endpoint."""

    reference: str | None = None
    """Written ``model=...``: ``models:/name@alias`` or ``models:/name/3``; None: every registered champion."""
    tracking_uri: str | None = None
    """None: MLFLOW_TRACKING_URI, else the database in ``storage``."""
    storage: str = "outputs"
    """Folder or URL of the runs."""
    replicas: int = 1
    """Replicas per model."""
    max_batch_size: int = 32
    """Maximum images in one call of a model."""
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    wait: bool = True
    """Keep the endpoint up until Ctrl-C; False returns at once, for a long-running cluster."""
    serve: ServeSettings = field(default_factory=ServeSettings)
    """Host, port, keys file, limits."""


def check(container: dict[str, Any]) -> DeploySettings:
    serve = build(ServeSettings, container["serve"], "serve")
    settings = build(DeploySettings, {key: value for key, value in container.items() if key != "serve"}, "deploy")
    return replace(settings, serve=serve)


def served_models(settings: DeploySettings, uri: str) -> list[ServedModel]:
    """Resolve the models to serve, each pinned to the version that its reference names now.

    Raises:
        ValueError: If there is no such model, or no champion at all.
    """
    references = (
        [settings.reference]
        if settings.reference
        else [f"models:/{name}@champion" for name in registered_champions(uri)]
    )
    if not references:
        raise ValueError(f"no champion is registered in {uri}; train a model first: python jobs/train.py")
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
    """Wait for Ctrl-C or SIGTERM, then finish running requests and stop."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
    print("\nstopping: running requests finish first", file=sys.stderr, flush=True)
    endpoint.drain()
    cluster.stop()  # Serve ends with it


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


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", store_settings("deploy", DeploySettings), check, work, as_reference(sys.argv[1:])))
