"""The HTTP application over models in this process, and images to send to it."""

import io
from itertools import cycle

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image

from serve.clients.local import LocalModel, describe_bundle
from serve.http.app import App
from serve.http.desk import Desk
from serve.settings import ServeSettings
from serve.tasks.table import kind_of, words
from tenfold.bundle import load_bundle
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


class LocalClient(LocalModel):
    """A model of this process; ``failure`` is raised instead of an answer."""

    def __init__(self, model):
        super().__init__(model)
        self.failure = None
        self._turns = None

    def become(self, *models):
        """Answer from now on as other versions, which take turns."""
        self._turns = cycle(models)

    async def ask(self, call, known_version, required_version=None):
        if self.failure:
            raise self.failure
        if self._turns is not None:
            self.__dict__ |= {**next(self._turns).__dict__, "failure": None, "_turns": self._turns}
        return await super().ask(call, known_version, required_version)

    async def describe(self):
        if self.failure:
            raise self.failure
        return await super().describe()

    def ready(self):
        return self.failure is None


class Recorder(list):
    def record(self, trace):
        self.append(trace)


class LocalService:
    """``http`` is a test client of the application, ``traces`` records its requests, ``clients`` holds the models."""

    def __init__(self, models, *, keys=None, raises=True, **settings):
        self.clients = {model.name: LocalClient(model) for model in models}
        self.traces = Recorder()
        descriptions = [describe_bundle(model, load_bundle(model.folder)) for model in models]
        self.desk = Desk(self.clients, descriptions, ServeSettings(**settings))
        app = App(self.desk, kind_of, words(), keys, self.traces)
        self.http = TestClient(app, raise_server_exceptions=raises)


class TintsService(LocalService):
    """``tints`` explains, ``colour`` does not, ``open`` has an open vocabulary."""

    def __init__(self, folder, **options):
        self.bundle = make_bundle(folder / "tints", seed=1, explains=True)
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
