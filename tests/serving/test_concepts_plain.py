"""Concept bottlenecks for people: corrections by name, what they change, what to ask next, the state that returns."""

import base64
import io
import json
import threading
import urllib.request
from urllib.parse import quote

import numpy as np
import pytest
import uvicorn
from openapi_spec_validator import validate
from PIL import Image

from serve.clients.local import LocalModel
from tenfold.data.images import resize_image
from tenfold.figures.overlays import overlay
from tests.serving.local import PNG, LocalService, encoded, random_image, refusal
from tests.serving.stand_ins import (
    CONCEPT_GROUPS,
    CONCEPT_LOADER,
    CONCEPTS,
    NUMBERS,
    SIZE,
    make_concept_bundle,
    served,
)
from tests.serving.test_concepts import ALWAYS, ConceptService, K, corrected, expected_map, infer
from tests.serving.v2_client import outputs_of

IMAGE = random_image(seed=4)
FILE = encoded(IMAGE)
SEEN = resize_image(IMAGE, SIZE)[None]
GROUP_OF = {CONCEPTS[k]: name for name, columns in CONCEPT_GROUPS.items() for k in columns}
BACKGROUND = [CONCEPTS[k] for k in CONCEPT_GROUPS["background"]]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return ConceptService(tmp_path_factory.mktemp("concepts"), raises=False)


def predict(service, interventions=None, how="form", model="digits", accept=None, query=(), **said):
    """``how``: as what the image comes, and with it what is said of it."""
    headers, query = {"accept": accept} if accept else {}, dict(query)
    if how == "body":
        return service.http.post(f"/predict/{model}", content=FILE, params=query, headers=PNG | headers)
    if how == "json":
        content = {"image": base64.b64encode(FILE).decode(), **said}
        content |= {} if interventions is None else {"interventions": interventions}
        return service.http.post(f"/predict/{model}", json=content, params=query, headers=headers)
    said |= {} if interventions is None else {"interventions": json.dumps(interventions)}
    files = {"image": ("a.png", FILE, "image/png")}
    return service.http.post(f"/predict/{model}", files=files, data=said, params=query, headers=headers)


def send(service, content, model="digits", query=""):
    body = json.dumps(content)  # with half of a surrogate pair, which httpx won't write
    headers = {"content-type": "application/json"}
    return service.http.post(f"/predict/{model}{query}", content=body, headers=headers)


