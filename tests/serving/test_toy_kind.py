"""A new kind of answer is one module (``toy_kind.py``, 69 lines) and one row of the table: nothing else knows it.

Its model takes a text for each example and a parameter, and gives two tensors, and a third one, of texts, on request.
"""

import asyncio
import io
import json
import time

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from serve.clients.local import LocalModel
from serve.contract import Call, RefusedError
from serve.tasks import table
from tenfold.bundle import save_trained
from tenfold.tasks import Param, Signature, Slot
from tenfold.types import Task
from tests.serving.local import PNG, LocalService, refusal
from tests.serving.stand_ins import make_bundle, served
from tests.serving.test_golden_replies import MODELS
from tests.serving.v2_client import encode_inputs, outputs_of

MODULE = "tests.serving.toy_kind"
LOADER = "tests.serving.test_toy_kind:load_predictor"
SIGNATURE = Signature(
    kind="toy",
    task=Task.RETRIEVAL,
    inputs=(Slot(name="text", dtype="text"),),
    outputs=(
        Slot(name="length", dtype="int64"),
        Slot(name="letters", dtype="float32", shape=(26,)),
        Slot(name="written", dtype="text", optional=True),
    ),
    params=(
        Param(
            name="case",
            schema={"type": "string", "enum": ["upper", "lower"], "description": "upper or lower"},
            repeated=True,
        ),
    ),
)


class ToyPredictor:
    """Counts the letters of one case, ``a`` first; ``slow`` takes a while, ``poison`` makes it raise."""

    signature = SIGNATURE

    def __call__(self, *, text, case="lower"):
        time.sleep(0.3 if "slow" in text else 0)
        texts = [each for each in text if each != "poison"]
        if len(texts) < len(text):
            raise ValueError("a poisoned text")
        first = ord("A" if case == "upper" else "a")
        counts = [[float(each.count(chr(first + k))) for k in range(26)] for each in texts]
        return {"length": torch.tensor([len(each) for each in texts]), "letters": torch.tensor(counts)}


def load_predictor(bundle, device="cpu"):
    assert bundle.metadata.signature == SIGNATURE
    return ToyPredictor()


def make_toy_bundle(folder):
    return save_trained(
        folder,
        ToyPredictor(),
        {"text": ["aBc", "zz"]},
        config={},
        tensors={"none": torch.zeros(1)},
        method="toy",
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
    )


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.MODULES, "toy", MODULE)
        yield patch


