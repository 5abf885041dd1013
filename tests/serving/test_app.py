"""Both protocols, limits and refusals of the HTTP application, with the models in this process."""

import asyncio
import base64
import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from serve.clients.local import LocalModel
from serve.contract import RefusedError
from serve.http.access_log import access_logger
from serve.http.keys import Keys, new_key
from tenfold.data.images import resize_image
from tenfold.types import Preprocessing, Task
from tests.serving.local import PNG, LocalService, encoded, random_image, refusal
from tests.serving.stand_ins import (
    CLASSES,
    OPEN_LOADER,
    SIZE,
    TEMPLATE,
    expected_logits,
    expected_open_probs,
    make_bundle,
    make_open_bundle,
    own_prompts,
    served,
)
from tests.serving.v2_client import encode_request, outputs_of


class Service(LocalService):
    def __init__(self, folder, **options):
        self.bundle = make_bundle(folder / "colour")
        self.open_bundle = make_open_bundle(folder / "open")
        models = [
            served(self.bundle, version="3"),
            served(make_bundle(folder / "other", seed=2, task=Task.CLASSIFICATION), name="other"),
            served(self.open_bundle, name="open", loader=OPEN_LOADER),
        ]
        super().__init__(models, **options)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return Service(tmp_path_factory.mktemp("service"))


@pytest.fixture
def own_service(tmp_path):
    return Service(tmp_path)


