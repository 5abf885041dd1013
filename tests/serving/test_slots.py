"""Reading by slots and parameters: whatever comes is read as declared, or refused with a sentence."""

import json

import numpy as np
import pytest

from serve.contract import Answer, Call, Description, Limits, RefusedError, Sent
from serve.tasks import slots
from tenfold.tasks import Param, Pixels, Signature, Slot
from tenfold.types import Task
from tests.serving.local import encoded

LIMITS = Limits(max_images=4, max_values=100, max_text_characters=10, max_pixels=400)
PARAMS = (
    Param(name="flag", schema={"type": "boolean", "description": "true or false"}),
    Param(name="count", schema={"type": "integer", "minimum": 1, "maximum": 10}),
    Param(name="share", schema={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    Param(name="word", schema={"type": "string", "maxLength": 5}),
    Param(name="list", schema={"type": "array", "items": {"type": "integer"}, "maxItems": 2}),
    Param(name="map", schema={"type": "object", "additionalProperties": {"type": "number"}}),
    Param(name="either", schema={"type": ["string", "integer"]}),
)


def described(*inputs, params=PARAMS):
    return Description(
        name="m",
        version="1",
        method="any",
        signature=Signature(
            kind="any",
            task=Task.RETRIEVAL,
            inputs=inputs,
            outputs=(Slot(name="out", dtype="float32"),),
            params=params,
        ),
    )


TEXT, NUMBERS = Slot(name="text", dtype="text"), Slot(name="numbers", dtype="float32", shape=(-1,))
WEIGHT = Slot(name="weight", dtype="float64", optional=True)
SHARED = Slot(name="names", dtype="text", optional=True, shared=True)
IMAGE = Slot(name="image", dtype="float32", shape=(3, -1, -1), image=Pixels(max_value=1.0))
MANY = described(TEXT, NUMBERS, WEIGHT, SHARED)
ONE = described(Slot(name="x", dtype="int64"))


def sent(values=None, **changes):
    return Sent(**{"content_type": "application/json", "values": values or {}} | changes)


def read(inputs, description=MANY, **more):
    return slots.read(sent({"inputs": inputs, **more}), description, LIMITS)


def accept(inputs, description=MANY, **more):
    return slots.accept(Call(inputs=inputs, **more), description, LIMITS, lambda _: True)


def texts(*each):
    return np.array(each, object)


def refused(function, *arguments, **more):
    with pytest.raises(RefusedError) as error:
        function(*arguments, **more)
    assert error.value.status == 422
    assert error.value.reason
    error.value.sentence.encode("utf-8", "backslashreplace")
    return error.value.sentence


# -- inputs


def test_an_example_gets_a_batch_axis_and_what_the_request_shares_does_not():
    call = read({"text": "a", "numbers": [1, 2.5], "names": ["x", "y", "z"]})
    assert {name: values.shape for name, values in call.inputs.items()} == {
        "text": (1,), "numbers": (1, 2), "names": (3,)
    }  # fmt: skip
    assert call.inputs["numbers"].dtype == np.float32
    assert call.inputs["names"].tolist() == ["x", "y", "z"]


def test_an_optional_input_may_come_or_stay_away():
    assert "weight" not in read({"text": "a", "numbers": [1]}).inputs
    assert read({"text": "a", "numbers": [1], "weight": 2}).inputs["weight"].tolist() == [2.0]
    message = refused(read, {"text": "a", "weight": 2})
    assert message == "'inputs' must be text, numbers, weight (optional), names (optional), got text, weight"


def test_rows_of_examples_must_agree_and_shared_inputs_do_not_count():
    inputs = {"text": texts("a", "b"), "numbers": np.zeros((2, 3), np.float32), "names": texts("x", "y", "z")}
    assert accept(inputs).inputs == inputs
    message = refused(accept, inputs | {"weight": np.zeros(3)})
    assert message == "all inputs must have one row for each example, got {'text': 2, 'numbers': 2, 'weight': 3}"
    assert MANY.signature.num_examples(inputs) == 2
    assert MANY.signature.num_examples({"names": texts("x")}) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": texts("a"), "numbers": np.zeros((1, 2))}, "'numbers' must be float32 [N,any]"),
        ({"text": texts("a"), "numbers": np.zeros((1, 2, 1), np.float32)}, "'numbers' must be float32 [N,any]"),
        ({"text": texts("a"), "numbers": np.zeros((1, 0), np.float32)}, "each length at least 1"),
        ({"text": texts(), "numbers": np.zeros((0, 2), np.float32)}, "each length at least 1"),
        ({"text": texts("a"), "numbers": np.float32([[np.nan]])}, "'numbers' must hold finite float32 numbers"),
        ({"text": texts("a"), "numbers": np.float32([[-np.inf]])}, "'numbers' must hold finite float32 numbers"),
        ({"text": texts(1), "numbers": np.zeros((1, 2), np.float32)}, "'text' must hold texts"),
        ({"text": texts("a" * 11), "numbers": np.zeros((1, 2), np.float32)}, "at most 10 characters, got 11"),
        ({"text": texts("\ud800"), "numbers": np.zeros((1, 2), np.float32)}, "'text' must hold Unicode texts"),
        ({"text": texts("a"), "numbers": np.zeros((1, 101), np.float32)}, "at most 100 numbers, got 102"),
        ({"text": texts(*"abcde"), "numbers": np.zeros((5, 1), np.float32)}, "at most 4 examples, got 5"),
        ({"text": texts("a")}, "the inputs must be text, numbers, weight (optional), names (optional), got text"),
        ({}, "got none"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(inputs, message):
    assert message in refused(accept, inputs)


BIG = 10**400
WILD = [
    BIG, -BIG, 2**63, -(2**63) - 1, 1e400, -1e400, float("nan"), True, None, "1", "NaN", "0.9_9", 1.5, [], [1], {},
    {"a": 1}, [[1], [1, 2]], [BIG, 1.5], "\ud800", [None], [[[[1]]]],
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float32", "float64", "text"])
@pytest.mark.parametrize("shape", [(), (2,), (-1,), (2, -1)])
def test_no_value_of_json_is_more_than_refused(dtype, shape):
    description = described(Slot(name="x", dtype=dtype, shape=shape))
    for value in WILD:
        for given in (value, [value, value], [value], [[value, value]] * 2):
            try:
                call = read({"x": given}, description)
            except RefusedError:
                continue
            assert slots.misfit(call.inputs, description.signature.inputs) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**63, "'x' must hold int64"),
        (BIG, "'x' must hold whole numbers that int64 can hold, got object"),
        (1.0, "'x' must hold whole numbers that int64 can hold, got float64"),
        ("NaN", "'x' must hold whole numbers"),
        (True, "'x' must hold whole numbers that int64 can hold, got bool"),
    ],
)
def test_numbers_out_of_range_are_refused(value, message):
    assert message in refused(read, {"x": value}, ONE)
    assert read({"x": 2**63 - 1}, ONE).inputs["x"].tolist() == [2**63 - 1]


def test_names_with_half_of_a_surrogate_pair_are_refused():
    assert "'inputs' must be x, got x, \ud800" in refused(read, {"x": 1, "\ud800": 1}, ONE)
    assert "got [None, '\\ud800', 'x']" in slots.misnamed([None, "\ud800", "x"], ONE).sentence


@pytest.mark.parametrize("values", [{}, {"inputs": None}, {"inputs": []}, {"inputs": "x"}, {"input": {"x": 1}}])
def test_json_without_inputs_is_refused(values):
    assert "'inputs'" in refused(slots.read, sent(values), ONE, LIMITS)


# -- images


def test_an_image_comes_as_a_file_or_as_numbers_beside_other_inputs():
    description = described(IMAGE, WEIGHT)
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    wanted = image.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 255)
    values = {"inputs": {"weight": 2}}
    with_weight = slots.read(sent(values, file=encoded(image)), description, LIMITS)
    np.testing.assert_allclose(with_weight.inputs["image"], wanted, rtol=1e-6)
    assert with_weight.inputs["weight"].tolist() == [2.0]
    alone = slots.read(Sent(content_type="image/png", file=encoded(image)), description, LIMITS)
    assert list(alone.inputs) == ["image"]
    form = sent(content_type="multipart/form-data", file=encoded(image), texts={"weight": ["0.5"]})
    assert slots.read(form, description, LIMITS).inputs["weight"].tolist() == [0.5]
    wrong = sent(content_type="multipart/form-data", file=encoded(image), texts={"weight": ["half"]})
    assert "the form's field 'weight' must be JSON" in refused(slots.read, wrong, description, LIMITS)


