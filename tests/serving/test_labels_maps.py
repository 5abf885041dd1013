"""Attribution maps over v2: ``explain`` adds the map of the requested class, and changes no other request."""

import asyncio
import json
import logging

import numpy as np
import pytest
import torch

from serve.clients.local import LocalModel, import_loader
from serve.contract import Call, Failure, RefusedError
from serve.http.access_log import access_logger
from serve.tasks.labels.loaded import ImagePiece
from serve.tasks.maps import ClassIndex
from tenfold.bundle import BundleError
from tenfold.types import Task
from tests.serving import real_bundles
from tests.serving.local import (
    PNG,
    LocalService,
    TintsService,
    encoded,
    expected_maps,
    random_image,
    random_images,
    refusal,
)
from tests.serving.stand_ins import (
    EXPLAINING_LOADER,
    POISON,
    SIZE,
    ExplainingPredictor,
    OpenPredictor,
    expected_logits,
    expected_map,
    make_bundle,
    make_open_bundle,
    served,
)
from tests.serving.v2_client import encode_request, outputs_of


def infer(service, images, *, model="tints", binary=True, **parameters):
    body, headers = encode_request(images, binary=binary, parameters=parameters)
    return service.http.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def infer_named(service, images, names, **parameters):
    request = {
        "inputs": [
            {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist()}
        ],
        "outputs": [{"name": name} for name in names],
        "parameters": parameters,
    }
    return service.http.post("/v2/models/tints/infer", json=request)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({}, None),
        ({"explain_class": "blue"}, [2, 2, 2]),
        ({"explain_class": 1}, [1, 1, 1]),
        ({"explain_class": "1"}, [1, 1, 1]),
        ({"explain_class": ["blue", 0, "green"]}, [2, 0, 1]),
        ({"explain_class": ["green"]}, [1, 1, 1]),
    ],
)
def test_infer_gives_the_maps_of_the_classes_meant(service, binary, given, labels):
    images = random_images(3)
    outputs = outputs_of(infer(service, images, binary=binary, explain=True, **given))
    logits = expected_logits(service.bundle.folder, torch.from_numpy(images))
    np.testing.assert_array_equal(outputs["logits"], logits.numpy())
    assert outputs["attributions"].shape == (3, SIZE, SIZE)
    np.testing.assert_array_equal(outputs["attributions"], expected_maps(service.bundle, images, labels))
    assert outputs["explained"].dtype == np.int64
    assert outputs["explained"].tolist() == (logits.argmax(1).tolist() if labels is None else labels)
    assert (service.traces[-1].num_images, service.traces[-1].num_explained) == (3, 3)


def test_the_datatypes_are_told(service):
    told = {
        tensor["name"]: tensor
        for tensor in infer(service, random_images(2), binary=False, explain=True).json()["outputs"]
    }
    assert (told["attributions"]["datatype"], told["attributions"]["shape"]) == ("FP32", [2, SIZE, SIZE])
    assert (told["explained"]["datatype"], told["explained"]["shape"]) == ("INT64", [2])
    assert all(type(label) is int for label in told["explained"]["data"])


@pytest.mark.parametrize(
    ("names", "parameters", "told"),
    [
        (["attributions"], {}, ["attributions"]),
        (["explained", "probs"], {}, ["explained", "probs"]),
        (["attributions"], {"explain": True, "explain_class": "red"}, ["attributions"]),
        (["probs"], {"explain": True}, ["probs", "attributions", "explained"]),
        (["probs"], {"explain": False}, ["probs"]),
    ],
)
def test_naming_the_output_asks_for_it(service, names, parameters, told):
    outputs = outputs_of(infer_named(service, random_images(2), names, **parameters))
    assert list(outputs) == told
    assert service.traces[-1].num_explained == (2 if {"attributions", "explained"} & set(told) else 0)