def told(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()


def answer(reply):
    """The reply without what differs from request to request."""
    return {name: value for name, value in told(reply).items() if name != "request_id"}


def marks(reply):
    """Names of the concepts that are corrected, and of those that nobody knows."""
    concepts = told(reply)["concepts"]
    return [{one["name"] for one in concepts if one[mark]} for mark in ("corrected", "unknown")]


def after(reply):
    return {one["name"]: one["after"] for one in told(reply)["concepts"]}


# -- replies


@pytest.mark.parametrize("how", ["form", "json", "body"])
def test_people_see_concepts_class_and_what_to_ask(service, how):
    reply = told(predict(service, how=how))
    outputs = outputs_of(infer(service, {"images": SEEN}, with_state=True))
    head = ["model", "version", "request_id", "task"]
    assert list(reply) == [*head, "class", "concepts", "classes", "next", "state"]
    assert (reply["model"], reply["version"], reply["task"]) == ("digits", "2", "concepts")
    probs = outputs["probs"][0]
    order = np.argsort(-probs)
    classes = [{"name": NUMBERS[k], "probability": float(probs[k])} for k in order]
    assert reply["classes"] == classes
    assert reply["class"] == {"before": classes[0], "after": classes[0]}
    assert reply["concepts"] == [
        {"name": name, "group": GROUP_OF[name], "before": float(before), "after": float(later),
         "corrected": False, "unknown": False}
        for name, before, later in zip(CONCEPTS, outputs["concept_probs"][0], outputs["concepts"][0], strict=True)
    ]  # fmt: skip
    question = list(CONCEPT_GROUPS)[outputs["next_concept"][0]]
    assert reply["next"] == {
        "question": question,
        "concepts": [CONCEPTS[k] for k in CONCEPT_GROUPS[question]],
        "gain": float(outputs["next_gain"][0]),
        "cost": 2.0 if question == "background" else 1.0,
    }
    assert base64.b64decode(reply["state"]) == outputs["state"].tobytes()
    assert service.traces[-1].num_images == 1


@pytest.mark.parametrize("how", ["form", "json"])
def test_a_correction_says_what_it_changed_with_the_numbers_of_v2(service, how):
    reply = told(predict(service, {"segment_top": True, "loop": 0.7, "prime": None}, how))
    tensors = corrected(1, {"segment_top": 1, "loop": 0.7}, prime=True)
    outputs = outputs_of(infer(service, {"images": SEEN, **tensors}))
    before = outputs_of(infer(service, {"images": SEEN}))
    for when, probs in (("before", before["probs"][0]), ("after", outputs["probs"][0])):
        assert reply["class"][when] == {"name": NUMBERS[probs.argmax()], "probability": float(probs.max())}
    assert [one["before"] for one in reply["concepts"]] == before["concepts"][0].tolist()
    assert [one["after"] for one in reply["concepts"]] == outputs["concepts"][0].tolist()
    assert [one["corrected"] for one in reply["concepts"]] == tensors["concept_mask"][0].astype(bool).tolist()
    assert [one["unknown"] for one in reply["concepts"]] == tensors["concept_unknown"][0].astype(bool).tolist()
    assert reply["next"]["question"] == list(CONCEPT_GROUPS)[outputs["next_concept"][0]]


def test_the_word_top_cuts_the_classes(service):
    assert len(told(predict(service, how="body", query={"top": 2}))["classes"]) == 2
    assert len(told(predict(service, how="body", query={"top": 99}))["classes"]) == len(NUMBERS)
    for wrong in ("0", "-1", "x", "1.5", "9" * 5000):
        assert "'top' must be a whole number of at least 1" in refusal(predict(service, query={"top": wrong}), 422)


def test_the_state_can_be_left_out(service):
    for reply in (predict(service, query={"with_state": "false"}), predict(service, how="json", with_state=False)):
        assert "state" not in told(reply)


def test_nothing_is_left_to_ask_in_the_end(service):
    reply = told(predict(service, dict.fromkeys(CONCEPT_GROUPS)))
    assert reply["next"] is None
    assert reply["class"]["before"] == reply["class"]["after"]
    assert all(one["unknown"] for one in reply["concepts"])


# -- corrections by name


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"background": "clouds"}, {"plain": False, "clouds": True, "stripes": False}),
        ({"clouds": True}, {"plain": False, "clouds": True, "stripes": False}),
        ({"clouds": 1}, {"plain": 0, "clouds": 1.0, "stripes": 0.0}),
        ({"background": "clouds", "clouds": True, "plain": False}, {"background": "clouds"}),
        ({"background": None}, {"plain": None, "clouds": None, "stripes": None}),
        ({"background": None, "plain": None}, {"background": None}),
        ({"segments": None}, {"segment_top": None, "segment_low": None}),
        ({"kind": None}, {"prime": None}),
        ({}, {}),
    ],
)
def test_two_ways_to_say_the_same(service, given, same):
    assert answer(predict(service, given)) == answer(predict(service, same, "json"))


def test_a_true_concept_of_an_exclusive_group_leaves_what_is_said_of_the_others(service):
    reply = predict(service, {"clouds": True, "plain": 0.3, "stripes": None})
    assert marks(reply) == [{"plain", "clouds"}, {"stripes"}]
    assert after(reply)["plain"] == pytest.approx(0.3)


def test_half_a_truth_and_a_denial_imply_nothing(service):
    assert marks(predict(service, {"clouds": 0.9})) == [{"clouds"}, set()]
    assert marks(predict(service, {"clouds": False})) == [{"clouds"}, set()]
    assert marks(predict(service, {"segment_top": True})) == [{"segment_top"}, set()]


