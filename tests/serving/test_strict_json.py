"""JSON of clients: bounded before it is parsed."""

import json
import time
import tracemalloc

import numpy as np
import pytest

from serve import strict_json
from serve.contract import RefusedError


@pytest.mark.parametrize("text", ['{"a": [1, {"b": null}], "c": "x:y", "d": "\\":"}', "[]", "1.5", '"ä"', '{"": {}}'])
def test_json_is_read_as_json(text):
    assert strict_json.loads(text, 10) == strict_json.loads(text.encode(), 10) == json.loads(text)


@pytest.mark.parametrize("separator", [": ", ":", " :", "\n\t:"])
def test_too_many_keys_are_refused_in_no_time_and_before_anything_is_parsed(separator, monkeypatch):
    data = ("{" + ",".join(f'"{k}"{separator}1' for k in range(900_000)) + "}").encode()
    monkeypatch.setattr(strict_json, "_DECODER", None)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(RefusedError, match="at most 20000 keys") as refused:
        strict_json.loads(data, 20_000)
    taken = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (refused.value.status, refused.value.reason) == (422, "size")
    assert taken < 0.5
    assert peak < 1_000_000


def test_keys_are_counted_to_the_last():
    data = json.dumps({str(k): 1 for k in range(20)})
    assert len(strict_json.loads(data, 20)) == 20
    with pytest.raises(RefusedError):
        strict_json.loads(data, 19)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 2, "a": 1}}]', '{"a": 1, "\\u0061": 1}'])
def test_a_key_that_comes_twice_is_refused(text):
    with pytest.raises(RefusedError, match="gives the key 'a' twice in one object") as refused:
        strict_json.loads(text, 10)
    assert refused.value.status == 422
    assert strict_json.loads('[{"a": 1}, {"a": 2}]', 10)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000, b'{"a":' * 5_000, b"[" * 100_000 + b"]" * 100_000, b"", b"{", b"\xff", b"{'a': 1}", b"[1,]",
        b"1 2", b"9" * 5000, b"[-" + b"9" * 5000 + b"]",
    ],
)  # fmt: skip
def test_what_is_no_json_or_too_deep_or_too_long_a_number_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"."):
        strict_json.loads(data, 10_000)


@pytest.mark.parametrize("one", ["[]", "{}", "[1]", '{"a":1}'])
def test_too_many_lists_are_refused_before_anything_is_parsed(one, monkeypatch):
    data = "[" + ",".join([one] * 300_000) + "]"
    assert len(strict_json.loads("[" + ",".join([one] * 101) + "]", 1000, 102)) == 101
    monkeypatch.setattr(strict_json, "_DECODER", None)
    for given in (data, data.encode()):
        with pytest.raises(RefusedError, match="at most 250000 lists and objects, got 300001") as refused:
            strict_json.loads(given, 1_000_000, 250_000)
        assert (refused.value.status, refused.value.reason) == (422, "size")


@pytest.mark.parametrize("data", [[1, 2.5], [[1], [2]], 3, [], [True], ["a", "bc"], [None, 1], [[1, 2], [3, 4.5]], "x"])
def test_lists_become_arrays_as_numpy_says(data):
    got, expected = strict_json.as_array(data), np.asarray(data)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("data", [["x" * 2**20, *range(100_000)], [["x" * 300]], ["a"] * 20_000, [[1, "a"]] * 9_000])
def test_texts_among_many_numbers_take_no_room(data):
    tracemalloc.start()
    assert strict_json.as_array(data).dtype.kind == "U"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
