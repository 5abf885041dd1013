"""The HTTP application over models in this process, and images to send to it."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image

from serve.api import create_app
from serve.contract import Answer, Declined, describe_bundle
from serve.loaded_regressor import LoadedRegressor
from serve.loading import LoadedModel
from serve.models import ModelTable
from serve.settings import ServeSettings
from tenfold.bundle import load_bundle
from tenfold.types import Task
from tests.serving.stand_ins import (
    EXPLAINING_LOADER,
    OPEN_LOADER,
    SIZE,
    expected_logits,
    expected_map,
    make_bundle,
    make_open_bundle,
    served,
)

PNG = {"content-type": "image/png"}


class LocalClient:
    """A ``ModelClient`` without Serve; ``failure`` is raised instead of an answer."""

    def __init__(self, model):
        regresses = load_bundle(model.folder).metadata.task is Task.REGRESSION
        self.loaded = (LoadedRegressor if regresses else LoadedModel)(model)
        self.failure = None

    async def infer(self, images, known_version, required_version=None, vocabulary=None, explain=None):
        if self.failure:
            raise self.failure
        if declined := self.loaded.decline(images, required_version, vocabulary, explain):
            return declined
        try:
            prototypes = self.loaded.prototypes(vocabulary) if vocabulary else None
        except ValueError as error:
            return self.loaded.decline_texts(error)
        this = self.loaded.description
        [outputs] = self.loaded.predict_each(self.loaded.pieces(images, len(images), prototypes, explain))
        return Answer(this.version, outputs, this if known_version != this.version else None)

    async def regress(self, asked, known_version, required_version=None):
        if self.failure:
            raise self.failure
        if declined := self.loaded.decline(asked, required_version):
            return declined
        this = self.loaded.description
        results = self.loaded.predict_each(self.loaded.pieces(asked))
        if declined := [result for result in results if isinstance(result, Declined)]:
            return declined[0]
        outputs = {name: np.concatenate([part[name] for part in results]) for name in results[0]}
        return Answer(this.version, outputs, this if known_version != this.version else None)

    async def describe(self):
        if self.failure:
            raise self.failure
        return self.loaded.description


class Recorder(list):
    def record(self, trace):
        self.append(trace)


class LocalService:
    """``http`` is a test client of the application, ``traces`` records its requests, ``clients`` holds the models."""

    def __init__(self, models, *, keys=None, raises=True, **settings):
        self.clients = {model.name: LocalClient(model) for model in models}
        self.traces = Recorder()
        self.executor = ThreadPoolExecutor(2)
        table = ModelTable(self.clients, [describe_bundle(model, load_bundle(model.folder)) for model in models])
        app = create_app(table, ServeSettings(**settings), keys, self.traces, self.executor)
        self.http = TestClient(app, raise_server_exceptions=raises)


class TintsService(LocalService):
    """``tints`` explains, ``colour`` does not, ``open`` has an open vocabulary."""

    def __init__(self, folder, **options):
        self.bundle = make_bundle(folder / "tints", seed=1)
        models = [
            served(self.bundle, "tints", version="3", loader=EXPLAINING_LOADER),
            served(make_bundle(folder / "colour")),
            served(make_open_bundle(folder / "open"), "open", loader=OPEN_LOADER),
        ]
        super().__init__(models, **options)


def expected_maps(bundle, images, labels=None):
    images = torch.from_numpy(images)
    labels = expected_logits(bundle.folder, images).argmax(1).tolist() if labels is None else labels
    return np.stack([expected_map(bundle.folder, image, k).numpy() for image, k in zip(images, labels, strict=True)])


def random_images(num_images, seed=0):
    """Images of uniform noise below ``POISON``."""
    return np.random.default_rng(seed).integers(0, 250, (num_images, SIZE, SIZE, 3)).astype(np.uint8)


def random_image(size=(12, 10), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(response, status):
    """Check the form of a refusal and return its sentence."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]
