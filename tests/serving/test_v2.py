"""Encoding and decoding of the Open Inference Protocol: round trips, layouts by hand, refusals."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.contract import Answer, Description, Limits, RefusedError
from serve.protocols import v2
from serve.tasks import slots
from serve.tasks.labels import kind as labels
from serve.tasks.labels.vocabulary import Vocabulary, vocabulary_of
from tenfold.tasks import Param, Signature, Slot, classification, multi_label
from tenfold.types import Preprocessing, Task
from tests.serving.v2_client import decode_response, encode_inputs, encode_request, join_texts

SIZE = 4
LIMITS = Limits(max_images=8, max_classes=4, max_prompts=6, max_text_characters=9)


def random_images(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, SIZE, SIZE, 3)).astype(np.uint8)


def described(template=None, constructor=classification, **more):
    signature = constructor(
        ("a", "b"),
        Preprocessing(image_size=SIZE),
        scores=[Slot(name="spread", dtype="float32", shape=(5,))],
        **({} if template is None else {"prompt_template": template}),
        **more,
    )
    return Description(name="m", version="7", method="large_loss", signature=signature)


OPEN = described("a {}.")


def decode(body, headers=None):
    return v2.decode(body, (headers or {}).get(v2.JSON_LENGTH_HEADER), labels, OPEN, LIMITS)


def encode(request, outputs):
    call, form = request
    return v2.encode(form, call, OPEN, Answer(version="7", outputs=outputs), LIMITS)


def vocabulary_in(request):
    return vocabulary_of(request[0].inputs, LIMITS)


def tensor(**changes):
    images = random_images(1)
    return {
        "name": "images",
        "shape": [1, SIZE, SIZE, 3],
        "datatype": "UINT8",
        "data": images.ravel().tolist(),
    } | changes


def texts(name, elements, **changes):
    return {"name": name, "shape": [len(elements)], "datatype": "BYTES", "data": elements} | changes


@given(num_images=st.integers(1, 8), seed=st.integers(0, 999), binary=st.booleans())
def test_a_request_comes_back_as_it_was(num_images, seed, binary):
    images = random_images(num_images, seed)
    call, form = decode(*encode_request(images, binary=binary, request_id="a1"))
    np.testing.assert_array_equal(call.inputs["images"], images)
    assert form.request_id == "a1"
    assert form.binary_default is binary


@given(num_images=st.integers(1, 5), binary=st.booleans())
def test_a_response_comes_back_as_it_was(num_images, binary):
    outputs = {
        "probs": np.random.default_rng(0).random((num_images, 3)).astype(np.float32),
        "logits": np.random.default_rng(1).normal(size=(num_images, 3)).astype(np.float32),
    }
    request = decode(*encode_request(random_images(num_images), binary=binary))
    body, headers = encode(request, outputs)
    got = decode_response(body, headers.get(v2.JSON_LENGTH_HEADER.lower()))
    assert got.keys() == outputs.keys()
    for name, values in outputs.items():  # JSON keeps a float32 exactly: it is told as the double it equals
        np.testing.assert_array_equal(got[name], values)


def test_json_written_by_hand():
    body = json.dumps({"inputs": [tensor(data=list(range(48)))], "outputs": [{"name": "probs"}]}).encode()
    request = decode(body)
    assert request[0].inputs["images"][0, 0, 1].tolist() == [3, 4, 5]
    reply, headers = encode(request, {"probs": np.float32([[0.25, 1]]), "logits": np.zeros((1, 2))})
    assert headers == {"content-type": "application/json"}
    assert json.loads(reply) == {
        "model_name": "m",
        "model_version": "7",
        "outputs": [{"name": "probs", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 1.0]}],
    }


def test_nested_data_equals_flat_data():
    images = random_images(1)
    nested, _ = decode(json.dumps({"inputs": [tensor(data=images.tolist())]}).encode())
    np.testing.assert_array_equal(nested.inputs["images"], images)


def test_binary_layout_by_hand():
    header = json.dumps(
        {
            "inputs": [{k: v for k, v in tensor(parameters={"binary_data_size": 48}).items() if k != "data"}],
            "outputs": [
                {"name": "logits", "parameters": {"binary_data": True}},
                {"name": "probs", "parameters": {"binary_data": False}},
            ],
        }
    ).encode()
    request = decode(header + bytes(range(48)), {v2.JSON_LENGTH_HEADER: str(len(header))})
    assert request[0].inputs["images"].ravel().tolist() == list(range(48))
    body, headers = encode(request, {"probs": np.float32([[0.5]]), "logits": np.float32([[1.0]])})
    length = int(headers[v2.JSON_LENGTH_HEADER.lower()])
    logits, probs = json.loads(body[:length])["outputs"]
    assert logits["parameters"] == {"binary_data_size": 4}
    assert "data" not in logits
    assert probs["data"] == [0.5]
    assert body[length:] == b"\x00\x00\x80\x3f"  # 1.0, little-endian


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "JSON object, got list"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        ({}, 400, "list of tensors"),
        ({"inputs": [3]}, 400, "list of tensors"),
        ({"inputs": []}, 422, "the inputs are 'images' and, for a model with an open vocabulary, 'classes' or"),
        ({"inputs": [tensor(name="image")]}, 422, "each once; got ['image']"),
        ({"inputs": [tensor(name=["images"])]}, 422, "each once; got [['images']]"),
        ({"inputs": [tensor(), tensor()]}, 422, "each once; got ['images', 'images']"),
        ({"inputs": [texts("classes", ["a"])]}, 422, "each once; got ['classes']"),
        ({"inputs": [tensor(datatype="FP32")]}, 422, "UINT8, got 'FP32'"),
        ({"inputs": [tensor(shape=[1, 5, 5, 3])]}, 422, "[N,4,4,3] with N at least 1, got [1, 5, 5, 3]"),
        ({"inputs": [tensor(shape=[0, 4, 4, 3])]}, 422, "N at least 1"),
        ({"inputs": [tensor(shape=[-1, 4, 4, 3])]}, 422, "N at least 1"),
        ({"inputs": [tensor(shape=[True, 4, 4, 3])]}, 422, "N at least 1"),
        ({"inputs": [tensor(shape="1")]}, 422, "N at least 1"),
        ({"inputs": [tensor(shape=[9, 4, 4, 3])]}, 422, "at most 8 pictures, got 9"),
        ({"inputs": [tensor(data=[1, 2])]}, 422, "48 values for shape [1, 4, 4, 3], got [2]"),
        ({"inputs": [tensor(data=[256] * 48)]}, 422, "0 to 255, got 256 to 256"),
        ({"inputs": [tensor(data=[-1] * 48)]}, 422, "0 to 255"),
        ({"inputs": [tensor(data=[0.5] * 48)]}, 422, "whole numbers"),
        ({"inputs": [tensor(data=[True] * 48)]}, 422, "whole numbers"),
        ({"inputs": [tensor(data=["a"] * 48)]}, 422, "whole numbers"),
        ({"inputs": [tensor(data=[[1], [1, 2]])]}, 422, "flat or nested"),
        ({"inputs": [tensor(data=[10**30] * 48)]}, 422, "whole numbers"),
        ({"inputs": [tensor(data=None)]}, 400, "needs a list under 'data'"),
        ({"inputs": [tensor(parameters=3)]}, 400, "'parameters' must be an object"),
        ({"inputs": [tensor(parameters={"binary_data_size": 48})]}, 400, "not both"),
        ({"inputs": [tensor()], "id": 3}, 400, "'id' must be a string"),
        ({"inputs": [tensor()], "outputs": ["probs"]}, 400, "'outputs' must be"),
    ],
)
def test_a_wrong_request_is_told(body, status, message):
    with pytest.raises(RefusedError) as refused:
        decode(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert refused.value.status == status
    assert message in refused.value.sentence


@pytest.mark.parametrize(
    ("size", "extra", "length", "status", "message"),
    [
        (48, 47, None, 422, "binary_data_size comes to 48 bytes in all, and 47 bytes follow"),
        (48, 49, None, 422, "binary_data_size comes to 48 bytes in all, and 49 bytes follow"),
        (47, 47, None, 422, "takes 48 bytes; binary_data_size is 47"),
        ("48", 48, None, 422, "must be a number of bytes, got '48'"),
        (-1, 48, None, 422, "must be a number of bytes, got -1"),
        (True, 1, None, 422, "must be a number of bytes, got True"),
        (48, 48, "9999", 400, "a number up to the body's length"),
        (48, 48, "-1", 400, "a number up to the body's length"),
        (48, 48, "x", 400, "a number up to the body's length"),
        (None, 48, None, 400, "no tensor claims them"),
    ],
)
def test_wrong_binary_sizes_are_told(size, extra, length, status, message):
    part = tensor()
    if size is not None:
        del part["data"]
        part["parameters"] = {"binary_data_size": size}
    header = json.dumps({"inputs": [part]}).encode()
    with pytest.raises(RefusedError) as refused:
        decode(header + b"\0" * extra, {v2.JSON_LENGTH_HEADER: length or str(len(header))})
    assert refused.value.status == status
    assert message in refused.value.sentence


def test_an_unknown_output_names_those_there_are():
    request = decode(json.dumps({"inputs": [tensor()], "outputs": [{"name": "prob"}]}).encode())
    with pytest.raises(RefusedError, match="no output 'prob'; it has probs, logits"):
        encode(request, {"probs": np.zeros((1, 1)), "logits": np.zeros((1, 1))})


def test_metadata_has_the_shapes_with_an_open_batch_axis():
    metadata = v2.model_metadata(described(constructor=multi_label))
    assert metadata["versions"] == ["7"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 4, 4, 3]}]
    assert metadata["outputs"] == [
        {"name": "probs", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "spread", "datatype": "FP32", "shape": [-1, 5]},
    ]
    assert metadata["parameters"] == {
        "task": "multi_label", "classes": ["a", "b"], "resize": "stretch", "interpolation": "bilinear"
    }  # fmt: skip


def test_metadata_of_an_open_vocabulary_has_the_optional_inputs_and_an_open_class_axis():
    metadata = v2.model_metadata(OPEN)
    optional = {"datatype": "BYTES", "shape": [-1], "parameters": {"optional": True}}
    assert metadata["inputs"][1:] == [{"name": name} | optional for name in ("classes", "prompts", "prompt_classes")]
    assert [tensor["shape"] for tensor in metadata["outputs"]] == [[-1, -1], [-1, -1], [-1, 5]]
    assert metadata["parameters"]["prompt_template"] == "a {}."


names = st.lists(st.text(min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=4, unique=True)


@given(classes=names, binary=st.booleans())
def test_classes_come_back_as_they_were(classes, binary):
    images = random_images(2)
    request = decode(*encode_request(images, binary=binary, classes=classes))
    assert vocabulary_in(request) == Vocabulary(tuple(classes))
    np.testing.assert_array_equal(request[0].inputs["images"], images)


@pytest.mark.parametrize("binary", [True, False])
def test_prompts_come_back_as_they_were(binary):
    prompts = {"b": ["one", "two"], "ä": ["drei"]}
    request = decode(*encode_request(random_images(1), binary=binary, prompts=prompts))
    assert vocabulary_in(request) == Vocabulary(("b", "ä"), (("one", "two"), ("drei",)))


def test_prompts_of_a_class_need_not_stand_together():
    inputs = [texts("prompts", ["x", "y", "z"]), tensor(), texts("prompt_classes", ["a", "b", "a"])]
    request = decode(json.dumps({"inputs": inputs}).encode())
    assert vocabulary_in(request) == Vocabulary(("a", "b"), (("x", "z"), ("y",)))


def test_texts_before_the_images_by_hand():
    raw = b"\x03\0\0\0cat\x02\0\0\0\xc3\xa4"
    inputs = [
        {"name": "classes", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}},
        {"name": "images", "shape": [1, 4, 4, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 48}},
    ]
    header = json.dumps({"inputs": inputs}).encode()
    request = decode(header + raw + bytes(range(48)), {v2.JSON_LENGTH_HEADER: str(len(header))})
    assert vocabulary_in(request) == Vocabulary(("cat", "ä"))
    assert request[0].inputs["images"].ravel().tolist() == list(range(48))


def test_texts_as_bytes_beside_images_in_json():
    raw = b"\x01\0\0\0a"
    part = {"name": "classes", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    header = json.dumps({"inputs": [tensor(), part]}).encode()
    request = decode(header + raw, {v2.JSON_LENGTH_HEADER: str(len(header))})
    assert vocabulary_in(request) == Vocabulary(("a",))


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        ([texts("classes", [])], 422, "'classes' must name at least one class"),
        ([texts("classes", ["a", "a"])], 422, "names the class 'a' twice"),
        ([texts("classes", ["a", 1])], 422, "a class name must be a text, got a number"),
        ([texts("classes", ["a", " "])], 422, "a class name must not be empty"),
        ([texts("classes", list("abcde"))], 422, "at most 4 classes, got 5"),
        ([texts("classes", ["a" * 10])], 422, "at most 9 characters, got 10"),
        ([texts("classes", ["\ud800"])], 422, "must be Unicode text"),
        ([texts("classes", ["a"], shape=[2])], 422, "must hold 2 texts for shape [2], got 1"),
        ([texts("classes", ["a"], shape=[1, 1])], 422, "datatype BYTES and shape [K], got 'BYTES' and [1, 1]"),
        ([texts("classes", ["a"], shape=[-1])], 422, "shape [K]"),
        ([texts("classes", ["a"], shape=[True])], 422, "shape [K]"),
        ([texts("classes", ["a"], shape=None)], 422, "shape [K]"),
        ([texts("classes", ["a"], datatype="UINT8")], 422, "must have datatype BYTES"),
        ([texts("classes", ["a"], data=None)], 400, "the tensor 'classes' needs a list under 'data'"),
        ([texts("classes", ["a"]), texts("classes", ["a"])], 422, "each once"),
        ([texts("prompts", ["a"])], 422, "'prompts' and 'prompt_classes' come together"),
        ([texts("prompt_classes", ["a"])], 422, "'prompts' and 'prompt_classes' come together"),
        ([texts("prompts", ["a"]), texts("prompt_classes", ["a", "b"])], 422, "of one length, got 1 and 2"),
        ([texts("prompts", ["a"]), texts("prompt_classes", [["a"]])], 422, "'prompt_classes' must hold texts"),
        ([texts("prompts", [3]), texts("prompt_classes", ["a"])], 422, "a prompt of 'a' must be a text"),
        ([texts("prompts", []), texts("prompt_classes", [])], 422, "'prompts' must name at least one class"),
        ([texts("prompts", ["x"] * 7), texts("prompt_classes", ["a"] * 7)], 422, "at most 6 prompts in all, got 7"),
        (
            [texts("prompts", ["a"]), texts("prompt_classes", ["a"]), texts("classes", ["a"])],
            422,
            "either 'classes' or 'prompts'",
        ),
    ],
)
def test_wrong_texts_are_told(inputs, status, message):
    with pytest.raises(RefusedError) as refused:
        decode(json.dumps({"inputs": [tensor(), *inputs]}).encode())
    assert refused.value.status == status
    assert message in refused.value.sentence


@pytest.mark.parametrize(
    ("raw", "count", "message"),
    [
        (b"\x01\0\0\0a", 2, "must be 2 texts, each its length and its UTF-8"),
        (b"\x09\0\0\0a", 1, "1 texts of 'classes' take 13 bytes; binary_data_size is 5"),
        (b"\xff\xff\xff\xffa", 2, "must be 2 texts"),
        (b"\x01\0\0\0\xff", 1, "must be 1 texts, each its length and its UTF-8"),
        (b"\x01\0\0\0abc", 1, "1 texts of 'classes' take 5 bytes; binary_data_size is 7"),
        (b"\x01\0", 1, "must be 1 texts"),
    ],
)
def test_wrong_bytes_of_texts_are_told(raw, count, message):
    part = {"name": "classes", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [tensor(), part]}).encode()
    with pytest.raises(RefusedError) as refused:
        decode(header + raw, {v2.JSON_LENGTH_HEADER: str(len(header))})
    assert refused.value.status == 422
    assert message in refused.value.sentence


# -- slots of any kind

ANY = Description(
    name="any",
    version="1",
    method="any",
    signature=Signature(
        kind="any",
        task=Task.RETRIEVAL,
        inputs=(
            Slot(name="text", dtype="text"),
            Slot(name="pairs", dtype="text", shape=(2,), optional=True),
            Slot(name="names", dtype="text", optional=True, shared=True),
            Slot(name="x", dtype="float32", shape=(-1,), optional=True),
        ),
        outputs=(Slot(name="said", dtype="text"), Slot(name="flags", dtype="bool", shape=(2,))),
        params=(Param(name="k", schema={"type": "integer"}, repeated=True),),
    ),
)


def decode_any(body, headers):
    return v2.decode(body, headers.get(v2.JSON_LENGTH_HEADER), slots, ANY, LIMITS)


def asked(*tensors, raw=b"", length=None, **more):
    head = json.dumps({"inputs": list(tensors), **more}).encode()
    return head + raw, {v2.JSON_LENGTH_HEADER: str(len(head)) if length is None else length} if raw or length else {}


def refused_any(body, headers):
    with pytest.raises(RefusedError) as refused:
        decode_any(body, headers)
    assert 400 <= refused.value.status < 500
    return refused.value.sentence


@pytest.mark.parametrize("binary", [True, False])
def test_texts_of_examples_and_of_the_request_come_as_they_are(binary):
    inputs = {
        "text": np.array(["a", "", "ä€𝄞"], object),
        "pairs": np.array([["a", "b"], ["c", "d"], ["", "f"]], object),
        "names": np.array(list("vwxyz"), object),
        "x": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    call, _ = decode_any(*encode_inputs(inputs, binary=binary))
    assert {name: (values.shape, values.dtype.kind) for name, values in call.inputs.items()} == {
        "text": ((3,), "O"), "pairs": ((3, 2), "O"), "names": ((5,), "O"), "x": ((3, 2), "f")
    }  # fmt: skip
    for name, values in inputs.items():
        np.testing.assert_array_equal(call.inputs[name], values)


def test_texts_in_json_may_be_nested():
    nested = {"name": "pairs", "shape": [1, 2], "datatype": "BYTES", "data": [["a", "b"]]}
    call, _ = decode_any(*asked(texts("text", ["x"]), nested))
    assert call.inputs["pairs"].tolist() == [["a", "b"]]


@pytest.mark.parametrize("binary", [True, False])
def test_texts_and_flags_go_out_as_json_or_raw_bytes(binary):
    call, form = decode_any(*encode_inputs({"text": np.array(["a", "b"], object)}, binary=binary, parameters={"k": 3}))
    outputs = {"said": np.array(["ä", ""], object), "flags": np.array([[True, False], [False, False]])}
    body, headers = v2.encode(form, call, ANY, Answer(version="1", outputs=outputs), LIMITS)
    length = headers.get(v2.JSON_LENGTH_HEADER.lower())
    head = json.loads(body[: int(length)] if length else body)
    assert [tensor["datatype"] for tensor in head["outputs"]] == ["BYTES", "BOOL"]
    assert head["parameters"] == {"k": 3}
    if binary:
        assert body[int(length) :] == join_texts(["ä", ""]) + b"\1\0\0\0"
    got = decode_response(body, length)
    assert got["said"].tolist() == ["ä", ""]
    assert got["flags"].tolist() == [[True, False], [False, False]]


LONG = "9" * 4301


@pytest.mark.parametrize("length", [LONG, "0" * 5000, "1" * 18, "-1", "1.0", "٣", "", " 5", "0x5", "1e3", "+5"])
def test_no_header_length_breaks_anything(length):
    body, _ = asked(texts("text", ["a"]), raw=b"x")
    assert refused_any(body, {v2.JSON_LENGTH_HEADER: length})


@pytest.mark.parametrize(
    "size", [LONG, "-" + LONG, "1" * 4299, "1e400", "1e3", "NaN", "null", '"5"', "[]", "true", "{}"]
)
def test_no_binary_data_size_breaks_anything(size):
    tensor = f'"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {{"binary_data_size": {size}}}'
    head = f'{{"inputs": [{{{tensor}}}]}}'.encode()
    assert refused_any(head + b"\1\0\0\0a", {v2.JSON_LENGTH_HEADER: str(len(head))})


@pytest.mark.parametrize(
    "shape",
    [
        f"[{LONG}]", f"[-{LONG}]", "[" + "9" * 4299 + "]", "[1e400]", "[NaN]", "[1.0]", "[true]", "[null]", '["1"]',
        "[[1]]", "1", "null", "{}", "[]", "[0]", "[-1]", "[1099511627776]", str([2**40] * 500), str([1] * 100),
        str([1] * 40), str([2**40] * 30), str([1] * 100_000),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["text", "names", "x", "pairs"])
def test_no_shape_breaks_anything(name, shape):
    datatype, data = ("FP32", "[1.0]") if name == "x" else ("BYTES", '["a"]')
    more = "" if name == "text" else ', {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}'
    tensor = f'"name": "{name}", "shape": {shape}, "datatype": "{datatype}"'
    assert refused_any(f'{{"inputs": [{{{tensor}, "data": {data}}}{more}]}}'.encode(), {})
    head = f'{{"inputs": [{{{tensor}, "parameters": {{"binary_data_size": 5}}}}{more}]}}'.encode()
    assert refused_any(head + b"\1\0\0\0a", {v2.JSON_LENGTH_HEADER: str(len(head))})


@pytest.mark.parametrize("place", ["name", "shape", "datatype", "data", "id", "k", "outputs", "parameters"])
def test_no_nesting_breaks_anything(place):
    for depth in (10, 70, *range(700, 1000, 7)):
        deep = "[" * depth + "]" * depth
        fields = {"name": '"text"', "shape": "[1]", "datatype": '"BYTES"', "data": '["a"]'}
        head = {"id": '"r"', "outputs": "[]", "parameters": '{"k": 1}'}
        if place in fields:
            fields[place] = deep
        elif place == "k":
            head["parameters"] = f'{{"k": {deep}}}'
        else:
            head[place] = deep
        tensor = ", ".join(f'"{key}": {value}' for key, value in fields.items())
        rest = ", ".join(f'"{key}": {value}' for key, value in head.items())
        assert refused_any(f'{{"inputs": [{{{tensor}}}], {rest}}}'.encode(), {})


@pytest.mark.parametrize("flag", ["false", "true", 0, 1, [], {}])
def test_flags_are_booleans(flag):
    message = refused_any(*asked(texts("text", ["a"]), parameters={"binary_data_output": flag}))
    assert message == f"'binary_data_output' must be true or false, got {flag!r}"
    outputs = [{"name": "said", "parameters": {"binary_data": flag}}]
    message = refused_any(*asked(texts("text", ["a"]), outputs=outputs))
    assert message == f"'binary_data' must be true or false, got {flag!r}"


def test_half_of_a_surrogate_pair_breaks_nothing():
    half = "\ud800"
    assert "'text' must hold Unicode texts" in refused_any(*asked(texts("text", [half])))
    assert "got" in refused_any(*asked(texts(half, ["a"])))
    assert "must have datatype BYTES" in refused_any(*asked(texts("text", ["a"], datatype=half)))
    call, form = decode_any(*asked(texts("text", ["a"]), id=half, outputs=[{"name": half}]))
    answer = Answer(version="1", outputs={"said": np.array(["a"], object)})
    with pytest.raises(RefusedError, match="the model has no output"):
        v2.encode(form, call, ANY, answer, LIMITS)