def test_a_group_may_have_the_name_of_its_concept(service):
    assert marks(predict(service, {"loop": True})) == [{"loop"}, set()]
    assert marks(predict(service, {"loop": None})) == [set(), {"loop"}]


def test_a_null_means_no_corrections(service):
    assert answer(predict(service, None)) == answer(send(service, {"image": base64.b64encode(FILE).decode(),
                                                                    "interventions": None}))  # fmt: skip


MEMBERS = ", ".join(BACKGROUND)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"segment_tpo": True}, "digits has no concept 'segment_tpo' to correct; the nearest are segment_top, s"),
        ({"zzz": True}, f"it has the concepts {', '.join(CONCEPTS)} and the groups segments, kind, background"),
        ({"eight": True}, "has no concept 'eight' to correct"),
        ({"x" * 3000: True}, f"has no concept '{'x' * 79}... to correct"),
        ({"loop": 1.5}, "'interventions' of 'loop' must be true, false, a number from 0 to 1, or null where nobody"),
        ({"loop": -0.1}, "got -0.1"),
        ({"loop": "true"}, "must be true, false, a number from 0 to 1, or null where nobody knows, got 'true'"),
        ({"prime": "prime"}, "got 'prime'"),
        ({"prime": [True]}, "got [True]"),
        ({"prime": {"a": 1}}, "got {'a': 1}"),
        ({"prime": 10**400}, "got 1000"),
        ({"background": True}, f"'background' must be the name of its one true concept ({MEMBERS}), or null"),
        ({"background": "loop"}, f"'background' must be the name of its one true concept ({MEMBERS}), or null"),
        ({"background": ["plain"]}, "or null where nobody knows, got ['plain']"),
        ({"segments": "segment_top"}, "so name each of segment_top, segment_low; the groups that take the name of "
                                      "their one true concept are background"),
        ({"kind": "prime"}, "several concepts of the group 'kind' may be true, so name each of prime; the groups that"),
        ({"clouds": True, "plain": True}, f"at most one concept of the group 'background' ({MEMBERS}) may be true"),
        ({"clouds": 0.6, "plain": 0.6}, "may be true, got plain, clouds in example 0"),
        ({"background": "clouds", "plain": True}, "'background' makes 'plain' false, which is given as true; give one"),
        ({"background": "clouds", "clouds": False}, "'background' makes 'clouds' true, which is given as false"),
        ({"background": "clouds", "plain": None}, "'background' makes 'plain' false, which is given as unknown"),
        ({"background": "clouds", "plain": 0.3}, "'background' makes 'plain' false, which is given as 0.3"),
        ({"background": None, "plain": True}, "'background' makes 'plain' unknown, which is given as true"),
        ([], """'interventions' must be an object: JSON such as {"a concept": true"""),
        ("loop", "'interventions' must be an object"),
        (True, "'interventions' must be an object"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["form", "json"])
def test_wrong_corrections_are_told_what_is_right(service, given, message, how):
    assert message in refusal(predict(service, given, how), 422)
    assert service.traces[-1].reason == "interventions"


def test_many_names_are_not_told_in_full(service, tmp_path):
    names = [f"concept {k}" for k in range(100)]
    many = LocalService([
        served(make_concept_bundle(tmp_path / "many", names=names, grouped=False), "many", loader=CONCEPT_LOADER)
    ])  # fmt: skip
    reply = predict(many, {"zzz": True}, model="many")
    assert "it has the concepts concept 0, concept 1, " in refusal(reply, 422)
    assert refusal(reply, 422).endswith("concept 11 ... (100 in all)")
    assert "the nearest are concept 9" in refusal(predict(many, {"concept_99": True}, model="many"), 422)
    assert "are none" not in refusal(reply, 422)
    assert told(predict(many, {"concept 99": True}, model="many"))["concepts"][99]["group"] is None