@pytest.mark.parametrize("parameters", [{}, {"explain": False}, {"explain": None}])
def test_who_does_not_ask_gets_what_came_before(service, parameters):
    images = random_images(3)
    outputs = outputs_of(infer(service, images, **parameters))
    assert list(outputs) == ["probs", "logits", "batch_size"]
    np.testing.assert_array_equal(outputs["logits"], expected_logits(service.bundle.folder, torch.from_numpy(images)))
    calls = service.clients["tints"].loaded._predictor.calls
    assert calls[-1] == ("predict", 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"explain": 1}, "'explain' must be true or false, got 1"),
        ({"explain": "true"}, "'explain' must be true or false, got 'true'"),
        ({"explain_class": "red"}, "'explain' must be true with it"),
        ({"explain": False, "explain_class": 0}, "'explain' must be true with it"),
        ({"explain": True, "explain_class": "teal"}, "has no class 'teal' to explain; it has red, green, blue"),
        ({"explain": True, "explain_class": "x" * 500}, f"no class '{'x' * 79}... to explain"),
        ({"explain": True, "explain_class": 3}, "has no class 3 to explain; its classes are 0 to 2"),
        ({"explain": True, "explain_class": -1}, "has no class -1 to explain"),
        ({"explain": True, "explain_class": "9" * 5000}, "has no class '999"),
        ({"explain": True, "explain_class": 10**30}, "has no class 1000"),
        ({"explain": True, "explain_class": True}, "must be a class name or an index, or a list"),
        ({"explain": True, "explain_class": 1.0}, "must be a class name or an index, or a list"),
        ({"explain": True, "explain_class": [0, None]}, "must be a class name or an index, or a list"),
        ({"explain": True, "explain_class": []}, "one for each of the pictures (2), got 0"),
        ({"explain": True, "explain_class": [0, 1, 2]}, "one for each of the pictures (2), got 3"),
    ],
)
def test_wrong_wishes_are_refused(service, parameters, message):
    assert message in refusal(infer(service, random_images(2), **parameters), 422)
    assert service.traces[-1].reason == "explain"


def test_a_name_and_a_false_do_not_go_together(service):
    reply = infer_named(service, random_images(1), ["attributions"], explain=False)
    assert "'explain' is false, but the outputs 'attributions' or 'explained' are asked for" in refusal(reply, 422)


def test_a_model_without_maps_says_so_and_who_has_them(service):
    message = refusal(infer(service, random_images(1), model="colour", explain=True), 422)
    lacking = "model colour (method colour) gives no attribution maps"
    assert message == f"{lacking}; of the models served here, these do: tints"
    plain = service.http.post("/predict/colour?explain=true", content=encoded(random_image()), headers=PNG)
    assert refusal(plain, 422) == message
    assert service.traces[-1].reason == "explain"


@pytest.mark.parametrize("model", ["open", "tints"])
def test_classes_of_the_request_are_not_explained(service, model):
    body, headers = encode_request(random_images(1), classes=["crab"], parameters={"explain": True})
    message = refusal(service.http.post(f"/v2/models/{model}/infer", content=body, headers=headers), 422)
    assert ("gives no attribution maps" if model == "open" else "knows its own classes only") in message


class BothPredictor(OpenPredictor):
    """Has an open vocabulary and maps of its own classes."""

    def explain(self, images, labels=None):
        outputs = self(images)
        explained = outputs["logits"].argmax(dim=1) if labels is None else labels
        return {**outputs, "attributions": torch.zeros(images.shape[:3]), "explained": explained}


def load_both(bundle, device="cpu"):
    return BothPredictor(bundle)


def test_classes_of_the_request_are_not_explained_where_the_model_takes_them(tmp_path):
    bundle = make_open_bundle(tmp_path / "both", explains=True)
    service = LocalService([served(bundle, "both", loader="tests.serving.test_labels_maps:load_both")])
    assert "attributions" in outputs_of(infer(service, random_images(1), model="both", explain=True))
    body, headers = encode_request(random_images(1), classes=["crab"], parameters={"explain": True})
    message = refusal(service.http.post("/v2/models/both/infer", content=body, headers=headers), 422)
    assert message == "only the model's own classes can be explained; leave out 'classes' and 'prompts'"


