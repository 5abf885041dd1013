"""Concept bottlenecks over v2: corrections, states in place of pictures, maps of concepts, shared batches."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import torch

from serve.clients.local import LocalModel
from serve.contract import Call, Failure, RefusedError
from tenfold.bundle import BundleError, load_bundle
from tests.serving.local import LocalService, random_images, refusal
from tests.serving.stand_ins import (
    CONCEPT_GROUPS,
    CONCEPT_LOADER,
    CONCEPTS,
    NUMBERS,
    POISON,
    SIZE,
    ConceptPredictor,
    load_concept_predictor,
    make_bundle,
    make_concept_bundle,
    served,
)
from tests.serving.v2_client import encode_inputs, outputs_of

ALWAYS = ["probs", "logits", "concept_probs", "concepts", "next_concept", "next_gain"]
K, STATE_SIZE = len(CONCEPTS), 4 * len(CONCEPTS) + 16


class ConceptService(LocalService):
    """``digits`` and ``other`` take images, ``bare`` too but explains nothing, ``listed`` takes another model's
    predictions and has no groups.
    """

    def __init__(self, folder, **settings):
        self.bundle = make_concept_bundle(folder / "digits")
        models = {
            "digits": self.bundle,
            "bare": make_concept_bundle(folder / "bare", explains=False),
            "listed": make_concept_bundle(folder / "listed", takes_images=False, grouped=False),
            "other": make_concept_bundle(folder / "other", seed=1),
        }
        concepts = [
            served(bundle, name, version="2", loader=CONCEPT_LOADER, max_batch_size=4)
            for name, bundle in models.items()
        ]
        super().__init__([*concepts, served(make_bundle(folder / "colour"))], **({"max_images": 12} | settings))
        self.expected = load_concept_predictor(load_bundle(self.bundle.folder))

    def calls(self, name="digits"):
        return self.clients[name].loaded._predictor.calls


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return ConceptService(tmp_path_factory.mktemp("concepts"))


def request(inputs, outputs=None, binary=True, **parameters):
    body, headers = encode_inputs(inputs, binary=binary, parameters=parameters)
    if outputs is not None:
        length = int(headers.get("Inference-Header-Content-Length", len(body)))
        head = json.dumps(json.loads(body[:length]) | {"outputs": [{"name": name} for name in outputs]}).encode()
        body = head + body[length:]
        if binary:
            headers["Inference-Header-Content-Length"] = str(len(head))
    return {"content": body, "headers": headers}


def infer(service, inputs, outputs=None, model="digits", **options):
    return service.http.post(f"/v2/models/{model}/infer", **request(inputs, outputs, **options))


def corrected(num, *rows, **unknown):
    """Tensors of corrections: concept to value for each example, and concepts that nobody knows of the first."""
    values, mask, not_known = np.zeros((num, K), np.float32), np.zeros((num, K), np.uint8), np.zeros((num, K), np.uint8)
    for row, of_row in enumerate(rows):
        for name, value in of_row.items():
            values[row, CONCEPTS.index(name)], mask[row, CONCEPTS.index(name)] = value, 1
    for name in unknown:
        not_known[0, CONCEPTS.index(name)] = 1
    return {"concept_values": values, "concept_mask": mask, "concept_unknown": not_known}


def state_of(service, images, **options):
    return outputs_of(infer(service, {"images": images}, ["state"], **options))["state"]


def wanted(service, inputs):
    """What the predictor itself answers."""
    return {name: value.numpy() for name, value in service.expected(**as_tensors(inputs)).items()}


def as_tensors(inputs):
    return {name: torch.from_numpy(values.copy()) for name, values in inputs.items()}


def assert_same(outputs, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values, err_msg=name)


# -- corrections


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [[], [{"loop": 1, "plain": 0.2}, {"segment_top": 0, "clouds": 1}]])
def test_corrections_change_what_the_predictor_says_they_do(service, binary, rows):
    inputs = {"images": random_images(3)} | (corrected(3, *rows, prime=True) if rows else {})
    outputs = outputs_of(infer(service, inputs, binary=binary))
    assert list(outputs) == ALWAYS
    assert outputs["next_concept"].dtype == np.int64
    assert_same(outputs, wanted(service, inputs))
    if rows:
        np.testing.assert_array_equal(outputs["concepts"][0, [2, 4]], np.float32([1, 0.2]))
    assert service.traces[-1].num_images == 3


def test_values_that_do_not_count_may_be_anything_finite(service):
    images, tensors = random_images(1), corrected(1, {"loop": 1})
    expected = outputs_of(infer(service, {"images": images, **tensors}))
    tensors["concept_values"][0, [0, 1, 3]] = [7, -1e30, 0.5]
    assert_same(outputs_of(infer(service, {"images": images, **tensors})), expected)


def test_each_correction_tensor_may_be_left_out(service):
    images, tensors = random_images(1), corrected(1, {"loop": 1}, prime=True)
    some = {name: tensors[name] for name in ("concept_values", "concept_mask")}
    assert_same(outputs_of(infer(service, {"images": images, **some})), wanted(service, {"images": images, **some}))
    unknown = {"concept_unknown": tensors["concept_unknown"]}
    assert infer(service, {"images": images, **unknown}).status_code == 200
    zeros = {"concept_mask": np.zeros((1, K), np.uint8)}
    assert_same(outputs_of(infer(service, {"images": images, **zeros})), wanted(service, {"images": images}))


def test_what_nobody_knows_is_not_asked_again_and_nothing_is_left_in_the_end(service):
    images, unknown, asked = random_images(1), np.zeros((1, K), np.uint8), []
    for _ in CONCEPT_GROUPS:
        outputs = outputs_of(infer(service, {"images": images, "concept_unknown": unknown}))
        assert outputs["next_gain"][0] > 0
        name = list(CONCEPT_GROUPS)[outputs["next_concept"][0]]
        asked.append(name)
        unknown[:, list(CONCEPT_GROUPS[name])] = 1
    assert sorted(asked) == sorted(CONCEPT_GROUPS)
    outputs = outputs_of(infer(service, {"images": images, "concept_unknown": unknown}))
    assert (outputs["next_concept"].tolist(), outputs["next_gain"].tolist()) == ([-1], [0])


def test_predictions_of_another_model_take_the_place_of_images(service):
    predictions = np.random.default_rng(0).random((2, K), np.float32)
    outputs = outputs_of(infer(service, {"predictions": predictions}, model="listed", with_state=True))
    np.testing.assert_allclose(outputs["concept_probs"], predictions, atol=1e-6)
    again = outputs_of(infer(service, {"state": outputs["state"]}, model="listed"))
    assert_same(again, {name: outputs[name] for name in ALWAYS})


# -- states


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    ("names", "parameters", "told"),
    [
        (None, {"with_state": True}, [*ALWAYS, "state"]),
        (None, {"with_state": False}, ALWAYS),
        (None, {"with_state": None}, ALWAYS),
        (["state"], {}, ["state"]),
        (["state", "probs"], {"with_state": True}, ["state", "probs"]),
        (["probs"], {"with_state": True}, ["probs", "state"]),
        (["probs"], {"with_state": True, "explain": True}, ["probs", "attributions", "explained", "state"]),
    ],
)
def test_the_state_comes_where_it_is_asked_for(service, names, parameters, told, binary):
    outputs = outputs_of(infer(service, {"images": random_images(2)}, names, binary=binary, **parameters))
    assert list(outputs) == told
    if "state" in told:
        assert (outputs["state"].dtype, outputs["state"].shape) == (np.uint8, (2, STATE_SIZE))


@pytest.mark.parametrize("binary", [True, False])
def test_a_state_answers_as_its_picture_bit_for_bit_without_the_backbone(service, binary):
    images = random_images(3, seed=5)
    states = state_of(service, images)
    for tensors in ({}, corrected(3, {"loop": 1, "plain": 0.2}, {"clouds": 1}, prime=True)):
        of_images = outputs_of(infer(service, {"images": images, **tensors}, binary=binary, with_state=True))
        service.calls().clear()
        of_states = outputs_of(infer(service, {"state": states, **tensors}, binary=binary, with_state=True))
        assert service.calls() == [("unpack", 3), ("respond", 3)]
        assert list(of_states) == list(of_images)
        for name, values in of_images.items():
            assert of_states[name].tobytes() == values.tobytes(), name
        np.testing.assert_array_equal(of_states["state"], states)


def test_a_changed_state_and_that_of_another_model_are_refused(service):
    images = random_images(2)
    states = state_of(service, images)
    for byte in (0, 4 * K - 1, STATE_SIZE - 1):
        changed = states.copy()
        changed[1, byte] ^= 1
        refused = refusal(infer(service, {"state": changed}), 422)
        assert refused == "state 1 must come unchanged from an answer of this version of the model"
        assert service.traces[-1].reason == "state"
    others = state_of(service, images, model="other")
    assert "state 0 must come unchanged" in refusal(infer(service, {"state": others}), 422)


def test_a_changed_state_far_down_a_long_list_says_where(service):
    states = np.repeat(state_of(service, random_images(1)), 10, axis=0)
    assert len(outputs_of(infer(service, {"state": states}))["probs"]) == 10
    states[9, 0] ^= 1
    assert "from example 8 on, state 1 must come unchanged" in refusal(infer(service, {"state": states}), 422)


# -- maps


def expected_map(service, images, concepts):
    return service.expected.explain(torch.from_numpy(images), torch.tensor(concepts)).numpy()


@pytest.mark.parametrize(
    ("given", "columns"),
    [("loop", [2, 2]), (1, [1, 1]), ("6", [6, 6]), (["plain", 0], [4, 0])],
)
def test_the_map_is_that_of_the_chosen_concept(service, given, columns):
    images = random_images(2)
    outputs = outputs_of(infer(service, {"images": images}, explain=True, explain_class=given))
    assert list(outputs) == [*ALWAYS, "attributions", "explained"]
    assert outputs["explained"].tolist() == columns
    np.testing.assert_array_equal(outputs["attributions"], expected_map(service, images, columns))
    assert (service.traces[-1].num_images, service.traces[-1].num_explained) == (2, 2)


def test_without_a_choice_the_most_uncertain_free_concept_of_the_next_question_is_explained(service):
    images = random_images(4, seed=3)
    for tensors in ({}, corrected(4, {"plain": 0}, {"segment_top": 1}, {"stripes": 1, "loop": 0}, clouds=True)):
        outputs = outputs_of(infer(service, {"images": images, **tensors}, explain=True))
        for row, question in enumerate(outputs["next_concept"]):
            taken = tensors["concept_mask"][row] | tensors["concept_unknown"][row] if tensors else np.zeros(K)
            free = [k for k in list(CONCEPT_GROUPS.values())[question] if not taken[k]]
            doubt = np.abs(outputs["concepts"][row, free] - 0.5)
            assert outputs["explained"][row] == free[int(doubt.argmin())]
    everything = {"concept_unknown": np.ones((1, K), np.uint8)}
    outputs = outputs_of(infer(service, {"images": images[:1], **everything}, ["explained", "concepts"]))
    assert outputs["explained"].tolist() == [int(np.abs(outputs["concepts"][0] - 0.5).argmin())]


# -- refusals


def bent(name, place, value, *rows, **unknown):
    tensors = corrected(2, *rows, **unknown)
    tensors[name][place] = value
    return tensors


ALL_NAMES = ", ".join(CONCEPTS)
ONE = random_images(1)
TWO = random_images(2)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (bent("concept_values", (1, 2), 1.5, {}, {"loop": 1}), {}, "lie in 0..1 where 'concept_mask' is 1, got 1.5"),
        (bent("concept_values", (1, 2), 1.5, {}, {"loop": 1}), {}, "for 'loop' in example 1"),
        (bent("concept_values", (0, 0), -0.1, {"segment_top": 1}), {}, "got -0.1 for 'segment_top' in example 0"),
        (bent("concept_values", (0, 2), np.nan, {"loop": 1}), {}, "'concept_values' must hold finite float32 numbers"),
        (bent("concept_values", (0, 5), np.inf), {}, "'concept_values' must hold finite float32 numbers"),
        (bent("concept_mask", (1, 3), 2), {}, "'concept_mask' must be 0 or 1, got 2 for 'prime' in example 1"),
        (bent("concept_unknown", (0, 6), 255), {}, "'concept_unknown' must be 0 or 1, got 255 for 'stripes'"),
        (corrected(2, {"loop": 1}, loop=1), {}, "is either corrected or unknown: of 'concept_mask' and"),
        (corrected(2, {}, {"plain": 1, "clouds": 0.6}), {},
         "at most one concept of the group 'background' (plain, clouds, stripes) may be true, got plain, clouds"),
        ({"concept_mask": np.ones((2, K), np.uint8)}, {}, "'concept_mask' needs 'concept_values', from 0 to 1"),
        ({"concept_values": np.ones((2, K), np.float32)}, {}, "'concept_values' need 'concept_mask', 1 where"),
        ({"concept_mask": np.ones((2, K - 1), np.uint8)}, {},
         f"'concept_mask' must be [N,{K}], a column for each of the concepts {ALL_NAMES}, got [2, {K - 1}]"),
        ({"concept_values": np.ones((2, 1, K), np.float32)}, {}, f"for each of the concepts {ALL_NAMES}, got [2, 1, "),
        ({"concept_unknown": np.ones((3, K), np.uint8)}, {}, "must have one row for each example, got {'images': 2, "),
        ({"concept_mask": np.ones((2, K), np.float32)}, {}, "'concept_mask' must have datatype UINT8, got 'FP32'"),
        ({"state": np.zeros((2, STATE_SIZE), np.uint8)}, {}, "the inputs are images, state (in place of images), "),
        ({"masks": np.zeros((2, K), np.uint8)}, {}, "concept_unknown (optional), each once; got ['images', 'masks']"),
        ({}, {"with_state": 1}, "'with_state' must be true or false, got 1"),
        ({}, {"with_state": False, "outputs": ["state"]}, "'with_state' is false, but the output 'state' is asked for"),
        ({}, {"explain": "true"}, "'explain' must be true or false, got 'true'"),
        ({}, {"explain_class": "loop"}, "says which concept to explain, so 'explain' must be true with it"),
        ({}, {"explain": True, "explain_class": "lop"}, f"has no concept 'lop' to explain; it has {ALL_NAMES}"),
        ({}, {"explain": True, "explain_class": K}, f"has no concept {K} to explain; its concepts are 0 to {K - 1}"),
        ({}, {"explain": True, "explain_class": "eight"}, "has no concept 'eight' to explain"),
        ({}, {"explain": True, "explain_class": [0, 1, 2]}, "must hold one concept, or one for each of the pict"),
        ({}, {"outputs": ["labels"]}, "the model has no output 'labels'; it has probs, logits, concept_probs"),
    ],
)  # fmt: skip
def test_wrong_requests_are_told_what_is_right(service, inputs, options, message):
    assert message in refusal(infer(service, {"images": TWO, **inputs}, **options), 422)
    assert service.traces[-1].reason


def test_wrong_states_are_told_what_is_right(service):
    short = np.zeros((1, STATE_SIZE - 1), np.uint8)
    message = f"'state' must be [N,{STATE_SIZE}], the 'state' of an earlier answer by this version, got [1, "
    assert message in refusal(infer(service, {"state": short}), 422)
    state = state_of(service, ONE)
    assert "'explain' needs the picture, which a 'state' does not hold" in refusal(
        infer(service, {"state": state}, explain=True), 422
    )
    assert "the inputs are images, state (in place of images)" in refusal(infer(service, corrected(1)), 422)


def test_a_model_without_maps_names_those_that_have_them(service):
    message = "gives no attribution maps; of the models served here, these do: digits, other"
    assert message in refusal(infer(service, {"images": ONE}, model="bare", explain=True), 422)
    assert message in refusal(infer(service, {"images": ONE}, ["attributions"], model="bare"), 422)


def test_predictions_are_shares(service):
    bad = np.full((1, K), 0.5, np.float32)
    bad[0, 3] = 1.25
    message = "'predictions' must lie in 0..1, got 1.25 for 'prime' in example 0"
    assert message in refusal(infer(service, {"predictions": bad}, model="listed"), 422)


def test_requests_and_replies_are_limited(tmp_path):
    service = ConceptService(tmp_path, max_images=3, max_reply_bytes=2600, max_attribution_bytes=2 * 4 * SIZE**2)
    states = np.zeros((4, STATE_SIZE), np.uint8)
    assert "at most 3 examples, got 4" in refusal(infer(service, {"state": states}), 422)
    assert "at most 3 pictures, got 4" in refusal(infer(service, {"images": random_images(4)}), 422)
    assert "explain at most 2 at once" in refusal(infer(service, {"images": random_images(3)}, explain=True), 422)
    service.calls().clear()
    told = refusal(infer(service, {"images": random_images(2)}, binary=False, with_state=True), 422)
    assert "ask for fewer examples or outputs, or for raw bytes over v2" in told
    assert service.calls() == []
    assert infer(service, {"images": random_images(2)}, with_state=True).status_code == 200


# -- batches


def piece_of(loaded, inputs, **params):
    call = Call(inputs=inputs, params=params)
    loaded.check(call)
    [piece] = asyncio.run(loaded.pieces(call))
    return piece


def test_a_mixed_batch_shares_its_passes_and_a_faulty_piece_fails_alone(service):
    loaded = service.clients["digits"].loaded
    images, poisoned = random_images(2, seed=1), random_images(1)
    poisoned[:] = POISON
    state = state_of(service, random_images(1, seed=2))
    changed = state.copy()
    changed[0, 3] ^= 1
    asked = [
        ({"images": images}, {}),
        ({"state": state, **corrected(1, {"loop": 1})}, {"with_state": True}),
        ({"images": images[:1], **corrected(1, {"plain": 1}, prime=True)}, {"explain": True}),
        ({"images": images[1:]}, {"explain": True, "explain_class": ["prime"]}),
        ({"state": state}, {"before": True}),
    ]
    alone = [loaded.run([piece_of(loaded, inputs, **params)])[0] for inputs, params in asked]
    pieces = [piece_of(loaded, inputs, **params) for inputs, params in asked]
    service.calls().clear()
    together = loaded.run(pieces)
    assert service.calls() == [
        ("unpack", 1),
        ("unpack", 1),
        ("encode", 4),
        ("respond", 6),
        ("respond", 1),
        ("explain", 2),
    ]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_allclose(one[name], values, rtol=1e-6, err_msg=name)
    faulty = [piece_of(loaded, {"images": poisoned}), piece_of(loaded, {"state": changed})]
    *others, broken, refused = loaded.run([*pieces, *faulty])
    assert isinstance(broken, Failure)
    assert isinstance(refused, RefusedError)
    for one, other in zip(others, alone, strict=True):
        np.testing.assert_allclose(one["probs"], other["probs"], rtol=1e-6)


def test_corrections_that_only_the_model_rejects_are_told_in_its_words(service, monkeypatch):
    predictor = service.clients["digits"].loaded._predictor

    def respond(encoded, *corrections, **named):
        if "concept_mask" in named and named["concept_mask"][:, 2].any():
            raise ValueError("loop must not be corrected, got 1")
        return ConceptPredictor.respond(predictor, encoded, *corrections, **named)

    monkeypatch.setattr(predictor, "respond", respond)
    loaded = service.clients["digits"].loaded
    pieces = [piece_of(loaded, {"images": ONE, **corrected(1, {name: 1})}) for name in ("loop", "prime")]
    refused, answered = loaded.run(pieces)
    assert (refused.status, refused.sentence) == (422, "loop must not be corrected, got 1")
    assert answered["concepts"][0, 3] == 1


def test_concurrent_requests_get_what_they_get_alone(service):
    states = state_of(service, random_images(6, seed=9))
    asked = []
    for k in range(6):
        tensors = corrected(1, {CONCEPTS[k]: k % 2}) if k % 3 else {}
        asked.append(request({"images": random_images(2, seed=k)}, explain=k % 2 == 0))
        asked.append(request({"state": states[k : k + 1], **tensors}, with_state=True))
    alone = [outputs_of(service.http.post("/v2/models/digits/infer", **each)) for each in asked]
    broken = request({"images": np.full((1, SIZE, SIZE, 3), POISON, np.uint8)})
    changed = request({"state": states[:1] ^ 1})
    service.clients["digits"].loaded._predictor.calls.clear()

    async def ask():
        transport = httpx.ASGITransport(service.http.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            sent = [client.post("/v2/models/digits/infer", **each) for each in (*asked, broken, changed)]
            return await asyncio.gather(*sent)

    *replies, failed, refused = asyncio.run(ask())
    assert max(num for what, num in service.calls() if what == "respond") > 2
    assert (failed.status_code, refused.status_code) == (500, 422)
    for reply, expected in zip(replies, alone, strict=True):
        outputs = outputs_of(reply)
        assert outputs.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(outputs[name], values, rtol=1e-6, err_msg=name)


# -- what is told, and what is loaded


def test_the_metadata_name_concepts_groups_and_costs(service):
    told = service.http.get("/v2/models/digits").json()
    assert told["parameters"] == {
        "task": "concepts",
        "classes": list(NUMBERS),
        "concepts": list(CONCEPTS),
        "questions": list(CONCEPT_GROUPS),
        "groups": {name: [CONCEPTS[k] for k in columns] for name, columns in CONCEPT_GROUPS.items()},
        "exclusive": ["background"],
        "costs": {"segments": 1.0, "loop": 1.0, "kind": 1.0, "background": 2.0},
        "policy": "entropy",
    }
    inputs = {slot["name"]: (slot["datatype"], slot["shape"], "parameters" in slot) for slot in told["inputs"]}
    assert inputs == {
        "images": ("UINT8", [-1, SIZE, SIZE, 3], False),
        "state": ("UINT8", [-1, STATE_SIZE], True),
        "concept_values": ("FP32", [-1, K], True),
        "concept_mask": ("UINT8", [-1, K], True),
        "concept_unknown": ("UINT8", [-1, K], True),
    }
    optional = [slot["name"] for slot in told["outputs"] if slot.get("parameters") == {"optional": True}]
    assert optional == ["attributions", "explained", "state"]
    [listed] = [one for one in service.http.get("/models").json()["models"] if one["name"] == "digits"]
    assert (listed["classes"], listed["explains"], listed["image_size"]) == (list(NUMBERS), True, SIZE)


class Forgetful(ConceptPredictor):
    def unpack(self, states):
        return super().unpack(states) + 1


class Glaring(ConceptPredictor):
    def explain(self, images, concepts):
        return super().explain(images, concepts) + 1


class Long(ConceptPredictor):
    def pack(self, encoded):
        return super().pack(torch.cat([encoded, encoded], 1))


def load_forgetful(bundle, device="cpu"):
    return Forgetful(bundle.metadata.signature, **bundle.tensors())


def load_glaring(bundle, device="cpu"):
    return Glaring(bundle.metadata.signature, **bundle.tensors())


def load_long(bundle, device="cpu"):
    return Long(bundle.metadata.signature, **bundle.tensors())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("load_forgetful", "unpack must give what pack was given"),
        ("load_glaring", r"maps must be float32 \(4, 8, 8\) in \[0, 1\]"),
        ("load_long", "pack must fit the signature: state must be uint8"),
    ],
)
def test_a_predictor_whose_parts_do_not_fit_is_not_served(service, loader, message):
    with pytest.raises(BundleError, match=message):
        LocalModel(served(service.bundle, "faulty", loader=f"tests.serving.test_concepts:{loader}"))


def test_a_model_is_tried_out(service):
    service.calls().clear()
    asyncio.run(service.clients["digits"].check_health())
    assert service.calls() == [("encode", 1), ("respond", 1)]