def test_a_grey_input_gets_the_mean_of_the_colours():
    grey = Slot(name="grey", dtype="float32", shape=(1, -1, -1), image=Pixels(max_value=255.0))
    image = np.array([[[0, 30, 60], [255, 255, 255]]], np.uint8)
    assert slots.pixels(encoded(image), grey, LIMITS).tolist() == [[[[30.0, 255.0]]]]


def test_files_that_are_no_image_or_too_large_are_refused():
    description = described(IMAGE)
    for data in (b"", b"GIF89a", encoded(np.zeros((21, 20, 3), np.uint8))):
        refused(slots.read, Sent(content_type="image/png", file=data), description, LIMITS)
    assert "model m takes no picture" in refused(slots.read, Sent(content_type="image/png", file=b""), ONE, LIMITS)


# -- parameters

RIGHT = {
    "flag": [(True, "true"), (False, "False")],
    "count": [(1, "1"), (10, "10")],
    "share": [(0.25, "0.25"), (0.5, "5e-1")],
    "word": [("abc", "abc"), ("", "")],
    "list": [([1, 2], "[1, 2]"), ([], "[]")],
    "map": [({"a": 1.5}, '{"a": 1.5}')],
    "either": [("x", "x")],
}
WRONG = {
    "flag": [1, "yes", 0.0, []],
    "count": [0, 11, 1.5, 1.0, True, BIG, "1_0", "ten", [], {}, 1e400, "9" * 5000],
    "share": [0, 1, 1.5, "0.9_9", "NaN", "inf", BIG, float("nan"), float("inf"), True, [], "1e999", "\ud800"],
    "word": ["abcdef", 3, [], True],
    "list": [[1.0], ["a"], [1, 2, 3], "1", {}, [True], [float("nan")]],
    "map": [{"a": "b"}, [], 3, {"a": float("nan")}, {"a": float("-inf")}],
    "either": [1.5, [], True],
}