@pytest.mark.parametrize(("binary", "most"), [(True, 6), (False, 1)])
def test_maps_of_a_reply_are_limited(tmp_path, binary, most):
    service = TintsService(tmp_path, max_attribution_bytes=6 * SIZE * SIZE * 4 + 3)
    refused = refusal(infer(service, random_images(most + 1), binary=binary, explain=True), 422)
    assert f"explain at most {most} at once" in refused
    assert ("raw bytes" in refused) is not binary
    assert service.traces[-1].reason == "batch_size"
    assert infer(service, random_images(most), binary=binary, explain=True).status_code == 200
    assert infer(service, random_images(most + 1), binary=binary).status_code == 200


def test_maps_that_are_too_large_one_by_one_are_told_as_such(tmp_path):
    service = TintsService(tmp_path, max_attribution_bytes=SIZE * SIZE * 4 - 1)
    assert "leave out 'explain'" in refusal(infer(service, random_images(1), explain=True), 422)


def test_maps_in_json_stay_below_what_is_counted(service):
    reply = infer(service, random_images(4), binary=False, explain=True)
    [maps] = [tensor for tensor in reply.json()["outputs"] if tensor["name"] == "attributions"]
    assert len(json.dumps(maps["data"])) <= 22 * 4 * SIZE * SIZE


def test_metadata_list_the_maps_of_models_that_have_them(service):
    outputs = {tensor["name"]: tensor for tensor in service.http.get("/v2/models/tints").json()["outputs"]}
    assert outputs["attributions"]["shape"] == [-1, SIZE, SIZE]
    assert outputs["explained"] == {
        "name": "explained", "datatype": "INT64", "shape": [-1], "parameters": {"optional": True}
    }  # fmt: skip
    assert "attributions" not in str(service.http.get("/v2/models/colour").json())
    service.http.get("/v2/health/ready")
    listed = {model["name"]: model["explains"] for model in service.http.get("/models").json()["models"]}
    assert listed == {"tints": True, "colour": False, "open": False}


def test_the_access_log_tells_how_many_were_explained(service, caplog):
    logging.disable(logging.NOTSET)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = True
    with caplog.at_level(logging.INFO, logger=access_logger.name):
        infer(service, random_images(2), explain=True)
        infer(service, random_images(2))
    records = [json.loads(record.getMessage()) for record in caplog.records if record.name == access_logger.name]
    assert [(record["images"], record["explained"]) for record in records] == [(2, 2), (2, 0)]


# Batches


def explaining_model(folder, **options):
    bundle = make_bundle(folder / "b", seed=1, explains=True, **options)
    return LocalModel(served(bundle, loader=EXPLAINING_LOADER, max_batch_size=8)).loaded


def pieces_of(model, images, explain=False, classes=None):
    params = {"explain": explain} | ({} if classes is None else {"explain_class": classes})
    call = Call(inputs={"images": images}, params=params)
    model.check(call)
    return asyncio.run(model.pieces(call))


def test_a_mixed_batch_explains_on_request_and_runs_every_image_once(tmp_path):
    model = explaining_model(tmp_path)
    requests = [random_images(2, 0), random_images(1, 1), random_images(3, 2), random_images(1, 3), random_images(2, 4)]
    asked = [(), (True,), (), (True, ["blue"]), (True, ["red", "green"])]
    plain = [model.run(pieces_of(model, images))[0] for images in requests]
    pieces = [pieces_of(model, images, *ask)[0] for images, ask in zip(requests, asked, strict=True)]
    model._predictor.calls.clear()
    results = model.run(pieces)
    assert sorted(model._predictor.calls) == [("explain", 1), ("explain", 3), ("predict", 5)]
    labels = [None, plain[1]["logits"].argmax(1), None, [2], [0, 1]]
    for ask, images, result, before, label in zip(asked, requests, results, plain, labels, strict=True):
        for name in ("probs", "logits"):
            np.testing.assert_allclose(result[name], before[name], rtol=1e-6)
        if not ask:
            assert result.keys() == before.keys()
            assert (result["batch_size"] == 5).all()
        else:
            np.testing.assert_array_equal(result["explained"], label)
            maps = torch.stack(
                [
                    expected_map(tmp_path / "b", image, int(k))
                    for image, k in zip(torch.from_numpy(images), label, strict=True)
                ]
            )
            np.testing.assert_array_equal(result["attributions"], maps)


