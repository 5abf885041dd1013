"""A loaded model equals the trained one, and a request that breaks the predictor fails alone."""

import asyncio

import numpy as np
import pytest
import torch

from serve.clients.local import LocalModel, import_loader
from serve.contract import Call, Failure, RefusedError
from serve.tasks.labels.loaded import ImagePiece
from serve.tasks.labels.vocabulary import Vocabulary
from tenfold.bundle import BundleError
from tests.serving.local import random_images
from tests.serving.stand_ins import (
    CLASSES,
    OPEN_LOADER,
    POISON,
    SIZE,
    TEMPLATE,
    expected_logits,
    expected_open_probs,
    make_bundle,
    make_open_bundle,
    own_prompts,
    served,
)


def loaded(bundle, **options):
    return LocalModel(served(bundle, **options)).loaded


def predict(model, images):
    [outputs] = model.run([ImagePiece(images)])
    return outputs


def test_numbers_are_the_predictors(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    images = random_images(3)
    outputs = predict(loaded(bundle), images)
    np.testing.assert_array_equal(outputs["logits"], expected_logits(bundle.folder, torch.from_numpy(images)).numpy())
    assert all(values.dtype == np.float32 for values in outputs.values())


def test_description_has_the_shapes_that_really_come(tmp_path):
    model = LocalModel(served(make_bundle(tmp_path / "b"), version="4"))
    description = asyncio.run(model.describe())
    signature = description.signature
    assert {slot.name: slot.shape for slot in signature.outputs} == {"probs": (3,), "logits": (3,), "batch_size": (1,)}
    assert {name: values.shape[1:] for name, values in predict(model.loaded, random_images(2)).items()} == {
        slot.name: slot.shape for slot in signature.always
    }
    assert (description.version, signature.columns, signature.preprocessing.image_size) == ("4", CLASSES, SIZE)


def test_a_model_that_differs_from_its_training_does_not_load(tmp_path):
    model = served(make_bundle(tmp_path / "b", shift=0.01))
    with pytest.raises(BundleError, match=r"differ by 0\.01"):
        LocalModel(model)
    assert LocalModel(served(make_bundle(tmp_path / "c", shift=0.01), probe_tolerance=0.02)).ready()


def test_the_tolerance_grows_with_the_logits(tmp_path):
    large = LocalModel(served(make_bundle(tmp_path / "b", scale=100.0, shift=0.005)))  # logits of about 100
    assert large.ready()
    with pytest.raises(BundleError, match=r"differ by 0\.05"):
        LocalModel(served(make_bundle(tmp_path / "c", scale=100.0, shift=0.05)))


def test_a_changed_byte_does_not_load(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    path = bundle.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        LocalModel(served(bundle))


def test_requests_of_one_batch_get_their_own_rows(tmp_path):
    model = loaded(make_bundle(tmp_path / "b"))
    requests = [random_images(2, 0), random_images(1, 1), random_images(3, 2)]
    results = model.run([ImagePiece(images) for images in requests])
    for request, result in zip(requests, results, strict=True):
        assert (result["batch_size"] == 6).all()
        np.testing.assert_array_equal(result["logits"], predict(model, request)["logits"])


def test_a_bad_request_fails_alone(tmp_path):
    model = loaded(make_bundle(tmp_path / "b", poisonable=True))
    bad = random_images(2)
    bad[1, 0, 0, 0] = POISON
    good, failed, other = model.run([ImagePiece(images) for images in (random_images(1, 1), bad, random_images(1, 2))])
    assert failed == Failure("ValueError: a poisoned image")
    np.testing.assert_array_equal(good["logits"], predict(model, random_images(1, 1))["logits"])
    np.testing.assert_array_equal(other["logits"], predict(model, random_images(1, 2))["logits"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.uint8), r"uint8 \[N,8,8,3\], got uint8 \[1, 4, 4, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "got uint8"),
        (np.zeros((1, 8, 8, 3), np.float32), "got float32"),
        (np.zeros((8, 8, 3), np.uint8), "got uint8"),
    ],
)
def test_other_images_are_refused(tmp_path, images, message):
    model = loaded(make_bundle(tmp_path / "b"))
    with pytest.raises(RefusedError, match=message) as refused:
        model.check(Call(inputs={"images": images}))
    assert refused.value.status == 422


def test_another_version_is_refused(tmp_path):
    model = LocalModel(served(make_bundle(tmp_path / "b"), version="2"))
    call = Call(inputs={"images": random_images(1)})
    assert asyncio.run(model.ask(call, "2", "2")).version == "2"
    refused = asyncio.run(model.ask(call, "1", "1"))
    assert (refused.status, refused.sentence) == (404, "model colour has no version '1'; served is: 2")
    assert refused.description == asyncio.run(model.describe())


def test_a_loader_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="no function 'load'"):
        import_loader("tests.serving.stand_ins:load")