@pytest.fixture(scope="module")
def bundle(patch, tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def service(patch, bundle, tmp_path_factory):
    toy = served(bundle, "toy", version="2", loader=LOADER, max_batch_size=4)
    colour = served(make_bundle(tmp_path_factory.mktemp("other") / "colour"))
    return LocalService([toy, colour], max_text_characters=10, max_images=5, raises=False)


def counts(text, case="lower"):
    return ToyPredictor()(text=[text], case=case)["letters"][0].tolist()


def predict(service, content, query=""):
    return service.http.post(f"/predict/toy{query}", json=content)


def infer(service, texts, outputs=None, model="toy", **options):
    body, headers = encode_inputs({"text": np.array(texts, object)}, **options)
    if outputs is not None:
        length = int(headers.get("Inference-Header-Content-Length", len(body)))
        head = json.dumps(json.loads(body[:length]) | {"outputs": [{"name": name} for name in outputs]}).encode()
        body = head + body[length:]
        if "Inference-Header-Content-Length" in headers:
            headers["Inference-Header-Content-Length"] = str(len(head))
    return service.http.post(f"/v2/models/{model}/infer", content=body, headers=headers)


# -- plain


def test_people_send_a_text_and_see_both_tensors(service):
    reply = predict(service, {"inputs": {"text": "aBa ä"}})
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert (told["model"], told["version"], told["task"]) == ("toy", "2", "retrieval")
    assert told["outputs"] == {"length": 5, "letters": counts("aBa ä")}
    assert "case" not in told
    trace = service.traces[-1]
    assert (trace.model, trace.version, trace.num_images, trace.status) == ("toy", "2", 1, 200)


def test_the_parameter_comes_in_the_query_or_in_the_body_once(service):
    content = {"inputs": {"text": "aBa"}}
    for reply in (predict(service, content, "?case=upper"), predict(service, content | {"case": "upper"})):
        assert reply.json()["case"] == "upper"
        assert reply.json()["outputs"]["letters"] == counts("aBa", "upper")
    twice = predict(service, content | {"case": "upper"}, "?case=upper")
    assert "'case' is given in the query and in the body; give it once" in refusal(twice, 422)


# -- v2


@pytest.mark.parametrize("binary", [True, False])
def test_programs_send_texts_as_json_or_raw_bytes(service, binary):
    reply = infer(service, ["aBa", "", "ä€𝄞"], binary=binary, parameters={"case": "upper"})
    outputs = outputs_of(reply)
    assert list(outputs) == ["length", "letters"]
    assert outputs["length"].dtype == np.int64
    assert outputs["length"].tolist() == [3, 0, 3]
    assert outputs["letters"].dtype == np.float32
    assert outputs["letters"].tolist() == [counts(text, "upper") for text in ("aBa", "", "ä€𝄞")]
    if not binary:
        assert reply.json()["parameters"] == {"case": "upper"}
    assert service.traces[-1].num_images == 3


@pytest.mark.parametrize("binary", [True, False])
def test_texts_come_back_as_json_or_raw_bytes(service, binary):
    reply = infer(service, ["aBa", "", "ä€𝄞"], ["written", "length"], binary=binary)
    outputs = outputs_of(reply)
    assert list(outputs) == ["written", "length"]
    assert outputs["written"].tolist() == ["aba", "", "ä€𝄞"]
    head = json.loads(reply.content[: int(reply.headers.get("inference-header-content-length", len(reply.content)))])
    assert [tensor["datatype"] for tensor in head["outputs"]] == ["BYTES", "INT64"]


# -- what is told about it


def test_the_metadata_describe_it(service):
    told = service.http.get("/v2/models/toy").json()
    assert told["platform"] == "tenfold_toy"
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert told["outputs"] == [
        {"name": "length", "datatype": "INT64", "shape": [-1]},
        {"name": "letters", "datatype": "FP32", "shape": [-1, 26]},
        {"name": "written", "datatype": "BYTES", "shape": [-1], "parameters": {"optional": True}},
    ]
    assert told["parameters"] == {"task": "retrieval"}


def test_the_list_of_models_describes_it(service):
    [told] = [model for model in service.http.get("/models").json()["models"] if model["name"] == "toy"]
    assert told["inputs"] == [{"name": "text", "dtype": "text", "shape": [], "max_value": None}]
    assert (told["task"], told["classes"], told["image_size"], told["explains"]) == ("retrieval", [], None, False)


def test_the_openapi_page_has_a_typed_body_and_the_parameter(service):
    post = service.http.get("/openapi.json").json()["paths"]["/predict/toy"]["post"]
    assert post["requestBody"]["content"].keys() == {"application/json"}
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["inputs"]
    assert schema["properties"]["inputs"]["properties"] == {"text": {"type": "string"}}
    assert schema["properties"]["case"]["enum"] == ["upper", "lower"]
    assert [(each["name"], each["schema"]["enum"]) for each in post["parameters"]] == [("case", ["upper", "lower"])]
    outputs = post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["outputs"]
    assert outputs["required"] == ["length", "letters"]


def test_every_example_of_the_openapi_page_is_answered(patch, bundle, tmp_path):
    models = [served(bundle, "toy", loader=LOADER)]
    for name, (make, settings, options) in MODELS.items():
        models.append(served(make(tmp_path / name, **settings), name, **options))
    service = LocalService(models)
    tried = set()
    for path, item in service.http.get("/openapi.json").json()["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        if "example" in content.get("application/json", {}):
            reply = service.http.post(path, json=content["application/json"]["example"])
            assert reply.status_code == 200, (path, reply.text)
            tried.add(path)
    assert {"/predict/toy", "/v2/models/toy/infer", "/predict/table", "/v2/models/molecule/infer"} <= tried
    infers = {path for path in tried if path.count("/") == 4}
    assert len(infers) == len(models)


# -- refusals


@pytest.mark.parametrize(
    ("content", "query", "message"),
    [
        ({"inputs": {"text": 3}}, "", "'text' must hold texts, got 3"),
        ({"inputs": {"text": ["a"]}}, "", "'text' must be text [N]"),
        ({"inputs": {"text": None}}, "", "'text' must hold texts, got None"),
        ({"inputs": {"text": "a" * 11}}, "", "a text of 'text' may have at most 10 characters, got 11"),
        ({"inputs": {"text": "\ud800"}}, "", "'text' must hold Unicode texts"),
        ({"inputs": {}}, "", "'inputs' must be text, got none"),
        ({"inputs": {"text": "a", "\ud800": 1}}, "", "'inputs' must be text, got text, "),
        ({}, "", "the JSON needs an example's numbers by name under 'inputs'"),
        ({"inputs": {"text": "a"}}, "?case=title", "'case' must be upper or lower, got 'title'"),
        ({"inputs": {"text": "a"}, "case": 3}, "", "'case' must be upper or lower, got 3"),
        ({"inputs": {"text": "a"}, "case": "\ud800"}, "", "'case' must be upper or lower"),
        ({"inputs": {"text": "a"}}, "?top=1", "model toy does retrieval, which knows no 'top'"),
        ({"image": "aGVsbG8="}, "", "model toy takes no picture; send JSON with 'inputs': text"),
    ],
)
def test_people_are_told_what_is_wrong(service, content, query, message):
    body = json.dumps(content)  # with half of a surrogate pair, which httpx won't write
    reply = service.http.post(f"/predict/toy{query}", content=body, headers={"content-type": "application/json"})
    assert message in refusal(reply, 422)
    assert service.traces[-1].reason


def test_files_and_other_content_types_are_refused(service):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    png = buffer.getvalue()
    assert "takes no picture" in refusal(service.http.post("/predict/toy", content=png, headers=PNG), 422)
    form = service.http.post("/predict/toy", files={"text": ("a.png", png, "image/png")})
    assert "takes no picture" in refusal(form, 422)
    text = service.http.post("/predict/toy", content=b"a", headers={"content-type": "text/plain"})
    assert "the content type text/plain is not accepted: send JSON with 'inputs'" in refusal(text, 415)
    wrong = service.http.post("/predict/toy", files={"text": ("a.txt", b"a", "text/plain")})
    assert "text/plain is not accepted" in refusal(wrong, 415)


def tensor(**changes):
    return {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]} | changes


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        ([], 422, "the inputs are text, each once; got []"),
        ([tensor(name="texts")], 422, "the inputs are text, each once; got ['texts']"),
        ([tensor(datatype="FP32")], 422, "'text' must have datatype BYTES, got 'FP32'"),
        ([tensor(data=[1])], 422, "'text' must hold texts, got other values"),
        ([tensor(data=["a" * 11])], 422, "may have at most 10 characters, got 11"),
        ([tensor(data=["\ud800"])], 422, "must hold Unicode texts"),
        ([tensor(shape=[2])], 422, "must hold 2 texts for shape [2], got 1"),
        ([tensor(shape=[1, 1])], 422, "'text' must be text [N]"),
        ([tensor(shape=[6], data=["a"] * 6)], 422, "at most 5 examples, got 6"),
        ([tensor(data="a")], 400, "the tensor 'text' needs a list under 'data'"),
    ],
)
def test_programs_are_told_what_is_wrong(service, inputs, status, message):
    body = json.dumps({"inputs": inputs})
    assert message in refusal(service.http.post("/v2/models/toy/infer", content=body), status)