def test_pieces_keep_the_class_of_each_image(tmp_path):
    model = explaining_model(tmp_path)
    model._max_batch_size = 2
    pieces = pieces_of(model, random_images(5), True, ["red", "green", "blue", "red", "blue"])
    assert [piece.labels.tolist() for piece in pieces] == [[0, 1], [2, 0], [2]]
    assert [piece.labels for piece in pieces_of(model, random_images(3), True)] == [None, None]
    assert [piece.explain for piece in pieces_of(model, random_images(3))] == [False, False]


def test_an_image_that_cannot_be_explained_fails_alone(tmp_path):
    model = explaining_model(tmp_path, poisonable=True)
    bad = random_images(1)
    bad[0, 0, 0, 0] = POISON
    results = model.run(
        [
            ImagePiece(random_images(1, 1)),
            ImagePiece(bad, explain=True),
            ImagePiece(random_images(1, 2), explain=True),
            ImagePiece(random_images(1, 3)),
        ]
    )
    assert [isinstance(result, Failure) for result in results] == [False, True, False, False]
    assert "attributions" in results[2]


# What is checked when a model starts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs | {"logits": outputs["logits"] + 0.01}, "the logits of a prediction, got others"),
        (lambda outputs: outputs | {"attributions": outputs["attributions"] * 2}, r"must lie in \[0, 1\], got 0 to 2"),
        (lambda outputs: outputs | {"attributions": outputs["attributions"] * torch.nan}, r"must lie in \[0, 1\]"),
        (lambda outputs: outputs | {"attributions": outputs["attributions"][:, :4]}, r"float32 \(4, 8, 8\), got"),
        (lambda outputs: outputs | {"attributions": outputs["attributions"].double()}, "got torch.float64"),
        (lambda outputs: outputs | {"explained": (outputs["explained"] + 1) % 3}, "classes with the highest logits"),
        (lambda outputs: outputs | {"explained": outputs["explained"].int()}, "classes with the highest logits"),
        (lambda outputs: {"logits": outputs["logits"]}, "must answer with attributions, got"),
        (lambda outputs: {key: outputs[key] for key in ("logits", "attributions")}, "must answer with explained"),
    ],
)
def test_a_model_that_explains_wrongly_does_not_load(tmp_path, monkeypatch, change, message):
    right = ExplainingPredictor.explain
    monkeypatch.setattr(ExplainingPredictor, "explain", lambda self, images, labels=None: change(right(self, images)))
    with pytest.raises(BundleError, match=message):
        explaining_model(tmp_path)


def test_a_name_given_twice_means_the_first_class():
    index = ClassIndex("m", ("a", "b", "a", "10"))
    assert index.labels(["a", "b", "10", "3", 2], 5).tolist() == [0, 1, 3, 3, 2]
    with pytest.raises(RefusedError, match="must be one class to explain, or 4, got 2"):
        index.labels([0, 1], 4)


def test_a_long_list_of_classes_is_not_told_in_full():
    index = ClassIndex("m", tuple(f"c{k}" for k in range(1000)))
    with pytest.raises(RefusedError, match=r"it has c0, .*c9 \.\.\. \(1000 in all\)$"):
        index.labels(["x"], 1)


# Models as they are trained


@pytest.mark.parametrize("method", real_bundles.EXPLAINING_METHODS)
def test_models_of_our_methods_explain(tmp_path, method):
    bundle = real_bundles.make_real_bundle(tmp_path / "b", method)
    service = LocalService([served(bundle, "tints", loader=real_bundles.LOADER)])
    predictor = import_loader(real_bundles.LOADER)(bundle, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    outputs = outputs_of(infer(service, images, explain=True, explain_class=["class 2", 0, 1]))
    expected = predictor.explain(torch.from_numpy(images), torch.tensor([2, 0, 1]))
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values.numpy())
    assert outputs["attributions"].max() > 0
    task = Task.CLASSIFICATION if method == "calm" else Task.MULTI_LABEL
    assert service.http.get("/v2/models/tints").json()["parameters"]["task"] == task
