"""What is loaded is what was trained, and a request that breaks the predictor breaks alone."""

import numpy as np
import pytest
import torch

from serve.contract import Declined
from serve.loading import Failure, LoadedModel, import_loader
from tenfold.bundle import BundleError
from tests.serving.stand_ins import CLASSES, POISON, SIZE, expected_logits, make_bundle, served


def pictures(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 250, (num_images, SIZE, SIZE, 3)).astype(np.uint8)


def test_numbers_are_the_predictors(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    images = pictures(3)
    outputs = LoadedModel(served(bundle)).predict(images)
    np.testing.assert_array_equal(outputs["logits"], expected_logits(bundle.folder, torch.from_numpy(images)).numpy())
    assert all(values.dtype == np.float32 for values in outputs.values())


def test_description_has_the_shapes_that_really_come(tmp_path):
    description = LoadedModel(served(make_bundle(tmp_path / "b"), version="4")).description
    assert description.outputs == {"probs": (3,), "logits": (3,), "batch_size": (1,)}
    assert (description.version, description.classes, description.image_size) == ("4", CLASSES, SIZE)


def test_a_model_that_differs_from_its_training_does_not_load(tmp_path):
    model = served(make_bundle(tmp_path / "b", shift=0.01))
    with pytest.raises(BundleError, match=r"differ by 0\.01"):
        LoadedModel(model)
    assert LoadedModel(served(make_bundle(tmp_path / "c", shift=0.01), probe_tolerance=0.02)).description


def test_a_changed_byte_does_not_load(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    path = bundle.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        LoadedModel(served(bundle))


def test_requests_of_one_batch_get_their_own_rows(tmp_path):
    model = LoadedModel(served(make_bundle(tmp_path / "b")))
    requests = [pictures(2, 0), pictures(1, 1), pictures(3, 2)]
    results = model.predict_each(requests)
    for request, result in zip(requests, results, strict=True):
        assert (result["batch_size"] == 6).all()
        np.testing.assert_array_equal(result["logits"], model.predict(request)["logits"])


def test_a_bad_request_fails_alone(tmp_path):
    model = LoadedModel(served(make_bundle(tmp_path / "b", poisonable=True)))
    bad = pictures(2)
    bad[1, 0, 0, 0] = POISON
    good, failed, other = model.predict_each([pictures(1, 1), bad, pictures(1, 2)])
    assert failed == Failure("ValueError: a poisoned picture")
    np.testing.assert_array_equal(good["logits"], model.predict(pictures(1, 1))["logits"])
    np.testing.assert_array_equal(other["logits"], model.predict(pictures(1, 2))["logits"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.uint8), r"uint8 \[N,8,8,3\], got uint8 \[1, 4, 4, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "got uint8"),
        (np.zeros((1, 8, 8, 3), np.float32), "got float32"),
        (np.zeros((8, 8, 3), np.uint8), "got uint8"),
    ],
)
def test_other_pictures_are_declined(tmp_path, images, message):
    declined = LoadedModel(served(make_bundle(tmp_path / "b"))).decline(images, None)
    assert isinstance(declined, Declined)
    with pytest.raises(ValueError, match=message):
        raise ValueError(declined.message)


def test_another_version_is_declined(tmp_path):
    model = LoadedModel(served(make_bundle(tmp_path / "b"), version="2"))
    assert model.decline(pictures(1), "2") is None
    assert "no version '1'" in model.decline(pictures(1), "1").message


def test_a_loader_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="no function 'load'"):
        import_loader("tests.serving.stand_ins:load")
