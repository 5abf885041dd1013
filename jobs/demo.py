"""The main job, from data to a served prediction, on data that are built here.

python jobs/demo.py                    # train, compare, register, serve, ask
python jobs/demo.py --keep-serving     # and leave the endpoint up until Ctrl-C
"""

import base64
import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jobs.cli import MISTAKE, run
from jobs.config import compose_job
from jobs.deploy import wait
from serve.deploying import Endpoint, ServedModel, ServeSettings, deploy
from serve.fast_path import prepare_environment
from tenfold.config import ConfigError
from tenfold.data.catalog import load_multilabel
from tenfold.engine import cluster
from tenfold.engine.settings import JobConfig
from tenfold.tracking import resolve
from tenfold.training import TrainResult, start_ray, train

DEFAULTS = ("method=large_loss", "data=handwriting", "data.num_train=3000", "run.num_epochs=12", "run.batch_size=16")
STORIES = {"assume negative": "method.scheme=an", "Large Loss, LL-R": "method.scheme=LL-R"}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    keep = "--keep-serving" in words
    overrides = [
        *DEFAULTS,
        f"scale.workers={min(2, os.cpu_count() or 1)}",
        *(w for w in words if w != "--keep-serving"),
    ]
    try:
        jobs = {name: compose_job([*overrides, setting]) for name, setting in STORIES.items()}
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return run(lambda: tell(jobs, keep), words)


def tell(jobs: dict[str, JobConfig], keep_serving: bool) -> None:
    """The whole story; every step says what it does."""
    started = time.monotonic()
    any_job = next(iter(jobs.values()))
    say(f"digit scenes: {any_job.data.num_train} to train on, each with one of its labels shown")
    data = load_multilabel(any_job.data)
    prepare_environment()  # before Ray starts: Serve's proxy reads it then
    if any_job.scale.kind == "ray":
        start_ray(any_job.scale)
    results = {}
    for name, job in jobs.items():
        say(f"training: {name}, {job.run.num_epochs} epochs on {job.scale.num_workers} workers")
        results[name] = train(job)
    best = max(results.values(), key=lambda result: result.metrics[result.metric])
    found = resolve(best.tracking_uri, f"models:/{any_job.method_name}@champion")
    say(f"serving models:/{found.name}/{found.version} @champion")
    model = ServedModel(name=found.name, version=found.version, folder=str(found.folder))
    # On a cluster that others use, beside what they serve.
    shared = cluster.cluster_address() is not None
    settings = ServeSettings(port=0, access_log=False, app_name="tenfold-demo", route_prefix="/demo" if shared else "/")
    endpoint = deploy([model], settings)
    picture = data.test.images.read([0])[0].numpy()
    true = [data.classes[k] for k in np.flatnonzero(data.test.full[0] == 1)]
    plain = ask_plain(endpoint, found.name, picture)
    v2 = ask_v2(endpoint, found.name, picture)
    print(summary(results, best, endpoint, model, true, plain, v2, time.monotonic() - started), flush=True)
    if keep_serving:
        say("the endpoint stays up; Ctrl-C ends it")
        wait(endpoint)
        return
    endpoint.drain()
    cluster.stop()


def ask_plain(endpoint: Endpoint, name: str, picture: np.ndarray) -> dict[str, Any]:
    """One picture as a PNG, the way a person would send it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return _post(f"{endpoint.url}/predict/{name}", {"image": base64.b64encode(buffer.getvalue()).decode()})


def ask_v2(endpoint: Endpoint, name: str, picture: np.ndarray) -> dict[str, Any]:
    """The same picture as a tensor, the way a program would send it."""
    tensor = {"name": "images", "shape": [1, *picture.shape], "datatype": "UINT8", "data": picture.ravel().tolist()}
    return _post(f"{endpoint.url}/v2/models/{name}/infer", {"inputs": [tensor]})


def summary(
    results: dict[str, TrainResult],
    best: TrainResult,
    endpoint: Endpoint,
    model: ServedModel,
    true: list[str],
    plain: dict[str, Any],
    v2: dict[str, Any],
    seconds: float,
) -> str:
    """The table, the answers, and how to go on."""
    lines = ["", f"{'':<20}{'test mAP':>10}{'val mAP':>10}  {'MLflow run'}"]
    for name, result in results.items():
        lines.append(
            f"{name:<20}{result.metrics['test/mAP']:>10.2f}{result.metrics['val/mAP']:>10.2f}  {result.run_id}"
        )
    given = ", ".join(f"{label['name']} {label['probability']:.2f}" for label in plain["labels"][:4])
    probs = next(output["data"] for output in v2["outputs"] if output["name"] == "probs")
    lines += [
        "",
        f"picture shows       {', '.join(true)}",
        f"/predict says       {given}",
        f"v2 says             {', '.join(f'{value:.2f}' for value in probs)}",
        "",
        f"runs and pictures   mlflow ui --backend-store-uri {best.tracking_uri}",
        f"model               models:/{model.name}/{model.version} @champion",
        f"endpoint            {endpoint.url} (docs at {endpoint.url}/docs)",
        f"serve it again      .venv/bin/python jobs/deploy.py tracking_uri={best.tracking_uri}",
        "train on            .venv/bin/python jobs/train.py method.scheme=LL-Ct run.num_epochs=20",
        f"took                {seconds:.0f} s",
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def _post(url: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - an address that we opened
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        return json.loads(reply.read())


if __name__ == "__main__":
    sys.exit(main())
