"""A method's whole story, from data to a served prediction, on data that are built here.

python jobs/demo.py                    # large_loss: train, compare, register, serve, ask
python jobs/demo.py story=datadream    # from sixteen handwritten digits per class and a generator that knows only print
python jobs/demo.py story=waffleclip   # no training at all: words, random words and their mean
python jobs/demo.py --keep-serving     # and leave the endpoint up until Ctrl-C
"""

import base64
import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jobs.cli import MISTAKE, run
from jobs.config import compose_job
from jobs.deploy import wait
from serve.deploying import Endpoint, ServedModel, ServeSettings, deploy
from serve.fast_path import prepare_environment
from tenfold.catalog import load_predictor
from tenfold.config import ConfigError
from tenfold.data.catalog import load_classification, load_multilabel
from tenfold.engine import cluster
from tenfold.engine.settings import JobConfig
from tenfold.tracking.registry import Resolved, resolve
from tenfold.training import TrainResult, start_ray, train


@dataclass(frozen=True, kw_only=True)
class Question:
    """A test picture, what it shows, and what is asked about it beside the picture."""

    picture: np.ndarray
    truth: str
    also: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Story:
    """Trainings that differ in one thing, and a picture to ask the best of them about."""

    opening: str
    settings: tuple[str, ...]
    contenders: dict[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    question: Callable[[JobConfig, Resolved], Question]


def scene(job: JobConfig, model: Resolved) -> Question:
    data = load_multilabel(job.data)
    shown = [data.classes[k] for k in np.flatnonzero(data.test.full[0] == 1)]
    return Question(picture=data.test.images.read([0])[0].numpy(), truth=", ".join(shown), also={})


def digit(job: JobConfig, model: Resolved) -> Question:
    """A handwritten digit, asked about with names that no training has seen together."""
    data = load_classification(job.data, load_predictor(model.folder).preprocessing, ("test",))
    truth = int(data.test.labels[0])
    prompts = {
        f"the digit {word}": [f"a photo of the digit {word}.", f"a photo of a {word}."]
        for word in (data.classes[truth], data.classes[(truth + 3) % 10], data.classes[(truth + 6) % 10])
    }
    picture = data.test.images.read([0])[0].numpy()
    return Question(picture=picture, truth=data.classes[truth], also={"prompts": prompts})


STORIES = {
    "large_loss": Story(
        opening="scenes of handwritten digits, each with one of its labels shown",
        settings=("data.num_train=3000", "run.num_epochs=12", "run.batch_size=16"),
        contenders={"assume negative": ("method.scheme=an",), "Large Loss, LL-R": ("method.scheme=LL-R",)},
        metrics=("test/mAP", "val/mAP"),
        question=scene,
    ),
    "datadream": Story(
        opening="sixteen handwritten digits of each class, beside CLIP and a generator that have only seen print",
        settings=(),
        contenders={
            "zero-shot CLIP": ("method.scheme=zero_shot",),
            "real shots only": ("method.scheme=real",),
            "DataDream": ("method.scheme=cls",),
        },
        metrics=("test/accuracy", "val/accuracy"),
        question=digit,
    ),
    "waffleclip": Story(
        opening="handwritten digits named by a CLIP that has only seen print, without any training",
        settings=(),
        contenders={
            "CLIP": ("method.mode=clip", "method.repetitions=1"),
            "descriptors": ("method.mode=gpt_descriptions", "method.repetitions=1"),
            "WaffleCLIP": ("method.mode=waffle",),
        },
        metrics=("test/accuracy", "val/accuracy"),
        question=digit,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    keep = "--keep-serving" in words
    settings = [word for word in words if word != "--keep-serving" and not word.startswith("story=")]
    named = [word.removeprefix("story=") for word in words if word.startswith("story=")]
    name = named[-1] if named else next(iter(STORIES))
    try:
        if name not in STORIES:
            raise ConfigError(f"story must be one of {', '.join(STORIES)}, got {name!r}")
        story = STORIES[name]
        base = [f"method={name}", "data=handwriting", *story.settings, f"scale.workers={min(2, os.cpu_count() or 1)}"]
        jobs = {title: compose_job([*base, *settings, *own]) for title, own in story.contenders.items()}
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return run(lambda: tell(story, jobs, keep), words)


def tell(story: Story, jobs: dict[str, JobConfig], keep_serving: bool) -> None:
    """The whole story; every step says what it does."""
    started = time.monotonic()
    any_job = next(iter(jobs.values()))
    say(story.opening)
    prepare_environment()  # before Ray starts: Serve's proxy reads it then
    if any_job.scale.kind == "ray":
        start_ray(any_job.scale)
    results = {}
    for name, job in jobs.items():
        say(f"{name}, on {job.scale.num_workers} workers")
        results[name] = train(job)
    best = max(results.values(), key=lambda result: result.metrics[result.metric])
    found = resolve(best.tracking_uri, f"models:/{any_job.method_name}@champion")
    say(f"serving models:/{found.name}/{found.version} @champion")
    model = ServedModel(name=found.name, version=found.version, folder=str(found.folder))
    # On a cluster that others use, beside what they serve.
    shared = cluster.cluster_address() is not None
    settings = ServeSettings(port=0, access_log=False, app_name="tenfold-demo", route_prefix="/demo" if shared else "/")
    endpoint = deploy([model], settings)
    question = story.question(any_job, found)
    answers = Answers(
        plain=ask_plain(endpoint, found.name, question.picture),
        v2=ask_v2(endpoint, found.name, question.picture),
        also=ask_plain(endpoint, found.name, question.picture, **question.also) if question.also else None,
    )
    table = Table(metrics=story.metrics, results=results, best=best)
    print(summary(table, endpoint, model, question.truth, answers, time.monotonic() - started), flush=True)
    if keep_serving:
        say("the endpoint stays up; Ctrl-C ends it")
        wait(endpoint)
        return
    endpoint.drain()
    cluster.stop()


@dataclass(frozen=True, kw_only=True)
class Table:
    metrics: tuple[str, ...]
    results: dict[str, TrainResult]
    best: TrainResult


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Replies to the same picture: plain, v2, and plain with classes of the caller's choice."""

    plain: dict[str, Any]
    v2: dict[str, Any]
    also: dict[str, Any] | None


def ask_plain(endpoint: Endpoint, name: str, picture: np.ndarray, **also: Any) -> dict[str, Any]:
    """One picture as a PNG, the way a person would send it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return _post(f"{endpoint.url}/predict/{name}", {"image": base64.b64encode(buffer.getvalue()).decode(), **also})


def ask_v2(endpoint: Endpoint, name: str, picture: np.ndarray) -> dict[str, Any]:
    """The same picture as a tensor, the way a program would send it."""
    tensor = {"name": "images", "shape": [1, *picture.shape], "datatype": "UINT8", "data": picture.ravel().tolist()}
    return _post(f"{endpoint.url}/v2/models/{name}/infer", {"inputs": [tensor]})


def summary(table: Table, endpoint: Endpoint, model: ServedModel, truth: str, answers: Answers, seconds: float) -> str:
    """The table, the answers, and how to go on."""
    lines = ["", f"{'':<20}{''.join(f'{name:>15}' for name in table.metrics)}  MLflow run"]
    for name, result in table.results.items():
        values = "".join(f"{result.metrics[metric]:>15.2f}" for metric in table.metrics)
        lines.append(f"{name:<20}{values}  {result.run_id}")
    probs = next(output["data"] for output in answers.v2["outputs"] if output["name"] == "probs")
    uri = table.best.tracking_uri
    lines += ["", f"picture shows       {truth}", f"/predict says       {_labels(answers.plain)}"]
    if answers.also is not None:
        lines.append(f"asked with prompts  {_labels(answers.also)}")
    lines += [
        f"v2 says             {', '.join(f'{value:.2f}' for value in probs)}",
        "",
        f"runs and pictures   mlflow ui --backend-store-uri {uri}",
        f"model               models:/{model.name}/{model.version} @champion",
        f"endpoint            {endpoint.url} (docs at {endpoint.url}/docs)",
        f"serve it again      .venv/bin/python jobs/deploy.py tracking_uri={uri}",
        f"train on            .venv/bin/python jobs/train.py method={model.name}",
        f"took                {seconds:.0f} s",
    ]
    return "\n".join(lines)


def _labels(reply: dict[str, Any]) -> str:
    return ", ".join(f"{label['name']} {label['probability']:.2f}" for label in reply["labels"][:4])


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