def test_a_form_needs_json_once(service):
    files = {"image": ("a.png", FILE, "image/png")}
    broken = service.http.post("/predict/digits", files=files, data={"interventions": "{loop: true}"})
    assert "the form's field 'interventions' must be JSON such as" in refusal(broken, 422)
    twice = service.http.post("/predict/digits", files=files, data={"interventions": ["{}", "{}"]})
    assert "the form needs 'interventions' once, got it 2 times" in refusal(twice, 422)
    again = service.http.post("/predict/digits", files=files, data={"interventions": '{"loop": 1, "loop": 0}'})
    assert "gives the key 'loop' twice" in refusal(again, 422)


def test_keys_are_limited(tmp_path):
    service = ConceptService(tmp_path, max_json_keys=4)
    many = {f"x{k}": True for k in range(5)}
    for how in ("form", "json"):
        assert "at most 4 keys" in refusal(predict(service, many, how), 422)


@pytest.mark.parametrize("word", ["interventions", "state"])
def test_the_query_holds_no_corrections(service, word):
    reply = predict(service, how="body", query={word: "{}"})
    assert f"'{word}' belongs in the body, as a member of the JSON or a field of the form" in refusal(reply, 422)


def test_other_models_know_none_of_it(service):
    message = refusal(predict(service, model="colour", how="body", query={"with_state": "true"}), 422)
    assert message == "model colour does multi_label, which knows no 'with_state'"
    level = predict(service, how="body", query={"level": "0.9"})
    assert refusal(level, 422) == "model digits does concepts, which knows no 'level'"


# -- states


def test_a_state_answers_as_its_picture_bit_for_bit_without_the_backbone(service):
    state = told(predict(service))["state"]
    for said in (None, {"segment_top": True, "loop": 0.7, "prime": None}, {"background": "clouds"}):
        service.calls().clear()
        of_state = send(service, {"state": state, "interventions": said}, query="?top=2")
        assert {what for what, _ in service.calls()} == {"unpack", "respond"}
        assert answer(of_state) == answer(predict(service, said, query={"top": 2}))
        assert of_state.json()["state"] == state


def test_a_state_that_is_not_one_is_told_what_is(service):
    state = told(predict(service))["state"]
    changed = ("A" if state[0] != "A" else "B") + state[1:]
    for content, message in [
        ({"state": changed}, "state 0 must come unchanged from an answer of this version of the model"),
        ({"state": told(predict(service, model="other"))["state"]}, "state 0 must come unchanged from an answer"),
        ({"state": state[:-4]}, f"'state' must be [N,{4 * K + 16}], the 'state' of an earlier answer by this version"),
        ({"state": ""}, f"'state' must be [N,{4 * K + 16}]"),
        ({"state": state + "!"}, "'state' must be the text in base64 of an earlier reply's 'state', got "),
        ({"state": "\ud800"}, "'state' must be the text in base64"),
        ({"state": [1, 2]}, "'state' must be the text in base64 of an earlier reply's 'state', got [1, 2]"),
        ({"state": state, "image": base64.b64encode(FILE).decode()}, "in its place 'state' of an earlier reply, got "
                                                                     "'image' and 'state'"),
        ({"state": state, "explain": True}, "'explain' needs the picture, which a 'state' does not hold"),
        ({}, "needs the picture ('image', in JSON in base64), or in its place 'state' of an earlier reply, got nei"),
        ({"inputs": {"predictions": [0.5] * K}}, "needs the picture ('image', in JSON in base64), or in its place"),
    ]:  # fmt: skip
        assert message in refusal(send(service, content), 422), message
    both = predict(service, None, state=state)
    assert "got 'image' and 'state'" in refusal(both, 422)