def from_query(name, text):
    return sent({"inputs": {"x": 1}}, query={name: text})


def from_form(name, text):
    return sent(content_type="multipart/form-data", file=encoded(np.zeros((2, 2, 3), np.uint8)), texts={name: [text]})


@pytest.mark.parametrize("name", RIGHT)
def test_a_parameter_is_read_from_json_the_query_and_forms(name):
    for value, text in RIGHT[name]:
        in_json = read({"x": 1}, ONE, **{name: value}).params
        in_query = slots.read(from_query(name, text), ONE, LIMITS).params
        in_form = slots.read(from_form(name, text), described(IMAGE), LIMITS).params
        as_tensors = accept({"x": np.int64([1])}, ONE, params={name: value}).params
        assert in_json == in_query == in_form == as_tensors == {name: value}
        assert type(in_query[name]) is type(value)


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_its_schema_does_not_allow_is_refused(name):
    for value in WRONG[name]:
        assert f"{name!r} must be" in refused(read, {"x": 1}, ONE, **{name: value})
        assert f"{name!r} must be" in refused(accept, {"x": np.int64([1])}, ONE, params={name: value})
        if isinstance(value, str):
            refused(slots.read, from_query(name, value), ONE, LIMITS)
            refused(slots.read, from_form(name, value), described(IMAGE), LIMITS)


@pytest.mark.parametrize("name", ["list", "map"])
@pytest.mark.parametrize("text", ["", "{", "[1,]", '{"a": 1, "a": 2}', "[" * 100_000, "9" * 5000, "NaN", "\ud800"])
def test_lists_in_the_query_that_are_no_json_are_refused(name, text):
    refused(slots.read, from_query(name, text), ONE, LIMITS)


def test_texts_of_parameters_are_unicode():
    assert "'word' must be" in refused(read, {"x": 1}, ONE, word="\ud800")
    assert "'map' must be" in refused(read, {"x": 1}, ONE, map={"\ud800": 1})
    assert "'either' must be" in refused(accept, {"x": np.int64([1])}, ONE, params={"either": "\udfff"})


def test_a_parameter_comes_once():
    twice = sent({"inputs": {"x": 1}, "count": 1}, query={"count": "1"})
    assert refused(slots.read, twice, ONE, LIMITS) == "'count' is given in the query and in the body; give it once"
    form = sent(content_type="multipart/form-data", file=b"", texts={"count": ["1", "2"]})
    assert refused(slots.read, form, described(IMAGE), LIMITS) == "the form needs 'count' once, got it 2 times"


def test_null_is_as_good_as_nothing_and_unknown_words_are_left_out():
    assert read({"x": 1}, ONE, count=None, other=3).params == {}
    assert accept({"x": np.int64([1])}, ONE, params={"count": None, "other": 3}).params == {}


# -- what is told


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "text"])
@pytest.mark.parametrize(("shape", "shared"), [((), False), ((2, -1), False), ((), True)])
def test_the_example_is_what_is_read(dtype, shape, shared):
    description = described(Slot(name="x", dtype=dtype, shape=shape, shared=shared))
    form = slots.form(description)
    assert form.required == ("inputs",)
    assert not form.takes_file
    example = json.loads(json.dumps(form.example))
    call = slots.read(sent(example), description, LIMITS)
    assert call.inputs["x"].ndim == len(shape) + 1


def test_words_of_the_query_are_told_by_their_schemas():
    assert slots.form(ONE).query == {param.name: param.schema for param in PARAMS}


def test_a_text_for_each_example_is_shown():
    answer = Answer(version="1", outputs={"said": np.array(["a", "b"], object), "count": np.array([1, 2])})
    signature = Signature(
        kind="toy",
        task=Task.RETRIEVAL,
        inputs=(Slot(name="x", dtype="text"),),
        outputs=(Slot(name="said", dtype="text"),),
    )
    description = Description(name="m", version="1", method="toy", signature=signature)
    call = Call(inputs={"x": np.array(["q", "r"], object)})
    told = slots.show(answer, call, description, Sent(content_type="application/json"), Limits())
    assert told == {"outputs": {"said": "a", "count": 1}}
