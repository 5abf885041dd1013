"""The desk: whom it asks and when, what it lets pass, and how much it decodes at once."""

import asyncio
import base64
import json
import math
from dataclasses import replace

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve.clients.local import LocalModel
from serve.contract import Answer, Call, Description, RefusedError
from serve.http.app import App
from serve.http.desk import Desk
from serve.http.keys import Keys
from serve.settings import ServeSettings
from serve.tasks.table import kind_of, words
from tenfold.tasks import classification
from tenfold.types import Preprocessing
from tests.serving.local import PNG, LocalService, Recorder, encoded, random_image, refusal
from tests.serving.stand_ins import SIZE, ColourPredictor, make_bundle, served
from tests.serving.v2_client import encode_request, outputs_of

SIGNATURE = classification(("a", "b"), Preprocessing(image_size=SIZE), scores=["doubt"])
KNOWN = Description(name="m", version="1", method="any", signature=SIGNATURE)
EARLIER = replace(KNOWN, signature=classification(("a", "b"), Preprocessing(image_size=SIZE)), whole=False)


class Counting:
    """A client that counts what it is asked."""

    def __init__(self):
        self.is_ready = True
        self.asked = []

    async def ask(self, call, known_version, required_version=None):
        self.asked.append("ask")
        outputs = {"probs": np.float32([[0.25, 0.75]]), "logits": np.float32([[0, 1]]), "doubt": np.float32([0.5])}
        return Answer(version="1", outputs=outputs)

    async def describe(self):
        self.asked.append("describe")
        return KNOWN

    def ready(self):
        return self.is_ready


async def get(app, *paths):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        return [await client.get(path) for path in paths]


def app_over(client, description):
    return App(Desk({"m": client}, [description], ServeSettings()), kind_of, words(), None, Recorder())


# -- descriptions and readiness


@pytest.mark.parametrize("description", [KNOWN, EARLIER])
def test_readiness_asks_no_model(description):
    client = Counting()
    app = app_over(client, description)
    paths = ("/v2/health/ready", "/v2/health/live", "/v2/models/m/ready", "/v2/models/m/versions/1/ready")
    assert [reply.status_code for reply in asyncio.run(get(app, *paths))] == [200, 200, 200, 200]
    client.is_ready = False
    assert [reply.status_code for reply in asyncio.run(get(app, *paths))] == [400, 200, 400, 400]
    assert client.asked == []


def test_a_model_whose_bundle_says_all_is_never_asked_what_it_is():
    client = Counting()
    replies = asyncio.run(get(app_over(client, KNOWN), "/models", "/v2/models/m", "/openapi.json"))
    assert all(reply.status_code == 200 for reply in replies)
    assert client.asked == []


def test_a_model_of_an_earlier_bundle_is_asked_once():
    client = Counting()
    app = app_over(client, EARLIER)
    replies = asyncio.run(get(app, "/openapi.json", "/v2/models/m", "/v2/models/m", "/models", "/models"))
    assert [tensor["name"] for tensor in replies[1].json()["outputs"]] == ["probs", "logits", "doubt"]
    assert client.asked == ["describe"]


def test_a_call_to_a_model_of_an_earlier_bundle_is_made_for_what_the_model_says():
    client = Counting()
    desk = Desk({"m": client}, [EARLIER], ServeSettings())
    seen = []

    async def make_call(description):
        seen.append(description)
        return Call(inputs={"images": np.zeros((1, SIZE, SIZE, 3), np.uint8)})

    for _ in range(3):
        asyncio.run(desk.ask("m", None, make_call))
    assert seen == [KNOWN] * 3
    assert client.asked == ["describe", "ask", "ask", "ask"]


def test_clients_and_descriptions_belong_together():
    with pytest.raises(ValueError, match=r"clients \['x'\] and descriptions \['m'\] differ"):
        Desk({"x": Counting()}, [KNOWN], ServeSettings())


def test_a_model_that_keeps_changing_is_given_up_with_a_time_to_try_again():
    sizes = iter(range(5, 20))

    class Restless(Counting):
        async def ask(self, call, known_version, required_version=None):
            size = next(sizes)
            signature = classification(("a", "b"), Preprocessing(image_size=size))
            told = replace(KNOWN, version=str(size), signature=signature)
            return Answer(version=str(size), outputs={}, description=told)

    desk = Desk({"m": Restless()}, [KNOWN], ServeSettings())
    made = []

    async def make_call(description):
        made.append(description.signature.preprocessing.image_size)
        return Call(inputs={})

    with pytest.raises(RefusedError, match="is changing its version") as refused:
        asyncio.run(desk.ask("m", None, make_call))
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    assert made == [SIZE, 5, 6]


def test_a_call_has_the_time_of_the_request():
    class Slow(Counting):
        async def ask(self, call, known_version, required_version=None):
            self.asked.append(call.budget.deadline)
            await asyncio.sleep(5)

    client = Slow()
    desk = Desk({"m": client}, [KNOWN], ServeSettings(request_timeout_s=0.05))

    async def make_call(_):
        return Call(inputs={})

    with pytest.raises(RefusedError, match=r"gave no answer in 0\.05 s") as refused:
        asyncio.run(desk.ask("m", None, make_call))
    assert refused.value.status == 504
    assert client.asked[0] is not None