def open_model(folder, **options):
    return loaded(make_open_bundle(folder / "open", **options), loader=OPEN_LOADER)


def test_images_of_all_vocabularies_share_one_pass(tmp_path):
    model = open_model(tmp_path)
    vocabularies = [Vocabulary(("crab", "gnu")), Vocabulary(("x", "y", "bee"), (("b", "g"), ("r",), ("bb",)))]
    prompts = [vocabulary.prompts_by_class(TEMPLATE) for vocabulary in vocabularies]
    requests = [random_images(2, 0), random_images(1, 1), random_images(3, 2)]
    chosen = [0, 1, 0]
    prototypes = [model._prototypes(vocabulary) for vocabulary in vocabularies]
    results = model.run([ImagePiece(images, prototypes[k]) for images, k in zip(requests, chosen, strict=True)])
    for images, k, result in zip(requests, chosen, results, strict=True):
        expected = expected_open_probs(torch.from_numpy(images), prompts[k]).numpy()
        np.testing.assert_allclose(result["probs"], expected, rtol=1e-5)
        assert (result["batch_size"] == 6).all()


def test_own_and_brought_classes_in_one_batch(tmp_path):
    model = open_model(tmp_path)
    brought = model._prototypes(Vocabulary(("crab", "gnu")))
    requests = [random_images(1, seed) for seed in range(4)]
    pieces = [ImagePiece(images, brought if position % 2 else None) for position, images in enumerate(requests)]
    for position, (images, result) in enumerate(zip(requests, model.run(pieces), strict=True)):
        prompts = own_prompts(("crab", "gnu") if position % 2 else CLASSES)
        expected = expected_open_probs(torch.from_numpy(images), prompts).numpy()
        np.testing.assert_allclose(result["probs"], expected, rtol=1e-5)
        assert (result["batch_size"] == 2).all()


def test_prototypes_that_do_not_fit_fail_alone(tmp_path):
    model = open_model(tmp_path)
    good = model._prototypes(Vocabulary(("crab", "gnu")))
    pieces = [ImagePiece(random_images(1), prototypes) for prototypes in (good, torch.zeros(2, 5), None)]
    results = model.run(pieces)
    assert [isinstance(result, Failure) for result in results] == [False, True, False]


def test_who_is_open(tmp_path):
    call = Call(inputs={"images": random_images(1), "classes": np.array(["cat"], object)})
    model = open_model(tmp_path)
    model.check(call)
    assert model._description.signature.about["prompt_template"] == TEMPLATE
    # The predictor could, but its signature does not say so.
    without_texts = loaded(make_open_bundle(tmp_path / "c", template=None), loader=OPEN_LOADER)
    for closed in (without_texts, loaded(make_bundle(tmp_path / "b"))):
        assert "prompt_template" not in closed._description.signature.about
        with pytest.raises(RefusedError) as refused:
            closed.check(call)
        assert refused.value.reason == "vocabulary"
        assert str(refused.value) == "model colour knows its own classes only; leave out 'classes' and 'prompts'"


@pytest.mark.parametrize("template", ["a photo", "{} and {}", 3])
def test_a_wrong_template_is_told(tmp_path, template):
    with pytest.raises(ValueError, match="a string with one"):
        make_open_bundle(tmp_path / "open", template=template)


def test_a_name_with_braces_is_a_name(tmp_path):
    assert Vocabulary(("a{}b",)).prompts_by_class("it is {}.") == {"a{}b": ("it is a{}b.",)}