def expected_labels(bundle, image):
    logits = expected_logits(bundle.folder, torch.from_numpy(resize_image(image, SIZE)[None]))[0]
    probs = logits.sigmoid().tolist()
    return sorted(zip(CLASSES, probs, strict=True), key=lambda label: -label[1])


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "json", "multipart", "untyped multipart"])
def test_predict_in_every_form(service, form):
    image = random_image()
    data = encoded(image)
    request = {"content": data, "headers": PNG}
    if form in ("jpeg", "webp"):
        options = {"lossless": True} if form == "webp" else {"quality": 95}
        data = encoded(image, form.upper(), **options)
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        request = {"content": data, "headers": {"content-type": f"image/{form}"}}
    elif form == "json":
        request = {"json": {"image": base64.b64encode(data).decode()}}
    elif form == "multipart":
        request = {"files": {"image": ("a.png", data, "image/png")}}
    elif form == "untyped multipart":
        request = {"files": {"image": ("a", data, "application/octet-stream")}}
    reply = service.http.post("/predict/colour", **request)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert (body["model"], body["version"], body["task"]) == ("colour", "3", "multi_label")
    assert body["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["tenfold-model-version"] == "3"
    labels = [(label["name"], label["probability"]) for label in body["labels"]]
    assert [name for name, _ in labels] == [name for name, _ in expected_labels(service.bundle, image)]
    np.testing.assert_allclose(
        [p for _, p in labels], [p for _, p in expected_labels(service.bundle, image)], rtol=1e-6
    )  # float32 sums in another order


def test_top_labels(service):
    reply = service.http.post("/predict/colour?top=1", content=encoded(random_image()), headers=PNG).json()
    assert [label["name"] for label in reply["labels"]] == [expected_labels(service.bundle, random_image())[0][0]]
    wrong = service.http.post("/predict/colour?top=0", content=encoded(random_image()), headers=PNG)
    assert "query top" in refusal(wrong, 422)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("path", ["/v2/models/colour/infer", "/v2/models/colour/versions/3/infer"])
def test_infer_gives_the_predictors_numbers(service, binary, path):
    images = np.stack([random_image((SIZE, SIZE), seed) for seed in range(5)])
    body, headers = encode_request(images, binary=binary, request_id="r")
    reply = service.http.post(path, content=body, headers=headers)
    outputs = outputs_of(reply)
    expected = expected_logits(service.bundle.folder, torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(outputs["logits"], expected)
    assert reply.headers["tenfold-model-version"] == "3"
    assert service.traces[-1].num_images == 5


def test_both_protocols_agree(service):
    image = random_image((SIZE, SIZE))
    plain = service.http.post("/predict/colour", content=encoded(image), headers=PNG).json()
    body, headers = encode_request(image[None], binary=False)
    probs = service.http.post("/v2/models/colour/infer", content=body, headers=headers).json()["outputs"][0]["data"]
    assert {label["name"]: label["probability"] for label in plain["labels"]} == dict(zip(CLASSES, probs, strict=True))


def test_what_the_server_tells_of_itself(service):
    get = service.http.get
    assert get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/v2/models/colour").json()["versions"] == ["3"]
    assert get("/v2/models/colour/versions/3").json() == get("/v2/models/colour").json()
    assert get("/v2/models/colour/ready").json() == {"name": "colour", "ready": True}
    listed = {model["name"]: model for model in get("/models").json()["models"]}
    assert listed["colour"]["classes"] == list(CLASSES)
    assert listed["other"]["task"] == "classification"
    assert get("/docs").status_code == 200
    assert "/predict/colour" in get("/openapi.json").json()["paths"]


def test_outputs_not_known_beforehand_are_asked_for(service):
    names = [output["name"] for output in service.http.get("/v2/models/other").json()["outputs"]]
    assert names == ["probs", "logits", "batch_size"]


def test_a_model_that_is_down_is_not_ready(own_service):
    own_service.clients["other"].failure = RefusedError(503, "gone", "overload")
    assert own_service.http.get("/v2/models/other/ready").status_code == 400
    assert own_service.http.get("/v2/models/colour/ready").status_code == 200
    ready = own_service.http.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (400, {"ready": False})
    assert own_service.http.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/nothing", 404, "there is no model 'nothing'; served are: colour, open, other"),
        ("POST", "/predict/nothing", 404, "served are: colour, open, other"),
        ("POST", "/v2/models/nothing/infer", 404, "served are"),
        ("POST", "/v2/models/colour/versions/9/infer", 404, "no version '9'; served is: 3"),
        ("GET", "/v2/models/colour/versions/9/ready", 404, "no version '9'; served is: 3"),
        ("GET", "/nowhere", 404, "Not Found"),
        ("GET", "/predict/colour", 405, "Method Not Allowed"),
        ("POST", "/predict/..%2f..%2fetc", 404, ""),
    ],
)
def test_what_is_not_there(service, method, path, status, message):
    assert message in refusal(service.http.request(method, path), status)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b"", "headers": PNG}, 415, "image/png, but the data is no JPEG, PNG or WEBP"),
        ({"content": encoded(random_image(), "JPEG"), "headers": PNG}, 415, "image/png, but the data is JPEG"),
        ({"content": encoded(random_image())[:-30], "headers": PNG}, 422, "truncated or damaged"),
        ({"content": encoded(np.zeros((200, 200, 3), np.uint8)), "headers": PNG}, 422, "200 x 200 pixels"),
        ({"content": b"GIF89a", "headers": {"content-type": "image/gif"}}, 415, "image/gif is not accepted"),
        ({"content": b"x"}, 415, "(none) is not accepted"),
        ({"content": b"a=b", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415, "not accepted"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
        ({"json": {"picture": ""}}, 422, "base64 under 'image'"),
        ({"json": {"image": "https://example.org/a.png"}}, 422, "addresses are not fetched"),
        ({"json": {"image": ""}}, 422, "empty"),
        ({"json": {"image": base64.b64encode(b"GIF89a").decode()}}, 422, "must be JPEG, PNG or WEBP"),
        ({"files": {"image": ("a.png", encoded(random_image(), "JPEG"), "image/png")}}, 415, "the data is JPEG"),
        ({"files": {"image": ("a.txt", b"a", "text/plain")}}, 415, "text/plain is not accepted"),
        ({"data": {"image": "a"}, "files": {"x": ("", b"")}}, 422, "one file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ],
)
def test_a_refused_image(tmp_path, request_, status, message):
    service = Service(tmp_path, max_pixels=10_000)
    assert message in refusal(service.http.post("/predict/colour", **request_), status)
    assert service.traces[-1].reason


def test_a_refused_image_leaves_the_next_one_alone(service):
    assert service.http.post("/predict/colour", content=b"x", headers=PNG).status_code == 415
    assert service.http.post("/predict/colour", content=encoded(random_image()), headers=PNG).status_code == 200


def test_an_animated_image_is_refused(service):
    frames = [Image.fromarray(random_image(seed=seed)) for seed in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    reply = service.http.post("/predict/colour", content=buffer.getvalue(), headers=PNG)
    assert "animated" in refusal(reply, 422)


def test_a_body_announced_too_large_is_not_read(tmp_path):
    service = Service(tmp_path, max_body_bytes=1000)

    async def call():
        sent = []

        async def receive():
            raise AssertionError("the body was read")

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": "/predict/colour", "query_string": b"",
            "headers": [(b"content-type", b"image/png"), (b"content-length", b"1001")],
        }  # fmt: skip
        await service.http.app(scope, receive, send)
        return sent

    start, body = asyncio.run(call())
    assert start["status"] == 413
    assert json.loads(body["body"]) == {"error": "the request body may have at most 1000 bytes"}


@pytest.mark.parametrize("path", ["/predict/colour", "/v2/models/colour/infer"])
def test_a_streamed_body_is_cut_at_the_limit(tmp_path, path):
    service = Service(tmp_path, max_body_bytes=1000)
    read = []

    def stream():
        for _ in range(100):
            read.append(1)
            yield b"x" * 100

    assert "at most 1000 bytes" in refusal(service.http.post(path, content=stream(), headers=PNG), 413)
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert "at most 1000 bytes" in refusal(service.http.post("/predict/colour", content=stream(), headers=form), 413)


def test_a_wrong_length_header_is_malformed(service):
    reply = service.http.post("/predict/colour", content=b"x", headers=PNG | {"content-length": "many"})
    assert "must be a number" in refusal(reply, 400)


DIGITS = ["9" * 4301, "0" * 5000, "²", "٣", "-1", "1.0", "1e3", "0x10", "1_0", "1" * 19]


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("header", ["content-length", "inference-header-content-length"])
@pytest.mark.parametrize("path", ["/v2/models/colour/infer", "/predict/colour"])
def test_no_number_in_a_header_breaks_anything(service, path, header, digits):
    given = PNG | {header: digits.encode()}
    if path.startswith("/predict") and header != "content-length":
        given["content-type"] = "text/plain"  # the header means nothing there
    reply = service.http.post(path, content=b"{}", headers=given)
    assert 400 <= reply.status_code < 500
    refusal(reply, reply.status_code)


def test_wrong_tensors_are_refused(tmp_path):
    service = Service(tmp_path, max_images=2)

    def infer(images, **headers):
        body, given = encode_request(images)
        return service.http.post("/v2/models/colour/infer", content=body, headers=given | headers)

    assert "at most 2 pictures, got 3" in refusal(infer(np.zeros((3, SIZE, SIZE, 3), np.uint8)), 422)
    assert "[N,8,8,3]" in refusal(infer(np.zeros((1, 9, 9, 3), np.uint8)), 422)
    assert "gzip is not accepted" in refusal(
        infer(random_image((SIZE, SIZE))[None], **{"content-encoding": "gzip"}), 415
    )
    assert infer(np.zeros((2, SIZE, SIZE, 3), np.uint8)).status_code == 200
    asked = service.http.post(
        "/predict/colour", content=encoded(random_image()), headers={**PNG, "content-encoding": "gzip"}
    )
    assert (asked.status_code, asked.json()["error"]) == (
        415,
        "the content encoding gzip is not accepted; send it plain",
    )


def test_overload_and_timeout_are_told_as_such(own_service):
    own_service.clients["colour"].failure = RefusedError(503, "full", "overload", {"Retry-After": "2"})
    reply = own_service.http.post("/predict/colour", content=encoded(random_image()), headers=PNG)
    assert refusal(reply, 503) == "full"
    assert reply.headers["retry-after"] == "2"
    assert own_service.traces[-1].reason == "overload"


def test_an_error_of_ours_tells_nothing_but_the_request_id(tmp_path):
    service = Service(tmp_path, raises=False)
    service.clients["colour"].failure = RuntimeError("/secret/path")
    reply = service.http.post("/predict/colour", content=encoded(random_image()), headers=PNG)
    message = refusal(reply, 500)
    assert "secret" not in message
    assert reply.headers["x-request-id"] in message


@pytest.mark.parametrize("given", ["abc-1.2_3", None, "", "a b", "x" * 129, "ä"])
def test_request_ids(service, given):
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    told = service.http.get("/v2", headers=headers).headers["x-request-id"]
    if given == "abc-1.2_3":
        assert told == given
    else:
        assert told != given
        assert len(told) == 36


def test_keys(tmp_path):
    key, line = new_key("anna")
    (tmp_path / "keys").write_text(line)
    service = Service(tmp_path, keys=Keys.load(tmp_path / "keys"))
    wanted = service.http.get("/models")
    assert "an API key is needed" in refusal(wanted, 401)
    assert wanted.headers["www-authenticate"] == "Bearer"
    assert "not known" in refusal(service.http.get("/models", headers={"x-api-key": key + "x"}), 401)
    assert service.http.get("/models", headers={"x-api-key": key}).status_code == 200
    assert service.http.get("/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert service.traces[-1].key_id == "anna"
    assert "an API key is needed" in refusal(service.http.get("/nowhere"), 401)
    assert service.http.get("/docs").status_code == 401
    assert service.http.get("/v2/health/live").status_code == 200
    assert service.http.get("/v2/health/ready").status_code == 200


def test_the_access_log_is_a_json_line(service, caplog):
    logging.disable(logging.NOTSET)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = True
    with caplog.at_level(logging.INFO, logger=access_logger.name):
        service.http.post("/predict/colour", content=b"x", headers=PNG | {"x-request-id": "r1"})
    record = json.loads(caplog.records[-1].getMessage())
    expected = {
        "request_id": "r1", "method": "POST", "path": "/predict/colour", "model": "colour", "version": "3",
        "status": 415, "reason": "content_type", "key_id": None, "images": 0,
    }  # fmt: skip
    assert expected.items() <= record.items()
    assert record["latency_ms"] > 0


def test_made_up_model_names_stay_out_of_the_metrics(service):
    service.http.get("/v2/models/made-up")
    assert (service.traces[-1].model, service.traces[-1].reason) == ("", "unknown_model")


def test_a_rollout_to_another_size_classes_and_version_goes_unnoticed(own_service, tmp_path):
    image = random_image()
    bundle = make_bundle(tmp_path / "new", size=5, seed=3, classes=("cyan", "pink"))
    own_service.clients["colour"].become(LocalModel(served(bundle, version="4")))
    reply = own_service.http.post("/predict/colour", content=encoded(image), headers=PNG)
    assert reply.status_code == 200
    assert reply.headers["tenfold-model-version"] == "4"
    logits = expected_logits(bundle.folder, torch.from_numpy(resize_image(image, 5)[None]))[0]
    told = {label["name"]: label["probability"] for label in reply.json()["labels"]}
    np.testing.assert_allclose([told["cyan"], told["pink"]], logits.sigmoid().numpy(), rtol=1e-6)
    assert own_service.http.get("/models").json()["models"][0]["version"] == "4"
    assert "served is: 4" in refusal(own_service.http.get("/v2/models/colour/versions/3"), 404)


def test_infer_during_a_rollout_is_held_to_its_version_and_size(own_service, tmp_path):
    bundle = make_bundle(tmp_path / "new", size=5)
    own_service.clients["colour"].become(LocalModel(served(bundle, version="4")))
    body, headers = encode_request(random_image((SIZE, SIZE))[None])
    pinned = own_service.http.post("/v2/models/colour/versions/3/infer", content=body, headers=headers)
    assert "no version '3'; served is: 4" in refusal(pinned, 404)
    reply = own_service.http.post("/v2/models/colour/infer", content=body, headers=headers)
    assert "[N,5,5,3]" in refusal(reply, 422)


OWN = ("crab", "gnu", "bee")
PROMPTS = {"warm": ["rrr", "r and a bit of g"], "cold": ["bbb"]}


def told(reply):
    assert reply.status_code == 200, reply.text
    return {label["name"]: label["probability"] for label in reply.json()["labels"]}


def expected_choice(image, prompts):
    probs = expected_open_probs(torch.from_numpy(resize_image(image, SIZE)[None]), prompts)[0].tolist()
    return pytest.approx(dict(zip(prompts, probs, strict=True)), rel=1e-5)


def ask_open(service, form, classes=None, prompts=None, model="open"):
    said = {name: value for name, value in (("classes", classes), ("prompts", prompts)) if value is not None}
    data = encoded(random_image())
    if form == "json":
        return service.http.post(f"/predict/{model}", json={"image": base64.b64encode(data).decode(), **said})
    fields = {name: json.dumps(value) for name, value in said.items()}
    return service.http.post(f"/predict/{model}", files={"image": ("a.png", data, "image/png")}, data=fields)


@pytest.mark.parametrize("form", ["json", "multipart"])
def test_a_request_brings_its_classes(service, form):
    reply = ask_open(service, form, classes=list(OWN))
    assert told(reply) == expected_choice(random_image(), own_prompts(OWN))
    probs = list(told(reply).values())
    assert probs == sorted(probs, reverse=True)
    assert sum(probs) == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["json", "multipart"])
def test_a_request_brings_its_prompts(service, form):
    assert told(ask_open(service, form, prompts=PROMPTS)) == expected_choice(random_image(), PROMPTS)


def test_without_classes_the_models_own_are_meant(service):
    assert told(ask_open(service, "json")) == expected_choice(random_image(), own_prompts(CLASSES))
    raw = service.http.post("/predict/open", content=encoded(random_image()), headers=PNG)
    assert told(raw) == expected_choice(random_image(), own_prompts(CLASSES))


def test_the_top_of_a_requests_classes(service):
    data = base64.b64encode(encoded(random_image())).decode()
    reply = service.http.post("/predict/open?top=2", json={"image": data, "classes": ["b", "r", "g"]})
    assert len(told(reply)) == 2


def test_prompts_beyond_a_forms_usual_limit_are_read(service):
    prompts = {f"class {number}": ["r" * 499] * 4 for number in range(700)}
    assert len(json.dumps(prompts)) > 2**20
    assert len(told(ask_open(service, "multipart", prompts=prompts))) == 700


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("said", "prompts"), [({"classes": OWN}, own_prompts(OWN)), ({"prompts": PROMPTS}, PROMPTS)])
def test_infer_with_classes_of_the_request(service, binary, said, prompts):
    images = np.stack([random_image((SIZE, SIZE), seed) for seed in range(3)])
    body, headers = encode_request(images, binary=binary, **said)
    reply = service.http.post("/v2/models/open/infer", content=body, headers=headers)
    outputs = outputs_of(reply)
    expected = expected_open_probs(torch.from_numpy(images), prompts).numpy()
    assert outputs["logits"].shape == expected.shape
    np.testing.assert_allclose(outputs["probs"], expected, rtol=1e-5)


def test_a_model_says_whether_it_takes_classes(service):
    listed = {model["name"]: model["prompt_template"] for model in service.http.get("/models").json()["models"]}
    assert listed == {"colour": None, "other": None, "open": TEMPLATE}
    metadata = service.http.get("/v2/models/open").json()
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]}
    assert inputs["classes"] == ("BYTES", [-1])
    shapes = {tensor["name"]: tensor["shape"] for tensor in metadata["outputs"]}
    assert shapes["probs"] == [-1, -1]
    assert metadata["parameters"]["prompt_template"] == TEMPLATE
    assert [tensor["name"] for tensor in service.http.get("/v2/models/colour").json()["inputs"]] == ["images"]


