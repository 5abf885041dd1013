"""The process that answers HTTP, built without a cluster: models that can't be loaded."""

import asyncio

import pytest
from fastapi.testclient import TestClient

from serve.clients.local import describe_bundle
from serve.deployment.ingress import Ingress
from serve.settings import ServeSettings
from tenfold.bundle import BundleError, load_bundle
from tests.serving.local import PNG, encoded, random_image
from tests.serving.stand_ins import make_bundle, served


def start(*models):
    descriptions = [describe_bundle(model, load_bundle(model.folder)) for model in models]
    ingress = Ingress.__new__(Ingress)
    asyncio.run(ingress.__init__(models, (), {}, descriptions, ServeSettings(access_log=False)))
    return TestClient(ingress.__serve_build_asgi_app__())


def test_a_model_that_cannot_be_loaded_does_not_take_the_others_down(tmp_path):
    good = served(make_bundle(tmp_path / "good"), "good")
    bad = served(make_bundle(tmp_path / "bad", shift=1.0), "bad")
    for models in ((good, bad), (bad, good)):
        http = start(*models)
        assert http.post("/predict/good", content=encoded(random_image()), headers=PNG).status_code == 200
        refused = http.post("/predict/bad", content=encoded(random_image()), headers=PNG)
        assert (refused.status_code, refused.json()["error"]) == (
            503,
            "model bad could not be loaded; the server's log tells why",
        )
        assert http.get("/v2/models/good/ready").json()["ready"] is True
        assert http.get("/v2/models/bad/ready").json()["ready"] is False
        assert http.get("/v2/health/ready").status_code == 400


def test_an_endpoint_of_which_no_model_can_be_loaded_does_not_start(tmp_path):
    models = [served(make_bundle(tmp_path / name, shift=1.0), name) for name in ("one", "two")]
    with pytest.raises(BundleError, match="differ by 1"):
        start(*models)
