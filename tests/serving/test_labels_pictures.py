"""Attribution maps over ``/predict``: their summary in the JSON, or the overlay as a PNG."""

import base64
import io
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from serve.clients.local import LocalModel, import_loader
from serve.tasks.pictures import prefers_png
from tenfold.data.images import resize_image
from tenfold.figures.overlays import overlay
from tests.serving import real_bundles
from tests.serving.local import PNG, LocalService, encoded, expected_maps, random_image, refusal
from tests.serving.stand_ins import (
    CLASSES,
    EXPLAINING_LOADER,
    SIZE,
    expected_logits,
    make_bundle,
    served,
)


def predict(service, how="query", model="tints", accept=None, **asked):
    """``how``: where the request says what it wants."""
    data = encoded(random_image())
    headers = {"accept": accept} if accept else {}
    if how == "query":
        return service.http.post(f"/predict/{model}", content=data, params=asked, headers=PNG | headers)
    if how == "json":
        content = {"image": base64.b64encode(data).decode(), **asked}
        return service.http.post(f"/predict/{model}", json=content, headers=headers)
    files = {"image": ("a.png", data, "image/png")}
    return service.http.post(f"/predict/{model}", files=files, data=asked, headers=headers)


def seen():
    """Resize the image as the model does."""
    return resize_image(random_image(), SIZE)


def expected_overlay(service, label):
    return overlay(seen(), expected_maps(service.bundle, seen()[None], [label])[0])


def pixels(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image)


def top_class(service):
    return int(expected_logits(service.bundle.folder, torch.from_numpy(seen()[None])).argmax())


@pytest.mark.parametrize("how", ["query", "json", "form"])
@pytest.mark.parametrize(("said", "label"), [({}, None), ({"explain_class": "green"}, 1), ({"explain_class": "2"}, 2)])
def test_predict_says_what_it_explains(service, how, said, label):
    plain = predict(service).json()
    assert "explanation" not in plain
    reply = predict(service, how, explain=True if how == "json" else "true", **said)
    assert reply.status_code == 200, reply.text
    label = top_class(service) if label is None else label
    body = reply.json()
    [scores] = expected_maps(service.bundle, seen()[None], [label])
    probs = {one["name"]: one["probability"] for one in plain["labels"]}
    assert body["labels"] == plain["labels"]
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    assert body["explanation"] == {
        "class": CLASSES[label],
        "index": label,
        "probability": probs[CLASSES[label]],
        "image_size": SIZE,
        "strongest": {"x": column, "y": row},
    }
    assert service.traces[-1].num_explained == 1


@pytest.mark.parametrize("how", ["query", "json", "form"])
def test_predict_shows_the_map_in_base64(service, how):
    reply = predict(service, how, explain="overlay", explain_class="blue").json()
    shown = pixels(base64.b64decode(reply["explanation"]["overlay"]))
    np.testing.assert_array_equal(shown, expected_overlay(service, 2))


@pytest.mark.parametrize("how", ["query", "json", "form"])
@pytest.mark.parametrize("explain", ["true", "True", "overlay"])
def test_predict_replies_with_a_png_where_that_is_accepted(service, how, explain):
    reply = predict(service, how, accept="image/png", explain=explain)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "image/png"
    label = top_class(service)
    np.testing.assert_array_equal(pixels(reply.content), expected_overlay(service, label))
    top = predict(service).json()["labels"][0]
    assert reply.headers["tenfold-class"] == reply.headers["tenfold-explained-class"] == CLASSES[label]
    assert float(reply.headers["tenfold-probability"]) == pytest.approx(top["probability"], rel=1e-5)
    assert reply.headers["tenfold-explained-index"] == str(label)
    assert (reply.headers["tenfold-model-version"], len(reply.headers["x-request-id"])) == ("3", 36)


def test_the_overlay_of_another_class_names_both(service):
    other = (top_class(service) + 1) % 3
    headers = predict(service, accept="image/png", explain="true", explain_class=CLASSES[other]).headers
    assert (headers["tenfold-class"], headers["tenfold-explained-class"]) == (
        CLASSES[top_class(service)],
        CLASSES[other],
    )


def test_class_names_of_any_script_fit_in_headers(tmp_path):
    names = ("größe\n", "猫", "a b")
    bundle = make_bundle(tmp_path / "b", classes=names, explains=True)
    service = LocalService([served(bundle, "tints", loader=EXPLAINING_LOADER)])
    for name in names:
        reply = predict(service, accept="image/png", explain="true", explain_class=name)
        assert unquote(reply.headers["tenfold-explained-class"]) == name