def test_a_picture_is_corrected_until_its_class_flips_over_a_socket(service):
    server = uvicorn.Server(uvicorn.Config(service.http.app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]

        def ask(content):
            body, headers = json.dumps(content).encode(), {"content-type": "application/json"}
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict/digits", body, headers)
            with urllib.request.urlopen(asked) as reply:
                return json.load(reply)

        reply = ask({"image": base64.b64encode(FILE).decode()})
        first, said = reply["class"]["before"], {}
        while reply["class"]["after"]["name"] == first["name"]:
            assert reply["next"] is not None, "every correction was tried"
            # The opposite of what the model believes of what it asks.
            name = reply["next"]["concepts"][0]
            believed = {one["name"]: one["after"] for one in reply["concepts"]}[name]
            said |= {name: believed < 0.5}
            said |= {other: None for other in reply["next"]["concepts"][1:] if other not in said}
            reply = ask({"state": reply["state"], "interventions": said})
            assert reply["class"]["before"] == first
    finally:
        server.should_exit = True
        thread.join()
    assert said
    assert marks_of(reply) == {name for name, value in said.items() if value is not None} | implied(said)


def marks_of(reply):
    return {one["name"] for one in reply["concepts"] if one["corrected"]}


def implied(said):
    """Concepts that a true one of the background makes false."""
    free = {name for name in BACKGROUND if name not in said}
    return free if any(said.get(name) for name in BACKGROUND) else set()


# -- predictions of another model


def test_predictions_come_by_name(service):
    given = [0.1, 0.9, 0.5, 0.3, 0.2, 0.2, 0.8]
    reply = told(send(service, {"inputs": {"predictions": given}, "interventions": {"loop": False}}, "listed"))
    assert [one["before"] for one in reply["concepts"]] == pytest.approx(given, abs=1e-6)
    assert (reply["concepts"][2]["after"], reply["concepts"][2]["group"]) == (0.0, None)
    assert reply["next"]["concepts"] == [reply["next"]["question"]]
    again = send(service, {"state": reply["state"], "interventions": {"loop": False}}, "listed")
    assert answer(again) == {name: value for name, value in reply.items() if name != "request_id"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "model listed needs 'inputs' with 'predictions', or in its place 'state' of an earlier reply, got nei"),
        ({"inputs": {}}, "'inputs' must be an object with 'predictions' alone, got []"),
        ({"inputs": {"predictions": [0.5] * K, "state": 1}}, "alone, got ['predictions', 'state']"),
        ({"inputs": [0.5] * K}, "'inputs' must be an object with 'predictions' alone, got [0.5, "),
        ({"inputs": {"predictions": [0.5] * (K - 1)}}, f"[N,{K}], a column for each of the concepts {CONCEPTS[0]}, "),
        ({"inputs": {"predictions": [[0.5] * K]}}, f"must be [N,{K}], a column for each of the concepts"),
        ({"inputs": {"predictions": ["a"] * K}}, "'predictions' must hold numbers that float32 can hold"),
        ({"inputs": {"predictions": [0.5] * (K - 1) + [2]}}, "'predictions' must lie in 0..1, got 2 for 'stripes'"),
        ({"inputs": {"predictions": [1e300] * K}}, "'predictions' must hold finite float32 numbers"),
        ({"inputs": {"predictions": [0.5] * K}, "explain": True}, "gives no attribution maps; of the models served "
                                                                   "here, these do: digits, other"),
        ({"image": base64.b64encode(FILE).decode()}, "needs 'inputs' with 'predictions', or in its place 'state'"),
        ({"inputs": {"predictions": [0.5] * K}, "interventions": {"background": None}}, "no concept 'background'"),
    ],
)  # fmt: skip
def test_wrong_predictions_are_told_what_is_right(service, content, message):
    assert message.removeprefix("model listed ") in refusal(send(service, content, "listed"), 422)


# -- maps


@pytest.mark.parametrize("how", ["form", "json", "body"])
def test_a_map_is_summed_up_or_shown(service, how):
    said = {"explain": True if how == "json" else "true", "explain_class": "loop"}
    said = {"query": said} if how == "body" else said
    reply = told(predict(service, how=how, **said))
    [scores] = expected_map(service, SEEN, [2])
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    place = {"x": int(column), "y": int(row)}
    assert reply["explanation"] == {"concept": "loop", "index": 2, "image_size": SIZE, "strongest": place}
    assert answer(predict(service)) == {
        name: value for name, value in reply.items() if name not in ("request_id", "explanation")
    }
    assert service.traces[-2].num_explained == 1
    png = predict(service, how=how, accept="image/png", **said)
    assert png.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png.content))), overlay(SEEN[0], scores))
    assert png.headers["tenfold-class"] == quote(reply["class"]["after"]["name"])
    assert png.headers["tenfold-explained-concept"] == "loop"
    assert float(png.headers["tenfold-explained-probability"]) == pytest.approx(reply["concepts"][2]["after"], rel=1e-4)