def test_other_words_and_outputs_are_refused_over_v2(service):
    assert "'case' must be upper" in refusal(infer(service, ["a"], binary=False, parameters={"case": "x"}), 422)
    assert "the model has no output 'more'" in refusal(infer(service, ["a"], ["more"], binary=False), 422)


# -- batches and peers


def test_calls_share_batches_and_the_poisoned_one_fails_alone(service):
    loaded = service.clients["toy"].loaded
    loaded.batches.clear()

    async def ask(texts):
        transport = httpx.ASGITransport(service.http.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            sent = [client.post("/predict/toy", json={"inputs": {"text": text}}) for text in texts]
            return await asyncio.gather(*sent)

    replies = asyncio.run(ask(["slow", "poison", "bb", "ccc", "d", "eeeee"]))
    assert [reply.status_code for reply in replies] == [200, 500, 200, 200, 200, 200]
    assert [reply.json()["outputs"]["length"] for reply in replies if reply.status_code == 200] == [4, 2, 3, 1, 5]
    assert sum(loaded.batches) == 6
    assert max(loaded.batches) == 4


def test_a_kind_may_ask_a_peer_and_tells_what_that_cost(service, bundle):
    asking = LocalModel(served(bundle, "asking", loader=LOADER), peers={"toy": service.clients["toy"]})
    call = Call(inputs={"text": np.array(["ab", "c"], object)}, params={"case": "upper"})
    answer = asyncio.run(asking.ask(call, "1"))
    assert answer.outputs["length"].tolist() == [3, 2]
    assert dict(answer.spent) == {"queries": 2}
    assert (answer.version, answer.description) == ("1", None)
    asyncio.run(asking.check_health())
    wrong = asyncio.run(asking.ask(Call(inputs={"text": np.zeros((2, 2))}), "1"))
    assert isinstance(wrong, RefusedError)
    assert wrong.description.name == "asking"


def test_a_kind_without_a_row_does_not_load(bundle, monkeypatch):
    monkeypatch.delitem(table.MODULES, "toy")
    with pytest.raises(ValueError, match="kind must be one of labels, regression, concepts, got 'toy'; add its row"):
        LocalModel(served(bundle, "toy", loader=LOADER))