# -- numbers that are none


SICK = {250: ("logits", math.nan), 249: ("probs", math.inf), 248: ("batch_size", -math.inf)}


class SickPredictor(ColourPredictor):
    """The first value of the images says which output is sick, and of what."""

    def __call__(self, images):
        outputs = dict(super().__call__(images))
        if case := SICK.get(int(images[0, 0, 0, 0])):
            outputs[case[0]] = outputs[case[0]] * 0 + case[1]
        return outputs


def load_sick(bundle, device="cpu"):
    return SickPredictor(bundle)


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    bundle = make_bundle(tmp_path_factory.mktemp("sick") / "bundle")
    return LocalService([served(bundle, "sick", loader="tests.serving.test_desk:load_sick")])


def image(first):
    picture = np.full((SIZE, SIZE, 3), 100, np.uint8)
    picture[0, 0, 0] = first
    return picture


@pytest.mark.parametrize("first", SICK)
def test_no_protocol_passes_on_what_is_no_number(sick, first):
    output = SICK[first][0]
    replies = [sick.http.post("/predict/sick", content=encoded(image(first)), headers=PNG)]
    for binary in (True, False):
        body, headers = encode_request(image(first)[None], binary=binary)
        replies.append(sick.http.post("/v2/models/sick/infer", content=body, headers=headers))
    sentences = {refusal(reply, 422) for reply in replies}
    assert sentences == {
        f"model sick answers this request with NaN or infinite numbers in {output!r}; send other inputs, or ask for "
        "other outputs"
    }
    assert [trace.reason for trace in sick.traces[-3:]] == ["not_finite"] * 3


@pytest.mark.parametrize("binary", [True, False])
def test_the_other_outputs_can_be_asked_for(sick, binary):
    body, _ = encode_request(image(250)[None], binary=False, parameters={"binary_data_output": binary})
    request = json.loads(body)
    for names, status in ((["probs", "batch_size"], 200), (["probs", "logits"], 422)):
        content = request | {"outputs": [{"name": name} for name in names]}
        reply = sick.http.post("/v2/models/sick/infer", json=content)
        assert reply.status_code == status
        if status == 200:
            assert list(outputs_of(reply)) == names
        else:
            assert "in 'logits'" in refusal(reply, 422)


# -- decoding


def test_more_pixels_than_there_is_room_for_are_refused_while_small_requests_are_answered(tmp_path):
    service = LocalService([served(make_bundle(tmp_path / "b"))], max_decoding_pixels=9_000_000, retry_after_s=2.0)
    large, small = encoded(np.zeros((2000, 2000, 3), np.uint8)), encoded(random_image())
    in_json = {"image": base64.b64encode(large).decode()}
    tensors = encode_request(image(1)[None])

    async def ask():
        transport = httpx.ASGITransport(service.http.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            great = [client.post("/predict/colour", content=large, headers=PNG) for _ in range(20)]
            great += [client.post("/predict/colour", json=in_json) for _ in range(10)]
            great += [client.post("/predict/colour", files={"image": ("a.png", large)}) for _ in range(10)]
            few = [client.post("/predict/colour", content=small, headers=PNG) for _ in range(10)]
            few += [client.post("/v2/models/colour/infer", content=tensors[0], headers=tensors[1]) for _ in range(10)]
            replies = await asyncio.gather(*great, *few)
            again = await client.post("/predict/colour", content=large, headers=PNG)
            return replies[:40], replies[40:], again

    great, few, again = asyncio.run(ask())
    assert {reply.status_code for reply in few} == {200}
    answered = [reply for reply in great if reply.status_code == 200]
    refused = [reply for reply in great if reply.status_code != 200]
    assert 1 <= len(answered) < 20
    for reply in refused:
        assert "as many pictures as there is room for are being decoded; try again" in refusal(reply, 503)
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["retry-after"] == "2"
    assert {trace.reason for trace in service.traces if trace.status == 503} == {"overload"}
    assert again.status_code == 200  # the room is given back


def test_one_image_beyond_the_room_is_decoded_alone(tmp_path):
    service = LocalService([served(make_bundle(tmp_path / "b"))], max_decoding_pixels=1000)
    for data in (np.zeros((300, 300, 3), np.uint8), random_image()):
        reply = service.http.post("/predict/colour", content=encoded(data), headers=PNG)
        assert reply.status_code == 200, reply.text


def test_a_replica_of_the_version_before_does_not_hide_the_one_that_follows(tmp_path):
    first = served(make_bundle(tmp_path / "first"), version="1")
    second = served(make_bundle(tmp_path / "second", seed=3), version="2")
    service = LocalService([second])
    client = service.clients["colour"]
    client.become(LocalModel(first), LocalModel(second))
    body, headers = encode_request(random_image((SIZE, SIZE))[None])
    path = "/v2/models/colour/versions/2/infer"
    replies = [service.http.post(path, content=body, headers=headers) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [404, 200, 404, 200]


def test_probes_need_no_key_below_a_prefix_either(tmp_path):
    service = LocalService([served(make_bundle(tmp_path / "one"))], keys=Keys({"anna": "0" * 64}))
    http = TestClient(service.http.app, root_path="/demo")
    assert http.get("/demo/v2/health/ready").json() == {"ready": True}
    assert http.get("/demo/models").status_code == 401
