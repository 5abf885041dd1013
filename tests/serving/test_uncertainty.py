"""A posterior behind the classifier endpoint: uncertainty scores come with the probabilities."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from tenfold.bundle import save_trained
from tenfold.methods.gradient_uncertainty.members import stack_members
from tenfold.methods.gradient_uncertainty.predictor import MEMBER, THRESHOLD, predictor_of
from tenfold.methods.gradient_uncertainty.settings import Config
from tenfold.models.digit_cnn import DigitCnnConfig, build_digit_cnn
from tests.serving.local import LocalService, encoded
from tests.serving.stand_ins import served
from tests.serving.v2_client import encode_request, outputs_of

SCORES = ("predictive_entropy", "mutual_information", "variation_ratio", "outside")


@pytest.fixture(scope="module")
def posterior(tmp_path_factory):
    """A service of three untrained members, and the predictor that it should answer like."""
    model, config = DigitCnnConfig(channels=(2, 2, 2), hidden=8), Config(num_members=3)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append({name: value.detach() for name, value in build_digit_cnn(model, 10).named_parameters()})
    stacked = stack_members(members)
    predictor = predictor_of(config, model, stacked, tuple("0123456789"), threshold=2.295)
    bundle = save_trained(
        tmp_path_factory.mktemp("posterior") / "bundle",
        predictor,
        torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8),
        config={"method": asdict(config), "model": {**asdict(model), "channels": [2, 2, 2]}},
        tensors={
            **{f"{MEMBER}{name}": value for name, value in stacked.items()},
            THRESHOLD: torch.tensor(2.295, dtype=torch.float64),
        },
        method="gradient_uncertainty",
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
    )
    return LocalService([served(bundle, "doubt", loader="tenfold.catalog:load_predictor")]), predictor


@pytest.mark.parametrize("binary", [True, False])
def test_v2_answers_with_every_score(posterior, binary):
    service, predictor = posterior
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3)).astype(np.uint8)
    body, headers = encode_request(images, binary=binary)
    response = service.http.post("/v2/models/doubt/infer", content=body, headers=headers)
    outputs = outputs_of(response)
    expected = predictor(torch.from_numpy(images))
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_metadata_names_the_scores(posterior):
    service, _ = posterior
    body, headers = encode_request(np.zeros((1, 28, 28, 3), np.uint8))
    service.http.post("/v2/models/doubt/infer", content=body, headers=headers)
    outputs = {each["name"]: each["shape"] for each in service.http.get("/v2/models/doubt").json()["outputs"]}
    assert outputs["probs"] == [-1, 10]
    assert all(outputs[name] == [-1] for name in SCORES)
    told = service.http.get("/v2/models/doubt").json()["parameters"]["outside"]
    assert told == {"score": "predictive_entropy", "threshold": 2.295, "false_positive_rate": 0.05}


def test_predict_replies_with_the_uncertainty_of_an_image(posterior):
    service, predictor = posterior
    image = np.random.default_rng(1).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    response = service.http.post("/predict/doubt", files={"image": ("a.png", encoded(image), "image/png")})
    assert response.status_code == 200, response.text
    expected = predictor(torch.from_numpy(image)[None])
    answer = response.json()
    outside = expected.pop("outside")
    assert answer["uncertainty"] == pytest.approx({name: float(expected[name][0]) for name in SCORES[:3]}, abs=1e-6)
    assert answer["outside"] == {
        "flagged": bool(outside[0]), "score": "predictive_entropy", "threshold": 2.295, "false_positive_rate": 0.05,
    }  # fmt: skip
