"""Fuzz of concept bottlenecks: corrections of any value, by name and as tensors."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serving.stand_ins import CONCEPT_GROUPS, CONCEPTS
from tests.serving.test_concepts import ConceptService, K, infer
from tests.serving.test_concepts_plain import BACKGROUND, SEEN, predict, send, told
from tests.serving.test_fuzz import WILD, _check_refusal, strict
from tests.serving.v2_client import outputs_of


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return ConceptService(tmp_path_factory.mktemp("concepts"), raises=False)


_WILD = st.sampled_from([value for value in WILD if not str(value).startswith("<")])
_NAMES = st.sampled_from([*CONCEPTS, *CONCEPT_GROUPS])
_VALUES = st.sampled_from([True, False, None, 0, 1, 0.5, 0.7, *BACKGROUND]) | st.floats(0, 1) | _WILD
_CORRECTIONS = st.dictionaries(_NAMES, _VALUES, max_size=4) | st.dictionaries(st.text(max_size=5), _VALUES, max_size=2)


@settings(
    max_examples=150, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_whatever_comes_is_answered_or_refused_in_one_sentence(service, data):
    state = told(predict(service))["state"]
    content = {"state": state, "interventions": data.draw(_CORRECTIONS | _WILD)}
    if data.draw(st.integers(0, 3)) == 0:
        content[data.draw(st.sampled_from(["state", "explain", "explain_class", "with_state", "inputs"]))] = data.draw(
            _WILD
        )
    reply = send(service, content)
    assert reply.status_code in (200, 400, 422), reply.text
    if reply.status_code != 200:
        _check_refusal(reply.content)
        return
    shown = strict(reply.content)
    for one in shown["concepts"]:
        value = (content["interventions"] or {}).get(one["name"])
        if isinstance(value, bool | int | float):
            assert one["after"] == np.float32(value)
            assert one["corrected"]


@settings(
    max_examples=100, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(seed=st.integers(0, 9999), wild=st.booleans())
def test_whatever_tensors_come_are_answered_or_refused_in_one_sentence(service, seed, wild):
    random = np.random.default_rng(seed)
    num, width = random.integers(1, 4), K if random.random() < 0.9 else random.integers(1, 9)
    values = random.choice([0, 1, 0.3, *([np.nan, -1, 2, np.inf] if wild else [])], (num, width)).astype(np.float32)
    flags = random.choice([0, 0, 0, 1, *([2, 255] if wild else [])], (2, num, width)).astype(np.uint8)
    every = {"concept_values": values, "concept_mask": flags[0], "concept_unknown": flags[1]}
    some = {name: tensor for name, tensor in every.items() if random.random() < 0.8}
    reply = infer(service, {"images": np.repeat(SEEN, num, axis=0), **some}, with_state=bool(random.integers(2)))
    assert reply.status_code in (200, 422), reply.content
    if reply.status_code == 422:
        _check_refusal(reply.content)
        return
    outputs = outputs_of(reply)
    assert all(np.isfinite(one).all() for one in outputs.values())
    if "concept_mask" in some and "concept_values" in some:
        np.testing.assert_array_equal(outputs["concepts"][flags[0] == 1], values[flags[0] == 1])
