"""The work of ``jobs/demo.py``: train the contenders, serve the best, ask it about one image of the test split."""

import base64
import io
import json
import os
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.config import compose_job
from jobs.stories import Story
from serve.deployment.endpoint import Endpoint, deploy
from serve.deployment.haproxy import prepare_environment
from serve.deployment.keeper import wait_for_stop
from serve.settings import ServedModel, ServeSettings
from tenfold.bundle import load_bundle
from tenfold.data.catalog import load_classification, load_multilabel
from tenfold.engine import cluster
from tenfold.engine.settings import JobConfig
from tenfold.engine.storage import Storage
from tenfold.tracking.registry import Resolved, resolve
from tenfold.training import TrainResult, start_ray, train


@dataclass(frozen=True, kw_only=True)
class Question:
    """A test image, its truth, and what is asked about it beside the image."""

    row: int
    image: np.ndarray
    truth: str
    also: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Replies to the same image: plain, v2, and plain with classes of the caller's choice."""

    plain: dict[str, Any]
    v2: dict[str, Any]
    also: dict[str, Any] | None
    files: list[Path]
    """The image, and where the model explains, its heat map."""


def compose_jobs(story: Story, settings: Sequence[str]) -> dict[str, JobConfig]:
    """Title of a contender to its job.

    Raises:
        ConfigError: Settings that make no job.
    """
    base = ["data=handwriting", *story.settings, f"scale.workers={min(2, os.cpu_count() or 1)}"]
    return {title: compose_job([*base, *settings, *own]) for title, own in story.contenders.items()}


def tell(story: Story, jobs: dict[str, JobConfig], keep_serving: bool) -> None:
    """Do all of it; every step says what it does."""
    started = time.monotonic()
    any_job = next(iter(jobs.values()))
    prepare_environment()  # before Ray starts: Serve's proxy reads it then
    if any_job.scale.kind == "ray":
        start_ray(any_job.scale)
    results: dict[str, TrainResult] = {}
    for title, job in jobs.items():
        say(f"{title}, on {job.scale.num_workers} workers")
        results[title] = train(job)
    best = max(results, key=lambda title: results[title].metrics[results[title].metric])
    uri = results[best].tracking_uri
    found = resolve(uri, f"models:/{jobs[best].method_name}@champion")
    say(f"serving models:/{found.name}/{found.version} @champion")
    model = ServedModel(name=found.name, version=found.version, folder=str(found.folder))
    # On a cluster that others use, beside what they serve.
    shared = cluster.cluster_address() is not None
    settings = ServeSettings(port=0, access_log=False, app_name="tenfold-demo", route_prefix="/demo" if shared else "/")
    endpoint = deploy([model], settings)
    question = {"scene": scene, "digit": digit}[story.shows](jobs[best], found)
    answers = ask(endpoint, found.name, question, Storage(any_job.scale.storage))
    print(table(story.metrics, results), flush=True)
    print(answered(question, answers), flush=True)
    print(what_next(endpoint, model, jobs[best], uri, answers, time.monotonic() - started), flush=True)
    if keep_serving:
        say("the endpoint stays up; Ctrl-C ends it")
        wait_for_stop()
        say("stopping: running requests finish first")
    endpoint.drain()
    cluster.stop()


def scene(job: JobConfig, model: Resolved) -> Question:
    """A scene of the test split, drawn by the seed of the run."""
    data = load_multilabel(job.data)
    row = draw_row(job, len(data.test.images))
    shown = [data.classes[k] for k in np.flatnonzero(data.test.full[row] == 1)]
    return Question(row=row, image=data.test.images.read([row])[0].numpy(), truth=", ".join(shown), also={})


def digit(job: JobConfig, model: Resolved) -> Question:
    """A handwritten digit, asked about with names that no training has seen together."""
    data = load_classification(job.data, load_bundle(model.folder).preprocessing, ("test",))
    row = draw_row(job, len(data.test))
    truth = int(data.test.labels[row])
    prompts = {
        f"the digit {word}": [f"a photo of the digit {word}.", f"a photo of a {word}."]
        for word in (data.classes[truth], data.classes[(truth + 3) % 10], data.classes[(truth + 6) % 10])
    }
    image = data.test.images.read([row])[0].numpy()
    return Question(row=row, image=image, truth=data.classes[truth], also={"prompts": prompts})


