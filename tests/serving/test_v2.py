"""The Open Inference Protocol's bytes: what goes in comes out, and what is wrong is told."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve import v2
from serve.contract import Description
from serve.limits import RefusedError
from tenfold.types import Task

SIZE = 4


def pictures(num_images, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, SIZE, SIZE, 3)).astype(np.uint8)


def decode(body, headers=None, max_images=8):
    return v2.decode_request(body, (headers or {}).get(v2.JSON_LENGTH_HEADER), SIZE, max_images)


def tensor(**changes):
    images = pictures(1)
    return {
        "name": "images",
        "shape": [1, SIZE, SIZE, 3],
        "datatype": "UINT8",
        "data": images.ravel().tolist(),
    } | changes


@given(num_images=st.integers(1, 8), seed=st.integers(0, 999), binary=st.booleans())
def test_a_request_comes_back_as_it_was(num_images, seed, binary):
    images = pictures(num_images, seed)
    request = decode(*v2.encode_request(images, binary=binary, request_id="a1"))
    np.testing.assert_array_equal(request.images, images)
    assert request.request_id == "a1"
    assert request.binary_default is binary


@given(num_images=st.integers(1, 5), binary=st.booleans())
def test_a_response_comes_back_as_it_was(num_images, binary):
    outputs = {
        "probs": np.random.default_rng(0).random((num_images, 3)).astype(np.float32),
        "logits": np.random.default_rng(1).normal(size=(num_images, 3)).astype(np.float32),
    }
    request = decode(*v2.encode_request(pictures(num_images), binary=binary))
    body, headers = v2.encode_response(request, "m", "7", outputs)
    got = v2.decode_response(body, headers.get(v2.JSON_LENGTH_HEADER))
    assert got.keys() == outputs.keys()
    for name, values in outputs.items():  # JSON keeps a float32 exactly: it is told as the double it equals
        np.testing.assert_array_equal(got[name], values)


def test_json_written_by_hand():
    body = json.dumps({"inputs": [tensor(data=list(range(48)))], "outputs": [{"name": "probs"}]}).encode()
    request = decode(body)
    assert request.images[0, 0, 1].tolist() == [3, 4, 5]
    reply, headers = v2.encode_response(
        request, "m", "1", {"probs": np.float32([[0.25, 1]]), "logits": np.zeros((1, 2))}
    )
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(reply) == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "probs", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 1.0]}],
    }


def test_nested_data_equals_flat_data():
    images = pictures(1)
    nested = decode(json.dumps({"inputs": [tensor(data=images.tolist())]}).encode())
    np.testing.assert_array_equal(nested.images, images)


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
    assert request.images.ravel().tolist() == list(range(48))
    body, headers = v2.encode_response(request, "m", "1", {"probs": np.float32([[0.5]]), "logits": np.float32([[1.0]])})
    length = int(headers[v2.JSON_LENGTH_HEADER])
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
        ({"inputs": []}, 422, "one input, named 'images'; got []"),
        ({"inputs": [tensor(name="image")]}, 422, r"one input, named 'images'; got ['image']"),
        ({"inputs": [tensor(), tensor()]}, 422, "one input"),
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
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("size", "extra", "length", "status", "message"),
    [
        (48, 47, None, 422, "binary_data_size is 48 and 47 bytes follow"),
        (47, 48, None, 422, "takes 48 bytes; binary_data_size is 47"),
        ("48", 48, None, 422, "takes 48 bytes"),
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
    assert message in refused.value.message


def test_an_unknown_output_names_those_there_are():
    request = decode(json.dumps({"inputs": [tensor()], "outputs": [{"name": "prob"}]}).encode())
    with pytest.raises(RefusedError, match="no output 'prob'; it has probs, logits"):
        v2.encode_response(request, "m", "1", {"probs": np.zeros((1, 1)), "logits": np.zeros((1, 1))})


def test_not_a_number_is_an_error_in_json_but_not_in_bytes():
    outputs = {"logits": np.float32([[np.nan]])}
    as_json = decode(json.dumps({"inputs": [tensor()]}).encode())
    with pytest.raises(ValueError, match="not JSON compliant"):
        v2.encode_response(as_json, "m", "1", outputs)
    body, headers = v2.encode_response(decode(*v2.encode_request(pictures(1))), "m", "1", outputs)
    assert np.isnan(v2.decode_response(body, headers[v2.JSON_LENGTH_HEADER])["logits"]).all()


def test_metadata_has_the_shapes_with_an_open_batch_axis():
    description = Description(
        name="m", version="3", method="large_loss", task=Task.MULTI_LABEL, classes=("a", "b"), image_size=SIZE,
        outputs={"probs": (2,)},
    )  # fmt: skip
    metadata = v2.model_metadata(description)
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 4, 4, 3]}]
    assert metadata["outputs"] == [{"name": "probs", "datatype": "FP32", "shape": [-1, 2]}]
    assert metadata["parameters"]["classes"] == ["a", "b"]