def test_the_question_is_what_is_explained_without_a_choice(service):
    reply = told(predict(service, {"prime": True}, explain="true"))
    assert reply["explanation"]["concept"] in reply["next"]["concepts"]


def test_a_png_comes_only_with_a_map(service):
    assert predict(service, accept="image/png").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"explain": "overlay"}, "'explain' must be true or false, got 'overlay'"),
        ({"explain": "true", "explain_class": "lop"}, f"has no concept 'lop' to explain; it has {', '.join(CONCEPTS)}"),
        ({"explain_class": "loop"}, "'explain_class' says which concept to explain, so 'explain' must be true with it"),
    ],
)
def test_wrong_wishes_are_refused(service, said, message):
    assert message in refusal(predict(service, **said), 422)
    assert "given in the query and in the body; give it once" in refusal(
        predict(service, explain="true", query={"explain": "true"}), 422
    )
    assert "gives no attribution maps" in refusal(predict(service, model="bare", explain="true"), 422)


# -- roll-outs


def test_names_of_a_version_before_do_not_correct_other_concepts_of_the_next(tmp_path):
    service = ConceptService(tmp_path)
    state = told(predict(service))["state"]
    order = [*CONCEPTS[1:4], CONCEPTS[0], *CONCEPTS[4:]]
    bundle = make_concept_bundle(tmp_path / "next", names=order)
    service.clients["digits"].become(LocalModel(served(bundle, "digits", version="3", loader=CONCEPT_LOADER)))
    changing = predict(service, {"loop": True})
    assert "is changing its version; try again" in refusal(changing, 503)
    assert changing.headers["retry-after"] == "1"
    reply = predict(service, {"loop": True})
    assert told(reply)["version"] == "3"
    assert after(reply)["loop"] == 1
    bundle = make_concept_bundle(tmp_path / "third", seed=3)
    service.clients["digits"].become(LocalModel(served(bundle, "digits", version="4", loader=CONCEPT_LOADER)))
    assert predict(service).status_code == 503
    assert "state 0 must come unchanged" in refusal(send(service, {"state": state}), 422)


# -- OpenAPI


def test_the_document_is_valid_and_its_examples_are_answered(service):
    document = service.http.get("/openapi.json").json()
    validate(document)
    for name in ("digits", "bare", "listed"):
        post = document["paths"][f"/predict/{name}"]["post"]
        schema = post["requestBody"]["content"]["application/json"]
        reply = send(service, schema["example"], name)
        assert marks_of(told(reply)) == {CONCEPTS[0]}
        shown = post["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
        assert reply.json().keys() <= shown.keys()
        infer = document["paths"][f"/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
        told_by_v2 = service.http.post(f"/v2/models/{name}/infer", json=infer["example"])
        assert list(outputs_of(told_by_v2)) == ALWAYS
    digits = document["paths"]["/predict/digits"]["post"]
    body = digits["requestBody"]["content"]["application/json"]["schema"]["properties"]
    corrections = body["interventions"]["properties"]
    assert corrections["background"] == {"enum": [*BACKGROUND, None]}
    assert corrections["segments"] == {"enum": [None]}
    assert {"type": "number", "minimum": 0, "maximum": 1} in corrections["loop"]["anyOf"]
    assert corrections.keys() == {*CONCEPTS, *CONCEPT_GROUPS}
    assert [each["name"] for each in digits["parameters"]] == ["top", "with_state", "explain", "explain_class"]
    assert "image/png" in digits["responses"]["200"]["content"]
    assert (
        "explain"
        not in document["paths"]["/predict/bare"]["post"]["requestBody"]["content"]["application/json"]["schema"][
            "properties"
        ]
    )