def test_a_png_comes_only_with_a_map(service):
    assert predict(service, accept="image/png").headers["content-type"] == "application/json"
    assert predict(service, accept="image/png", explain="false").headers["content-type"] == "application/json"
    assert predict(service, accept="*/*", explain="true").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False), ("*/*", False), ("application/json", False), ("image/png", True),
        ("IMAGE/PNG", True), ("image/png, */*;q=0.8", True), ("image/png, application/json", False),
        ("image/png;q=0.5, application/json", False), ("application/json;q=0.5, image/png;q=0.9", True),
        ("image/png;q=0", False), ("image/png;q=x", False), ("image/webp, image/png; level=1", True), (";;,", False),
    ],
)  # fmt: skip
def test_accept_header_prefers_png(accept, expected):
    assert prefers_png(accept) is expected


def test_a_map_that_is_the_same_everywhere_has_no_strongest_place(service):
    grey = np.full((SIZE, SIZE, 3), 90, np.uint8)
    reply = service.http.post("/predict/tints?explain=true", content=encoded(grey), headers=PNG)
    assert reply.json()["explanation"]["strongest"] is None


@pytest.mark.parametrize(
    ("how", "asked", "message"),
    [
        ("query", {"explain": "maybe"}, "'explain' must be true, false or overlay, got 'maybe'"),
        ("form", {"explain": ""}, "'explain' must be true, false or overlay, got ''"),
        ("json", {"explain": 1}, "'explain' must be true, false or overlay, got 1"),
        ("json", {"explain": ["true"]}, "'explain' must be true, false or overlay, got ['true']"),
        ("query", {"explain_class": "red"}, "'explain' must be true with it"),
        ("form", {"explain": "false", "explain_class": "red"}, "'explain' must be true with it"),
        ("form", {"explain": ["true", "false"]}, "the form needs 'explain' once, got it 2 times"),
        ("query", {"explain": "true", "explain_class": "teal"}, "has no class 'teal' to explain"),
        ("query", {"explain": "true", "explain_class": "7"}, "has no class '7' to explain; its classes are 0 to 2"),
        ("json", {"explain": True, "explain_class": ["red", "red"]}, "one for each of the pictures (1), got 2"),
        ("json", {"explain": True, "explain_class": {}}, "must be a class name or an index"),
    ],
)
def test_invalid_explain_parameters_are_refused(service, how, asked, message):
    assert message in refusal(predict(service, how, **asked), 422)
    assert service.traces[-1].reason == "explain"


def test_what_the_query_says_the_body_does_not_say_again(service):
    image = base64.b64encode(encoded(random_image())).decode()
    twice = service.http.post("/predict/tints?explain=true", json={"image": image, "explain": True})
    assert "'explain' is given in the query and in the body" in refusal(twice, 422)
    both = service.http.post("/predict/tints?explain=true", json={"image": image, "explain_class": "blue"})
    assert both.json()["explanation"]["class"] == "blue"


def test_classes_of_the_request_are_not_explained(service):
    message = refusal(predict(service, "form", model="open", explain="true", classes='["crab"]'), 422)
    assert "gives no attribution maps" in message


def test_the_image_field_may_be_called_explain(service):
    files = {"explain": ("a.png", encoded(random_image()), "image/png")}
    reply = service.http.post("/predict/tints", files=files)
    assert reply.status_code == 200, reply.text
    assert "explanation" not in reply.json()


def test_a_rollout_to_another_size_is_shown_as_the_new_version_saw_it(own_service, tmp_path):
    service = own_service
    bundle = make_bundle(tmp_path / "new", size=5, seed=3, classes=("cyan", "pink"), explains=True)
    service.clients["tints"].become(LocalModel(served(bundle, "tints", version="4", loader=EXPLAINING_LOADER)))
    reply = predict(service, accept="image/png", explain="true", explain_class="pink")
    assert reply.headers["tenfold-model-version"] == "4"
    image = resize_image(random_image(), 5)
    np.testing.assert_array_equal(pixels(reply.content), overlay(image, expected_maps(bundle, image[None], [1])[0]))


def test_the_openapi_document_tells_of_maps(service):
    paths = service.http.get("/openapi.json").json()["paths"]
    told = {}
    for model in ("tints", "colour"):
        operation = paths[f"/predict/{model}"]["post"]
        content = operation["responses"]["200"]["content"]
        asked = {parameter["name"] for parameter in operation["parameters"]}
        told[model] = (content.keys(), asked, "explanation" in content["application/json"]["schema"]["properties"])
    assert told == {
        "tints": ({"application/json", "image/png"}, {"top", "explain", "explain_class"}, True),
        "colour": ({"application/json"}, {"top"}, False),
    }


@pytest.mark.parametrize("method", real_bundles.EXPLAINING_METHODS)
def test_models_of_our_methods_are_shown(tmp_path, method):
    bundle = real_bundles.make_real_bundle(tmp_path / "b", method)
    service = LocalService([served(bundle, "tints", loader=real_bundles.LOADER)])
    reply = predict(service, accept="image/png", explain="true")
    image = resize_image(random_image(), 32)
    predictor = import_loader(real_bundles.LOADER)(bundle, "cpu")
    [scores] = predictor.explain(torch.from_numpy(image[None]))["attributions"].numpy()
    np.testing.assert_array_equal(pixels(reply.content), overlay(image, scores))
