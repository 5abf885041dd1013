"""Requests that would cost much more than they weigh: each is refused with a sentence, in no time and little memory."""

import base64
import json
import time
import zlib

import numpy as np
import pytest

from serve.contract import shown
from serve.tasks import table
from tests.serving.local import LocalService, encoded, refusal
from tests.serving.stand_ins import served
from tests.serving.test_golden_replies import MODELS
from tests.serving.test_toy_kind import LOADER, MODULE, make_toy_bundle

JSON = "application/json"
LONG = "x" * 60_000


def infer(data, *, shape="[1, 3]", datatype='"FP32"', more=""):
    tensor = f'{{"name": "input", "datatype": {datatype}, "shape": {shape}, "data": {data}}}'
    return f'{{"inputs": [{tensor}]{more}}}'


def deep(depth):
    return "[" * depth + "1" + "]" * depth


IMAGES = json.dumps({"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [1] * 192})
PLAIN, V2 = "/predict/table", "/v2/models/table/infer"
REQUESTS = {
    "lists": (PLAIN, '{"inputs": {"input": [' + "[]," * 3_000_000 + "[]]}}"),
    "objects": (V2, '{"inputs": [' + "{}," * 3_000_000 + "{}]}"),
    "a long text among numbers": (PLAIN, f'{{"inputs": {{"input": ["{"x" * 2**20}"{",1" * 500_000}]}}}}'),
    "a long text among numbers, v2": (V2, infer(f'["{"x" * 2**20}"{",1" * 500_000}]')),
    "short texts among numbers": (V2, infer('["a"' + ",1" * 2_000_000 + "]")),
    "a shape of millions": (V2, infer("[1]", shape="[1" + ",1" * 2_000_000 + "]")),
    "a datatype of millions": (V2, infer("[1]", datatype="[1" + ",1" * 2_000_000 + "]")),
    "a level of millions": (PLAIN, '{"inputs": {"input": [1, 2, 3]}, "level": [1' + ",1" * 2_000_000 + "]}"),
    "millions of classes to explain": (
        "/v2/models/tints/infer",
        f'{{"inputs": [{IMAGES}], "parameters": {{"explain": true, "explain_class": [1{",1" * 2_000_000}]}}}}',
    ),
    "an unknown model with a long name": (f"/predict/{LONG}", "{}"),
    "an unknown version with a long name": (f"/v2/models/table/versions/{LONG}/infer", "{}"),
    "an input with a long name": (PLAIN, f'{{"inputs": {{"{LONG}": 1}}}}'),
    "an output with a long name": (V2, infer("[1, 2, 3]", more=f', "outputs": [{{"name": "{LONG}"}}]')),
    "an encoding with a long name": (V2, infer("[1, 2, 3]"), {"content-encoding": LONG}),
    "a content type with a long name": (PLAIN, "{}", {"content-type": LONG}),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costly")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.MODULES, "toy", MODULE)
        models = [served(make_toy_bundle(folder / "toy"), "toy", loader=LOADER)]
        for name in ("tints", "table", "image"):
            make, of_bundle, options = MODELS[name]
            models.append(served(make(folder / name, **of_bundle), name, **options))
        yield LocalService(models)


def post(service, path, content, headers=None):
    return service.http.post(path, content=content, headers={"content-type": JSON, **(headers or {})})


@pytest.mark.parametrize("name", REQUESTS)
def test_what_costs_much_is_refused_at_once(service, name):
    path, content, *headers = REQUESTS[name]
    data = content.encode()
    started = time.perf_counter()
    reply = post(service, path, data, *headers)
    assert time.perf_counter() - started < 3  # much less on a machine of its own
    assert reply.status_code in (400, 404, 415, 422)
    assert len(refusal(reply, reply.status_code)) <= 2003


@pytest.mark.parametrize("place", ["toy", "level", "shape", "case", "explain", "id"])
def test_no_depth_of_json_breaks_anything(service, place):
    for depth in [*range(1, 80, 13), *range(80, 1010, 60), *range(960, 1010)]:
        path, content = {
            "toy": ("/predict/toy", f'{{"inputs": {{"text": {deep(depth)}}}}}'),
            "case": ("/predict/toy", f'{{"inputs": {{"text": "a"}}, "case": {deep(depth)}}}'),
            "level": (PLAIN, f'{{"inputs": {{"input": [1, 2, 3]}}, "level": {deep(depth)}}}'),
            "explain": ("/predict/tints", f'{{"image": "", "explain": {deep(depth)}}}'),
            "shape": (V2, infer("[1]", shape=deep(depth))),
            "id": (V2, infer("[1, 2, 3]", more=f', "id": {deep(depth)}')),
        }[place]
        reply = post(service, path, content)
        assert reply.status_code in (400, 422), (depth, reply.text)


def test_an_image_of_too_many_numbers_is_refused_before_they_are_made(service, monkeypatch):
    data = encoded(np.zeros((600, 600, 3), np.uint8))
    monkeypatch.setattr(np, "ascontiguousarray", None)
    reply = service.http.post("/predict/image", content=data, headers={"content-type": "image/png"})
    assert "may hold at most 250000 numbers, got 1080000" in refusal(reply, 422)


def test_an_image_with_more_data_than_pixels_is_read_no_further(service):
    png = encoded(np.zeros((4, 4, 3), np.uint8))
    at = png.index(b"IDAT")
    bomb = zlib.compress(bytes(200_000_000), 9)
    crc = zlib.crc32(b"IDAT" + bomb)
    data = png[: at - 4] + len(bomb).to_bytes(4, "big") + b"IDAT" + bomb + crc.to_bytes(4, "big") + png[-12:]
    started = time.perf_counter()
    reply = post(service, "/predict/tints", json.dumps({"image": base64.b64encode(data).decode()}))
    assert reply.status_code in (200, 422)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("value", [[*range(1000)], ["a" * 1000], "it's " * 100, {"a": 1}, [[1]] * 100])
def test_long_lists_are_quoted_by_their_beginning(value):
    text = repr(value)
    assert shown(value) == (text if len(text) <= 80 else f"{text[:80]}...")