def test_a_list_of_models_does_not_wait_for_one_that_is_down(own_service):
    own_service.clients["open"].failure = RefusedError(503, "gone", "overload")
    listed = {model["name"]: model["prompt_template"] for model in own_service.http.get("/models").json()["models"]}
    assert listed == {"colour": None, "other": None, "open": TEMPLATE}


def test_a_model_with_its_own_classes_only_says_so(service):
    message = refusal(ask_open(service, "json", classes=["cat"], model="colour"), 422)
    assert message == "model colour knows its own classes only; leave out 'classes' and 'prompts'"
    body, headers = encode_request(random_image((SIZE, SIZE))[None], classes=["cat"])
    reply = service.http.post("/v2/models/colour/infer", content=body, headers=headers)
    assert "model colour knows its own classes only" in refusal(reply, 422)
    assert service.traces[-1].reason == "vocabulary"


@pytest.mark.parametrize("form", ["json", "multipart"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"classes": []}, "'classes' must name at least one class"),
        ({"classes": ["a", "b", "a"]}, "'classes' names the class 'a' twice"),
        ({"classes": ["a", ""]}, "must not be empty"),
        ({"classes": ["a", 3]}, "a class name must be a text, got a number"),
        ({"classes": "a,b"}, "must be a list of class names, got a text"),
        ({"prompts": ["a"]}, "'prompts' must be an object of class name to a list of texts, got a list"),
        ({"prompts": {"a": "b"}}, "the prompts of 'a' must be a list of at least one text, got a text"),
        ({"classes": ["a"], "prompts": {"a": ["b"]}}, "not both"),
        ({"classes": ["unreadable"]}, "the classes can't be used: a text must be readable"),
    ],
)
def test_wrong_classes_are_refused(service, form, said, message):
    assert message in refusal(ask_open(service, form, **said), 422)
    assert service.traces[-1].reason == "vocabulary"


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat, dog", """must be JSON such as ["cat", "dog"]"""), ('{"a": ["x"], "a": ["y"]}', "the key 'a' twice")],
)
def test_a_form_field_that_is_no_json_is_refused(service, text, message):
    files = {"image": ("a.png", encoded(random_image()), "image/png")}
    reply = service.http.post("/predict/open", files=files, data={"classes": text})
    assert message in refusal(reply, 422)


def test_a_class_that_json_gives_twice_is_refused(service):
    image = base64.b64encode(encoded(random_image())).decode()
    body = f'{{"image": "{image}", "prompts": {{"a": ["x"], "a": ["y"]}}}}'
    reply = service.http.post("/predict/open", content=body, headers={"content-type": "application/json"})
    assert "the key 'a' twice" in refusal(reply, 422)


def test_a_text_tower_that_breaks_is_an_error_of_ours(tmp_path):
    service = Service(tmp_path, raises=False)
    message = refusal(ask_open(service, "json", classes=["broken"]), 500)
    assert "secret" not in message
    assert ask_open(service, "json", classes=["whole"]).status_code == 200


def test_images_are_preprocessed_as_the_bundle_says(own_service, tmp_path):
    image = random_image((12, 30))
    cut = Preprocessing(image_size=SIZE, resize="crop", interpolation="bicubic")
    bundle = make_bundle(tmp_path / "cut", preprocessing=cut)
    # To the ingress it is a roll-out: the first attempt stretches, the version that answers cuts.
    own_service.clients["colour"].become(LocalModel(served(bundle, version="4")))
    reply = own_service.http.post("/predict/colour", content=encoded(image), headers=PNG)
    resized = resize_image(image, SIZE, resize="crop", interpolation="bicubic")
    probs = expected_logits(bundle.folder, torch.from_numpy(resized[None]))[0].sigmoid().tolist()
    assert told(reply) == pytest.approx(dict(zip(CLASSES, probs, strict=True)), rel=1e-6)
    stretched = expected_logits(bundle.folder, torch.from_numpy(resize_image(image, SIZE)[None]))[0].sigmoid()
    assert np.abs(np.subtract(probs, stretched.tolist())).max() > 1e-3  # else this test tells nothing
    parameters = own_service.http.get("/v2/models/colour").json()["parameters"]
    assert (parameters["resize"], parameters["interpolation"]) == ("crop", "bicubic")


def test_classification_without_an_open_vocabulary(own_service, tmp_path):
    bundle = make_bundle(tmp_path / "one", task=Task.CLASSIFICATION)
    own_service.clients["colour"].become(LocalModel(served(bundle, version="4")))
    labels = told(own_service.http.post("/predict/colour", content=encoded(random_image()), headers=PNG))
    logits = expected_logits(bundle.folder, torch.from_numpy(resize_image(random_image(), SIZE)[None]))[0]
    assert labels == pytest.approx(dict(zip(CLASSES, logits.softmax(dim=0).tolist(), strict=True)), rel=1e-5)
    assert list(labels.values()) == sorted(labels.values(), reverse=True)
    assert sum(labels.values()) == pytest.approx(1.0)