def draw_row(job: JobConfig, num_images: int) -> int:
    """A row of the test split: any, but the same for the same seed."""
    return int(np.random.default_rng(job.run.seed).integers(num_images))


def ask(endpoint: Endpoint, name: str, question: Question, storage: Storage) -> Answers:
    """Ask the way a person would, with a PNG, and the way a program would, with a tensor; keep image and heat map."""
    url, image = f"{endpoint.url}/predict/{name}", question.image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    png = buffer.getvalue()
    encoded = {"image": base64.b64encode(png).decode()}
    tensor = {"name": "images", "shape": [1, *image.shape], "datatype": "UINT8", "data": image.ravel().tolist()}
    files = {"example.png": png}
    if name in endpoint.explaining_models():
        headers = {"Content-Type": "image/png", "Accept": "image/png"}
        files["example_map.png"] = _post(f"{url}?explain=true", png, headers)
    folder = (storage.local_path() if storage.is_local else Path("outputs")) / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return Answers(
        plain=_post_json(url, encoded),
        v2=_post_json(f"{endpoint.url}/v2/models/{name}/infer", {"inputs": [tensor]}),
        also=_post_json(url, {**encoded, **question.also}) if question.also else None,
        files=[folder / file for file in files],
    )


def table(metrics: Sequence[str], results: dict[str, TrainResult]) -> str:
    """A line for each contender."""
    width = max(len(title) for title in results) + 2
    lines = ["", f"{'':<{width}}{''.join(f'{name:>15}' for name in metrics)}  MLflow run"]
    for title, result in results.items():
        values = "".join(f"{result.metrics[metric]:>15.2f}" for metric in metrics)
        lines.append(f"{title:<{width}}{values}  {result.run_id}")
    return "\n".join(lines)


def answered(question: Question, answers: Answers) -> str:
    """The truth, and what the endpoint said."""
    probs = next(output["data"] for output in answers.v2["outputs"] if output["name"] == "probs")
    lines = [
        "",
        f"test image          {question.row}, drawn by the seed: {answers.files[0]}",
        f"it shows            {question.truth}",
        f"/predict says       {_labels(answers.plain)}",
        f"v2 says             {', '.join(f'{value:.2f}' for value in probs)}",
    ]
    if answers.also is not None:
        lines.append(f"asked with prompts  {_labels(answers.also)}")
    lines += [f"where it looked     {file}" for file in answers.files[1:]]
    return "\n".join(lines)


def what_next(
    endpoint: Endpoint, model: ServedModel, job: JobConfig, uri: str, answers: Answers, seconds: float
) -> str:
    """Name what to open and what to type next."""
    scheme = f" method.scheme={job.as_dict()['method']['scheme']}" if "scheme" in job.as_dict()["method"] else ""
    return "\n".join(
        [
            "",
            f"took                {seconds:.0f} s",
            f"model               models:/{model.name}/{model.version} @champion, served at {endpoint.url}",
            f"open                {answers.files[-1]}",
            f"curves and figures  .venv/bin/mlflow ui --backend-store-uri {uri}",
            f"serve it again      .venv/bin/python jobs/deploy.py tracking_uri={uri}",
            f"train it yourself   .venv/bin/python jobs/train.py method={model.name}{scheme}",
        ]
    )


def _labels(reply: dict[str, Any]) -> str:
    return ", ".join(f"{label['name']} {label['probability']:.2f}" for label in reply["labels"][:4])


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def _post_json(url: str, content: dict[str, Any]) -> dict[str, Any]:
    return json.loads(_post(url, json.dumps(content).encode(), {"Content-Type": "application/json"}))


def _post(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - an address that we opened
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        content: bytes = reply.read()
    return content
