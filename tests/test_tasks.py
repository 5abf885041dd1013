"""Signatures: what they hold and refuse, and that nothing is lost on disk."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.tasks import (
    EXPLAIN,
    LEVEL,
    OUTSIDE,
    OutsideFlag,
    Param,
    Pixels,
    Signature,
    Slot,
    classification,
    concepts,
    multi_label,
    prompts_by_class,
    regression,
    scalar_params,
    signature_of,
    signature_of_format_1,
    target_shape,
)
from tenfold.types import Preprocessing, Task

SMALL = Preprocessing(image_size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), resize="crop", interpolation="bicubic")
SERIES = Slot(name="series", dtype="float32", shape=(2, -1))
PICTURE = Slot(name="input", dtype="float32", shape=(1, -1, -1), image=Pixels(max_value=4.0))
FLAG = OutsideFlag(score="entropy", threshold=0.1 + 0.2, false_positive_rate=0.05)
SIGNATURES = {
    "classes": classification(("cat", "zwölf"), SMALL),
    "classes, with all": classification(
        ("cat", "zwölf"),
        SMALL,
        scores=("entropy", Slot(name="concepts", dtype="float32", shape=(7,)), OUTSIDE),
        prompt_template="a {}.",
        explains=True,
        flag=FLAG,
    ),
    "labels": multi_label(("cat", "zwölf"), SMALL, scores=("entropy",), explains=True),
    "numbers": regression(("x [m]", "y [m]"), (SERIES, Slot(name="count", dtype="int64")), (2, -1), ("noise", "doubt")),
    "pictures": regression(("grey",), (PICTURE,)),
    "concepts": concepts(
        ("cat", "zwölf"),
        ("fur", "red", "blue"),
        SMALL,
        state_size=40,
        groups={"cover": (0,), "colour": (1, 2)},
        exclusive=("colour",),
        costs={"cover": 2.5},
    ),
    "concepts of another model": concepts(("cat",), ("fur", "red"), None, state_size=8, about={"policy": "ucp"}),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_survives_being_written_as_json(name: str) -> None:
    signature = SIGNATURES[name]
    written = json.loads(json.dumps(signature.as_dict(), allow_nan=False))
    assert signature_of(written) == signature
    assert signature_of(written).as_dict() == written


def test_what_the_constructors_say() -> None:
    plain, full, labels = (SIGNATURES[name] for name in ("classes", "classes, with all", "labels"))
    assert (plain.task, labels.task, SIGNATURES["numbers"].task) == (
        Task.CLASSIFICATION, Task.MULTI_LABEL, Task.REGRESSION,
    )  # fmt: skip
    assert plain.columns == ("cat", "zwölf")
    assert plain.preprocessing == SMALL
    assert [(slot.name, slot.dtype, slot.shape) for slot in plain.inputs] == [("images", "uint8", (4, 4, 3))]
    assert [(slot.name, slot.shape) for slot in plain.outputs] == [("probs", (2,)), ("logits", (2,))]
    assert not plain.params
    assert [slot.name for slot in full.required] == ["images"]
    assert [slot.name for slot in full.inputs if slot.optional] == ["classes", "prompts", "prompt_classes"]
    assert [(slot.name, slot.shape) for slot in full.always] == [
        ("probs", (-1,)), ("logits", (-1,)), ("entropy", ()), ("concepts", (7,)), ("outside", ()),
    ]  # fmt: skip
    assert [slot.name for slot in full.outputs if slot.decision] == ["outside"]
    assert [slot.name for slot in full.outputs if slot.optional] == ["attributions", "explained"]
    assert full.about["outside"]["threshold"] == 0.1 + 0.2
    assert full.gives("attributions")
    assert not plain.gives("attributions")
    assert [param.name for param in scalar_params(full)] == [EXPLAIN]
    numbers = SIGNATURES["numbers"]
    assert numbers.columns == ("x [m]", "y [m]")
    assert numbers.preprocessing is None
    assert [slot.name for slot in numbers.outputs] == ["mean", "std", "noise", "doubt", "lower", "upper"]
    assert [slot.name for slot in numbers.always] == ["mean", "std", "noise", "doubt"]
    assert {slot.shape for slot in numbers.outputs} == {(2, -1)}
    assert [param.name for param in scalar_params(numbers)] == [LEVEL]


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ((Slot(name="x", dtype="float32", shape=(3,)),), (2,)),
        ((SERIES,), (2, -1)),
        ((PICTURE,), (2, -1, -1)),
        ((SERIES, Slot(name="count", dtype="int64")), (2,)),
    ],
)
def test_a_target_follows_a_single_input_unless_its_shape_is_given(inputs: tuple[Slot, ...], shape: Any) -> None:
    assert {slot.shape for slot in regression(("a", "b"), inputs).outputs} == {shape}


def test_only_axes_after_the_channels_follow_open_inputs() -> None:
    assert target_shape((3, 8, 8), (PICTURE,)) == (3, -1, -1)
    assert target_shape((3, 8, 8), (Slot(name="x", dtype="float32", shape=(1, 4, 4)),)) == (3, 8, 8)
    assert target_shape((), (PICTURE,)) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Slot(name="", dtype="float32"), "name must not be empty"),
        (lambda: Slot(name="x", dtype="complex64"), "dtype must be one of bool, .* text, got 'x' and 'complex64'"),
        (lambda: Slot(name="x", dtype="int64", shape=(0,)), r"shape must hold lengths of at least 1, .* got \(0,\)"),
        (lambda: Slot(name="x", dtype="int64", shape=(-2,)), "shape must hold lengths"),
        (lambda: Pixels(max_value=0.0), "max_value must be positive, got 0.0"),
        (lambda: Pixels(max_value=math.inf), "max_value must be positive, got inf"),
        (
            lambda: Slot(name="x", dtype="float32", shape=(2, 4, 4), image=Pixels(max_value=1.0)),
            r"an image in numbers must be float32 \(1 or 3, H, W\), got float32 \(2, 4, 4\) for 'x'",
        ),
        (lambda: Slot(name="x", dtype="uint8", shape=(3, 4, 4), image=Pixels(max_value=1.0)), "must be float32"),
        (
            lambda: classification(("a",), SMALL, prompt_template="a photo"),
            "prompt_template must be a string with one {}",
        ),
        (lambda: classification(("a",), SMALL, prompt_template="{} {}"), "got '{} {}'"),
        (lambda: multi_label(("a",), SMALL, scores=("probs",)), "names of outputs must be unique"),
        (lambda: regression(("a",), ()), "at least one input"),
        (lambda: regression(("a",), (SERIES, SERIES)), "names of inputs must be unique, got series, series"),
        (lambda: regression(("a",), (SERIES,), parts=("lower",)), "names of outputs must be unique"),
        (
            lambda: classification(
                ("a",), SMALL, flag=OutsideFlag(score="x", threshold=math.inf, false_positive_rate=0.1)
            ),
            "JSON",
        ),
    ],
)
def test_what_describes_no_model_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_have_one_name_each() -> None:
    param = Param(name="k", schema={"type": "integer"})
    with pytest.raises(ValueError, match="names of params must be unique"):
        Signature(kind="x", task=Task.RETRIEVAL, inputs=(SERIES,), outputs=(SERIES,), params=(param, param))


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("kind"),
        lambda stored: stored.update(task="oracle"),
        lambda stored: stored.update(inputs=[]),
        lambda stored: stored["inputs"][0].update(colour="red"),
        lambda stored: stored["inputs"][0].update(image={"size": 4}),
        lambda stored: stored["outputs"][0].update(shape=None),
    ],
)
def test_what_is_no_written_signature_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    stored = SIGNATURES["classes"].as_dict()
    change(stored)
    with pytest.raises((KeyError, TypeError, ValueError)):
        signature_of(stored)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((5, 2, 9), True), ((0, 2, 1), True), ((5, 3, 9), False), ((5, 2), False), ((2, 9), False), ((5, 2, 9, 1), False)],
)
def test_a_slot_holds_a_batch_of_its_axes(shape: tuple[int, ...], fits: bool) -> None:
    assert SERIES.holds(shape) is fits


IMAGES = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
BOTH = Signature(
    kind="concepts",
    task=Task.CONCEPTS,
    inputs=(
        Slot(name="images", dtype="uint8", shape=(4, 4, 3), image=SMALL),
        Slot(name="corrections", dtype="float32", shape=(7,), optional=True),
        Slot(name="notes", dtype="text", optional=True),
        Slot(name="classes", dtype="text", optional=True, shared=True),
    ),
    outputs=(Slot(name="probs", dtype="float32", shape=(2,)), Slot(name="maps", dtype="float32", optional=True)),
)


@pytest.mark.parametrize(
    "inputs",
    [
        {"images": IMAGES},
        {"images": IMAGES, "corrections": None, "classes": None},
        {"images": IMAGES, "corrections": torch.zeros(3, 7), "classes": ["a", "b"], "notes": ["", "x", "y"]},
    ],
)
def test_inputs_of_several_kinds_fit(inputs: dict[str, Any]) -> None:
    BOTH.check_inputs(inputs)


NAMES = r"images, corrections \(optional\), notes \(optional\), classes \(optional\)"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, f"inputs must be {NAMES}, got none"),
        ({"images": None}, "got none"),
        ({"images": IMAGES, "pictures": IMAGES}, "got images, pictures"),
        ({"images": IMAGES.float()}, r"images must be uint8 \(B, 4, 4, 3\), got float32 \(3, 4, 4, 3\)"),
        ({"images": ["a"]}, r"images must be uint8 \(B, 4, 4, 3\), got \['a'\]"),
        ({"images": IMAGES, "corrections": torch.zeros(3, 6)}, r"got float32 \(3, 6\)"),
        ({"images": IMAGES, "corrections": torch.zeros(2, 7)}, r"one row for each example, got {'images': 3, 'corr"),
        ({"images": IMAGES, "notes": ["x"]}, "one row for each example"),
        ({"images": IMAGES, "classes": "cat"}, "classes must be a list of texts, got 'cat'"),
        ({"images": IMAGES, "classes": ["a", 1]}, r"classes must be a list of texts, got \['a', 1\]"),
        ({"images": IMAGES, "classes": torch.zeros(2)}, "classes must be text"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BOTH.check_inputs(inputs)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"maps": torch.zeros(3)}, r"outputs must be probs, maps \(optional\), got maps"),
        ({"probs": torch.zeros(3, 2), "logits": torch.zeros(3, 2)}, "got logits, probs"),
        ({"probs": torch.zeros(3, 2).double()}, r"probs must be float32 \(B, 2\), got float64"),
        ({"probs": torch.zeros(3, 2), "maps": torch.zeros(2)}, "outputs must have one row for each example"),
    ],
)
def test_outputs_that_do_not_fit_are_named(outputs: dict[str, Tensor], message: str) -> None:
    BOTH.check_outputs({"probs": torch.zeros(3, 2)})
    BOTH.check_outputs({"probs": torch.zeros(3, 2), "maps": torch.zeros(3)})
    with pytest.raises(ValueError, match=message):
        BOTH.check_outputs(outputs)


def test_the_prompts_of_a_call() -> None:
    assert prompts_by_class("a {}.") is None
    assert prompts_by_class("a {}.", ["cat", "{}"]) == {"cat": ["a cat."], "{}": ["a {}."]}
    prompts, names = ["big cat", "dog", "cat"], ["cat", "dog", "cat"]
    asked = prompts_by_class("a {}.", None, prompts, names)
    assert asked == {"cat": ["big cat", "cat"], "dog": ["dog"]}
    assert list(asked) == ["cat", "dog"]  # by first prompt


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((["cat"], ["a cat"], ["cat"]), "either classes or prompts, got both"),
        ((["cat"], None, ["cat"]), "either classes or prompts, got both"),
        ((["cat", "cat"], None, None), "classes must be unique, got cat, cat"),
        (([], None, None), r"classes must be a list of at least one text, none empty, got \[\]"),
        (("cat", None, None), "classes must be a list"),
        ((["cat", " "], None, None), "none empty"),
        ((None, ["a cat"], None), "prompts and prompt_classes must come together, .* got 1 and none"),
        ((None, None, ["cat"]), "got none and 1"),
        ((None, ["a cat", "a dog"], ["cat"]), "got 2 and 1"),
        ((None, ["a cat", 3], ["cat", "cat"]), "prompts must be a list"),
    ],
)
def test_a_call_that_names_no_classes_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts_by_class("a {}.", *texts)


def test_format_1_knew_the_task_and_the_form_of_the_inputs() -> None:
    stored = {
        "task": "classification",
        "classes": ["a"],
        "preprocessing": {"image_size": 4, "mean": [0] * 3, "std": [1] * 3},
    }
    assert signature_of_format_1(stored) == classification(("a",), Preprocessing(image_size=4))
    inputs = [
        {"name": "series", "dtype": "float32", "shape": [2, -1]},
        {"name": "count", "dtype": "int64", "shape": [], "max_value": None},
    ]
    stored = {"task": "regression", "classes": ["x", "y"], "preprocessing": None, "inputs": inputs}
    slots = (SERIES, Slot(name="count", dtype="int64"))
    assert signature_of_format_1(stored) == regression(("x", "y"), slots, (2,))
    assert signature_of_format_1(stored, (2, 9), ("noise",)) == regression(("x", "y"), slots, (2, -1), ("noise",))


def test_a_state_comes_in_place_of_the_image() -> None:
    signature = SIGNATURES["concepts"]
    image, state = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, 40, dtype=torch.uint8)
    values, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8)
    assert [slot.name for slot in signature.required] == ["images"]
    signature.check_inputs({"images": image, "concept_values": values, "concept_mask": mask, "state": None})
    signature.check_inputs({"state": state, "concept_values": values, "concept_mask": mask})
    assert signature.num_examples({"state": state}) == 2
    for wrong in ({"images": image, "state": state}, {"concept_values": values}):
        with pytest.raises(ValueError, match=r"images, state \(in place of images\), concept_values \(optional\)"):
            signature.check_inputs(wrong)
    assert signature.columns == ("cat", "zwölf")
    assert signature.about["groups"] == {"cover": ["fur"], "colour": ["red", "blue"]}
    assert signature.about["costs"] == {"cover": 2.5, "colour": 1.0}
    assert SIGNATURES["concepts of another model"].about["questions"] == ["fur", "red"]


def test_what_replaces_an_input_must_be_optional_and_name_a_required_one() -> None:
    with pytest.raises(ValueError, match="must be optional, got 'state'"):
        Slot(name="state", dtype="uint8", replaces="images")
    state = Slot(name="state", dtype="uint8", optional=True, replaces="images")
    with pytest.raises(ValueError, match="state must replace a required input, got 'images'"):
        Signature(kind="labels", task=Task.CONCEPTS, inputs=(SERIES, state), outputs=(SERIES,))
