"""Concepts: what an image shows, with corrections by people, the class that follows, and what to ask next.

An answer's ``state`` stands for the image in later requests, so that a correction takes no pass of the backbone and the
server remembers nothing.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serve.contract import (
    FILE,
    Answer,
    Call,
    Description,
    Failure,
    Form,
    Limits,
    Outputs,
    Picture,
    RefusedError,
    Sent,
    Start,
    check_reply,
    invalid,
    shown,
)
from serve.tasks import slots
from serve.tasks.batches import as_arrays, divided, isolated
from serve.tasks.maps import MAP_OUTPUTS, ClassIndex, check_explains, check_size, read_explain
from serve.tasks.pictures import PNG, overlay_png, prefers_png, strongest
from tenfold.bundle import BundleError, load_probes
from tenfold.tasks import (
    ATTRIBUTIONS,
    CONCEPT_MASK,
    CONCEPT_PROBS,
    CONCEPT_UNKNOWN,
    CONCEPT_VALUES,
    CONCEPTS,
    EXPLAIN,
    EXPLAIN_CLASS,
    EXPLAINED,
    NEXT_CONCEPT,
    NEXT_GAIN,
    PREDICTIONS,
    STATE,
    WITH_STATE,
    ConceptPredictor,
    Param,
    Signature,
)

TOP, INTERVENTIONS = "top", "interventions"
WORDS = (TOP, WITH_STATE, EXPLAIN, EXPLAIN_CLASS)
ACCEPTED = (
    "send the file as multipart/form-data, as a body of type image/jpeg, image/png or image/webp, or as JSON, where "
    "'state' may come in its place"
)
CORRECTIONS = (CONCEPT_VALUES, CONCEPT_MASK, CONCEPT_UNKNOWN)
_SHOWN_CLASSES = 5
_TOLD_NAMES, _TOLD_LETTERS = 12, 80
_TOP = Param(name=TOP, schema={"type": "integer", "minimum": 1, "description": "a whole number of at least 1"})
_NOUNS = ("concept", "concepts")
_FORM = """JSON such as {"a concept": true, "another": 0.7, "a third": null}"""
_VALUES = "true, false, a number from 0 to 1, or null where nobody knows"
_NAMES, _BEFORE = "names", "before"
"""Parameters of plain calls alone: the concepts whose columns they speak of; whether to answer uncorrected, too."""
_PROBS_BEFORE = "probs_before"
"""Output of plain calls alone: probabilities without corrections."""
misnamed = slots.misnamed


def read(sent: Sent, description: Description, limits: Limits) -> Call:
    """Read one image, or what stands for it, with corrections by name.

    Raises:
        RefusedError: 422, naming what was expected.
    """
    signature = description.signature
    for word in (INTERVENTIONS, STATE):
        if word in sent.query:
            raise invalid(f"{word!r} belongs in the body, as a member of the JSON or a field of the form", word)
    _read_top(sent)
    params = slots.read_params(sent, signature, limits)
    is_said = any(word in place for word in (EXPLAIN, EXPLAIN_CLASS) for place in (sent.query, sent.texts, sent.values))
    check_explains(signature.gives(ATTRIBUTIONS) or not is_said, description.name, description.method)
    corrections = _read_interventions(sent, description, limits)
    inputs = {**_read_seen(sent, description, limits), **corrections}
    call = Call(inputs=inputs, params={WITH_STATE: True, **params})
    call = accept(call, description, limits, lambda output: output not in (STATE, ATTRIBUTIONS))
    own = {_NAMES: list(signature.about["concepts"]), _BEFORE: bool(corrections)}
    return replace(call, params={**call.params, **own})


def accept(call: Call, description: Description, limits: Limits, in_text: Callable[[str], bool]) -> Call:
    """Check inputs and parameters; naming an optional output asks for it, too. See ``Kind``."""
    signature = description.signature
    _check_inputs(call.inputs, signature)
    num = signature.num_examples(call.inputs)
    if num > limits.max_images:
        raise invalid(f"a request may have at most {limits.max_images} examples, got {num}", "batch_size")
    named = set(call.outputs or ())
    params = read_explain(call.params, not named.isdisjoint(MAP_OUTPUTS), num, _NOUNS[0])
    if params:
        _check_explains(call.inputs, description)
        check_size(num, signature.inputs[0].shape[0], in_text(ATTRIBUTIONS), limits)
    if _wants_state(call.params, STATE in named, signature):
        params[WITH_STATE] = True
    asked = ((*MAP_OUTPUTS,) if EXPLAIN in params else ()) + ((STATE,) if WITH_STATE in params else ())
    outputs = call.outputs
    if outputs is not None:
        more = [name for name in asked if name not in named and (name == STATE or named.isdisjoint(MAP_OUTPUTS))]
        outputs = (*outputs, *more)
    wanted = outputs or (*(slot.name for slot in signature.always), *asked)
    sizes = {slot.name: num * math.prod(slot.shape) for slot in signature.outputs if slot.name in wanted}
    check_reply(sum(size for name, size in sizes.items() if in_text(name)), True, limits)
    check_reply(sum(sizes.values()), False, limits)
    return Call(inputs=call.inputs, params=params, outputs=outputs, budget=call.budget)


def show(
    answer: Answer, call: Call, description: Description, sent: Sent, limits: Limits
) -> Mapping[str, Any] | Picture:
    """Show class and concepts before and after corrections, the next question and the state; or a concept's map."""
    signature, outputs = description.signature, answer.outputs
    classes, probs = signature.columns, outputs["probs"][0]
    if len(probs) != len(classes):  # a faulty predictor; wrong names would be worse than an error
        raise ValueError(f"model {description.name} gave {len(probs)} probabilities for {len(classes)} classes")
    ranked = _ranked(classes, probs)
    reply: dict[str, Any] = {
        "class": {"before": _ranked(classes, outputs.get(_PROBS_BEFORE, outputs["probs"])[0])[0], "after": ranked[0]},
        "concepts": _concepts_of(answer, call, signature),
        "classes": ranked[: _read_top(sent)],
        "next": _next_of(answer, signature.about),
    }
    if STATE in outputs:
        reply[STATE] = base64.b64encode(outputs[STATE][0].tobytes()).decode()
    if EXPLAIN not in call.params:
        return reply
    index = int(outputs[EXPLAINED][0])
    scores, of_concept = outputs[ATTRIBUTIONS][0], reply["concepts"][index]
    if not prefers_png(sent.accept):
        place = {"image_size": len(scores), "strongest": strongest(scores)}
        return {**reply, "explanation": {"concept": of_concept["name"], "index": index, **place}}
    headers = {
        "tenfold-class": quote(ranked[0]["name"], safe=" "),
        "tenfold-probability": f"{ranked[0]['probability']:.6g}",
        "tenfold-explained-concept": quote(of_concept["name"], safe=" "),
        "tenfold-explained-index": str(index),
        "tenfold-explained-probability": f"{of_concept['after']:.6g}",
    }
    image = call.inputs[signature.inputs[0].name][0]
    return Picture(content=overlay_png(image, scores), media_type=PNG, headers=headers)


def form(description: Description) -> Form:
    """Describe what ``read`` takes and ``show`` gives."""
    signature = description.signature
    about, takes_file = signature.about, signature.preprocessing is not None
    exclusive = {name: about["groups"][name] for name in about["exclusive"]}
    value = {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]}
    named: dict[str, Any] = {name: {"enum": [*exclusive.get(name, ()), None]} for name in about["groups"] or ()}
    named |= dict.fromkeys(about["concepts"], value)
    for name in {*about["concepts"]} & exclusive.keys():
        named[name] = {"anyOf": [*value["anyOf"], {"enum": exclusive[name]}]}
    first = about["concepts"][0]
    properties: dict[str, Any] = {
        STATE: {"type": "string", "format": "byte", "description": "In JSON, in place of the image or the inputs: "
                "'state' of an earlier reply. It holds for one version of the model."},
        INTERVENTIONS: {"type": "object", "properties": named, "additionalProperties": False,
                        "description": f"Corrections: {_VALUES}, for a concept; its one true concept, which makes the "
                        "others false, for an exclusive group; null for any group.",
                        "examples": [{first: True}]},
    }  # fmt: skip
    query: dict[str, Any] = {
        TOP: {"type": "integer", "minimum": 1, "description": f"Number of 'classes'. Default: {_SHOWN_CLASSES}."},
        WITH_STATE: {"type": "boolean", "description": "Whether the reply has the 'state'. Default: true."},
    }
    if signature.gives(ATTRIBUTIONS):
        query[EXPLAIN] = {"type": "boolean", "description": "Where the image shows a concept: adds 'explanation'; with "
                          "'Accept: image/png' the reply is the image under the colours of the map."}  # fmt: skip
        query[EXPLAIN_CLASS] = {"type": "string", "description": "Name or index of the concept to explain. Default: "
                                "the most uncertain one of the next question."}  # fmt: skip
        properties[EXPLAIN] = query[EXPLAIN]
        properties[EXPLAIN_CLASS] = {**query[EXPLAIN_CLASS], "type": ["string", "integer"]}
    properties[WITH_STATE] = query[WITH_STATE]
    example: dict[str, Any] = {INTERVENTIONS: {first: True}}
    if takes_file:
        properties = {FILE: slots.IMAGE_SCHEMA, **properties}
        example[FILE] = _blank_png()
    else:
        row = {**slots.json_schema(signature.inputs[0]), "items": {"type": "number", "minimum": 0, "maximum": 1}}
        inputs = {"type": "object", "properties": {PREDICTIONS: row}, "required": [PREDICTIONS],
                  "additionalProperties": False, "description": "Concepts that another model predicts."}  # fmt: skip
        properties = {slots.INPUTS: inputs, **properties}
        example[slots.INPUTS] = {PREDICTIONS: [0.5] * len(about["concepts"])}
    return Form(
        properties=properties,
        required=(),
        example=example,
        takes_file=takes_file,
        query=query,
        reply=_reply_schema(signature),
        gives_picture=signature.gives(ATTRIBUTIONS),
    )


# ---- from people ----


def _read_top(sent: Sent) -> int:
    text = sent.query.get(TOP)
    return _SHOWN_CLASSES if text is None else int(slots.check_param(_TOP, text))


def _read_seen(sent: Sent, description: Description, limits: Limits) -> Outputs:
    """What stands for the image: it, the concepts that another model has seen in it, or the state of an answer."""
    first = description.signature.inputs[0]
    state = next(iter(sent.texts.get(STATE, ())), sent.values.get(STATE))
    given = {FILE: sent.file, slots.INPUTS: sent.values.get(slots.INPUTS), STATE: state}
    found = [name for name, value in given.items() if value is not None]
    own = slots.INPUTS if first.image is None else FILE
    if found not in ([own], [STATE]):
        of_own = f"{own!r} with {PREDICTIONS!r}" if first.image is None else f"the picture ({own!r}, in JSON in base64)"
        raise invalid(
            f"a request to model {description.name} needs {of_own}, or in its place {STATE!r} of an earlier reply, got "
            f"{' and '.join(map(repr, found)) or 'neither'}",
            "picture",
        )
    if found == [STATE]:
        return {STATE: _bytes_of(state)}
    if sent.file is not None:
        return {first.name: slots.pixels(sent.file, first, limits)}
    values = sent.values[slots.INPUTS]
    if not isinstance(values, dict) or values.keys() != {PREDICTIONS}:
        got = sorted(values) if isinstance(values, dict) else values
        raise invalid(f"{slots.INPUTS!r} must be an object with {PREDICTIONS!r} alone, got {shown(got)}")
    return {PREDICTIONS: slots.numbers(PREDICTIONS, values[PREDICTIONS], first.dtype)[None]}


def _bytes_of(text: Any) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        data = None
    if data is None:
        raise invalid(f"{STATE!r} must be the text in base64 of an earlier reply's {STATE!r}, got {shown(text)}", STATE)
    return np.frombuffer(data, np.uint8)[None]


def _read_interventions(sent: Sent, description: Description, limits: Limits) -> Outputs:
    """Corrections by name as inputs of a call; empty where there are none."""
    text = slots.form_text(sent, INTERVENTIONS)
    given = sent.values.get(INTERVENTIONS)
    if text is not None:
        given = slots.json_text(INTERVENTIONS, text, _FORM, limits)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise invalid(f"{INTERVENTIONS!r} must be an object: {_FORM}, got {shown(given)}", INTERVENTIONS)
    found = _by_concept(given, description)
    names = description.signature.about["concepts"]
    if not found:
        return {}
    return {
        CONCEPT_VALUES: np.array([[found.get(name) or 0.0 for name in names]], np.float32),
        CONCEPT_MASK: np.array([[found.get(name) is not None for name in names]], np.uint8),
        CONCEPT_UNKNOWN: np.array([[name in found and found[name] is None for name in names]], np.uint8),
    }


def _by_concept(given: Mapping[str, Any], description: Description) -> dict[str, float | None]:
    """Value of each concept that corrections speak of, None where nobody knows."""
    about = description.signature.about
    concepts, groups = set(about["concepts"]), about["groups"] or {}
    own: dict[str, float | None] = {}
    of_groups: dict[str, float | None] = {}
    for name, value in given.items():
        if name in concepts and not (isinstance(value, str) and name in about["exclusive"]):
            own[name] = _value_of(name, value)
        elif name in groups:
            of_group = _values_of_group(name, value, about)
            for member, implied in of_group.items():
                if member in given and (said := _value_of(member, given[member])) != implied:
                    raise invalid(
                        f"{INTERVENTIONS!r} must not contradict themselves: {name!r} makes {member!r} "
                        f"{_told(implied)}, which is given as {_told(said)}; give one of them",
                        INTERVENTIONS,
                    )
            of_groups |= of_group
        else:
            raise _unknown(name, description)
    found: dict[str, float | None] = {**of_groups, **own}
    for name in about["exclusive"]:
        members = groups[name]
        if sum(found.get(member) == 1 for member in members) == 1:
            found = {**dict.fromkeys(members, 0.0), **found}
    return found


def _value_of(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and 0 <= value <= 1:  # neither NaN
        return float(value)
    raise invalid(f"{INTERVENTIONS!r} of {name!r} must be {_VALUES}, got {shown(value)}", INTERVENTIONS)


def _values_of_group(name: str, value: Any, about: Mapping[str, Any]) -> dict[str, float | None]:
    members = about["groups"][name]
    if value is None:
        return dict.fromkeys(members)
    if name not in about["exclusive"]:
        raise invalid(
            f"several concepts of the group {name!r} may be true, so name each of {_some(members)}; the groups that "
            f"take the name of their one true concept are {_some(about['exclusive']) or 'none'}",
            INTERVENTIONS,
        )
    if value not in members:
        expected = f"the name of its one true concept ({_some(members)}), or null where nobody knows"
        raise invalid(f"{INTERVENTIONS!r} of {name!r} must be {expected}, got {shown(value)}", INTERVENTIONS)
    return {member: float(member == value) for member in members}


def _unknown(name: str, description: Description) -> RefusedError:
    about = description.signature.about
    groups = [group for group in about["groups"] or () if group not in about["concepts"]]
    near = get_close_matches(name[:_TOLD_LETTERS], [*about["concepts"], *groups])
    way_out = f"the nearest are {_some(near)}" if near else f"it has the concepts {_some(about['concepts'])}"
    if groups and not near:
        way_out += f" and the groups {_some(groups)}"
    return invalid(f"model {description.name} has no concept {shown(name)} to correct; {way_out}", INTERVENTIONS)


def _some(names: Sequence[str]) -> str:
    """The first names, for a sentence."""
    told = ", ".join(
        name if len(name) <= _TOLD_LETTERS else f"{name[:_TOLD_LETTERS]}..." for name in names[:_TOLD_NAMES]
    )
    return told if len(names) <= _TOLD_NAMES else f"{told} ... ({len(names)} in all)"


def _told(value: float | None) -> str:
    return {None: "unknown", 0.0: "false", 1.0: "true"}.get(value, f"{value}")


# ---- to people ----


def _ranked(classes: Sequence[str], probs: np.ndarray) -> list[dict[str, Any]]:
    return [{"name": classes[k], "probability": float(probs[k])} for k in np.argsort(-probs, kind="stable")]


def _concepts_of(answer: Answer, call: Call, signature: Signature) -> list[dict[str, Any]]:
    names, groups = signature.about["concepts"], signature.about["groups"] or {}
    group_of = {member: name for name, members in groups.items() for member in members}
    nothing = np.zeros((1, len(names)), np.uint8)
    rows = zip(
        names,
        answer.outputs[CONCEPT_PROBS][0].tolist(),
        answer.outputs[CONCEPTS][0].tolist(),
        call.inputs.get(CONCEPT_MASK, nothing)[0].tolist(),
        call.inputs.get(CONCEPT_UNKNOWN, nothing)[0].tolist(),
        strict=True,
    )
    return [
        {"name": name, "group": group_of.get(name), "before": before, "after": after, "corrected": bool(corrected),
         "unknown": bool(unknown)}
        for name, before, after, corrected, unknown in rows
    ]  # fmt: skip


def _next_of(answer: Answer, about: Mapping[str, Any]) -> dict[str, Any] | None:
    number = int(answer.outputs[NEXT_CONCEPT][0])
    if number < 0:
        return None
    name = about["questions"][number]
    members = [name] if about["groups"] is None else about["groups"][name]
    gain = float(answer.outputs[NEXT_GAIN][0])
    return {"question": name, "concepts": [*members], "gain": gain, "cost": about["costs"][name]}


def _reply_schema(signature: Signature) -> dict[str, Any]:
    text, number, flag = {"type": "string"}, {"type": "number"}, {"type": "boolean"}

    def of(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return {"type": "object", "properties": dict(properties), "required": [*properties], **more}

    one = of({"name": text, "probability": number})
    concept = of({"name": text, "group": {"type": ["string", "null"]}, "before": number, "after": number,
                  "corrected": flag, "unknown": flag})  # fmt: skip
    question = of({"question": text, "concepts": {"type": "array", "items": text}, "gain": number, "cost": number})
    schema: dict[str, Any] = {
        "class": of({"before": one, "after": one}, description="Most probable class without and with corrections."),
        "concepts": {"type": "array", "items": concept, "description": "Every concept without and with corrections."},
        "classes": {"type": "array", "items": one, "description": "Most probable classes."},
        "next": {
            "anyOf": [question, {"type": "null"}],
            "description": "What to ask next, and by how many nats that is expected to lower the entropy of the class; "
            "null where nothing is left to ask, or the class is as sure as the model wants.",
        },
        STATE: {"type": "string", "format": "byte", "description": "Comes back in place of the image."},
    }
    if signature.gives(ATTRIBUTIONS):
        place = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}
        whole = {"type": "integer"}
        schema["explanation"] = of(
            {"concept": text, "index": whole, "image_size": whole, "strongest": {"anyOf": [place, {"type": "null"}]}},
            description="Summary of the map, only where it is asked for.",
        )
    return schema


def _blank_png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# ---- checks ----


def _wants_state(params: Mapping[str, Any], is_named: bool, signature: Signature) -> bool:
    wanted = params.get(WITH_STATE)
    if wanted is None:
        return is_named
    [param] = [param for param in signature.params if param.name == WITH_STATE]
    if not slots.check_param(param, wanted, STATE) and is_named:
        raise invalid(f"{WITH_STATE!r} is false, but the output {STATE!r} is asked for", STATE)
    return bool(wanted)


def _check_explains(inputs: Mapping[str, np.ndarray], description: Description) -> None:
    check_explains(description.signature.gives(ATTRIBUTIONS), description.name, description.method)
    if STATE in inputs:
        raise invalid(
            f"{EXPLAIN!r} needs the picture, which a {STATE!r} does not hold; send the picture in its place", "explain"
        )


def _check_inputs(inputs: Mapping[str, np.ndarray], signature: Signature) -> None:
    """Raise ``RefusedError`` (422) for inputs that do not fit, and for corrections that mean nothing."""
    names = signature.about["concepts"]
    for slot in signature.inputs:
        values = inputs.get(slot.name)
        if values is None or slot.holds(values.shape):
            continue
        if slot.name == STATE:
            raise invalid(
                f"{STATE!r} must be [N,{slot.shape[0]}], the {STATE!r} of an earlier answer by this version, got "
                f"{list(values.shape)}",
                STATE,
            )
        if slot.name in (*CORRECTIONS, PREDICTIONS):
            wanted = f"[N,{len(names)}], a column for each of the concepts {_some(names)}"
            raise invalid(f"{slot.name!r} must be {wanted}, got {list(values.shape)}", INTERVENTIONS)
    if message := slots.misfit(inputs, signature.inputs):
        raise invalid(message)
    _check_range(inputs.get(PREDICTIONS), f"{PREDICTIONS!r} must lie in 0..1", names)
    mask, unknown = (inputs.get(name) for name in (CONCEPT_MASK, CONCEPT_UNKNOWN))
    for name, flags in ((CONCEPT_MASK, mask), (CONCEPT_UNKNOWN, unknown)):
        if flags is not None and (place := _place(flags > 1)):
            raise invalid(f"{name!r} must be 0 or 1, got {flags[place]} for {_at(place, names)}", INTERVENTIONS)
    values = inputs.get(CONCEPT_VALUES)
    if mask is None:
        if values is not None:
            raise invalid(f"{CONCEPT_VALUES!r} need {CONCEPT_MASK!r}, 1 where they count, else 0", INTERVENTIONS)
        return
    if values is None:
        if mask.any():
            raise invalid(
                f"{CONCEPT_MASK!r} needs {CONCEPT_VALUES!r}, from 0 to 1 where it is 1, got none", INTERVENTIONS
            )
        return
    counting = np.where(mask == 1, values, np.float32(0))
    _check_range(counting, f"{CONCEPT_VALUES!r} must lie in 0..1 where {CONCEPT_MASK!r} is 1", names)
    if unknown is not None and (place := _place((mask == 1) & (unknown == 1))):
        raise invalid(
            f"a concept is either corrected or unknown: of {CONCEPT_MASK!r} and {CONCEPT_UNKNOWN!r} one must be 0, got "
            f"1 in both for {_at(place, names)}",
            INTERVENTIONS,
        )
    if mask.any():
        _check_exclusive(counting > 0.5, signature.about)


def _check_range(values: np.ndarray | None, expected: str, names: Sequence[str]) -> None:
    if values is not None and (place := _place(~((values >= 0) & (values <= 1)))):
        raise invalid(f"{expected}, got {values[place]:g} for {_at(place, names)}", INTERVENTIONS)


def _check_exclusive(is_true: np.ndarray, about: Mapping[str, Any]) -> None:
    column_of = {name: column for column, name in enumerate(about["concepts"])}
    for group in about["exclusive"]:
        columns = [column_of[name] for name in about["groups"][group]]
        twice = is_true[:, columns].sum(1) > 1
        if twice.any():
            row = int(twice.argmax())
            found = [about["concepts"][column] for column in columns if is_true[row, column]]
            raise invalid(
                f"at most one concept of the group {group!r} ({_some(about['groups'][group])}) may be true, got "
                f"{_some(found)} in example {row}",
                INTERVENTIONS,
            )


def _place(is_bad: np.ndarray) -> tuple[int, int] | None:
    if not is_bad.any():
        return None
    row, column = np.argwhere(is_bad)[0]
    return int(row), int(column)


def _at(place: tuple[int, int], names: Sequence[str]) -> str:
    return f"{shown(names[place[1]])} in example {place[0]}"


# ---- in the replica ----


@dataclass(frozen=True)
class ConceptPiece:
    """All or part of the examples of one call."""

    inputs: Mapping[str, np.ndarray]
    start: int
    """Number of the first example in its call."""
    params: Mapping[str, Any]
    columns: np.ndarray | None
    """Concept to explain for each image, int64 ``(N,)``; None: the one that is asked next."""
    encoded: Tensor | None = None
    outputs: Outputs | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def weight(self) -> int:
        """Share of a batch: its number of examples."""
        return len(self)


Result = Outputs | RefusedError | Failure


class Concepts:
    """One version of a concept bottleneck.

    Args:
        start: What to load from.

    Raises:
        BundleError: If its parts do not give what the whole gives, or its maps are invalid.
    """

    def __init__(self, start: Start) -> None:
        self._description = start.description
        self._signature = signature = start.description.signature
        self._predictor = cast(ConceptPredictor, start.predictor)
        self._max_batch_size = start.model.max_batch_size
        self._first = signature.inputs[0].name
        about = signature.about
        self._index = ClassIndex(start.description.name, about["concepts"], _NOUNS)
        members = about["groups"] or {name: [name] for name in about["concepts"]}
        self._members = np.array(
            [[name in members[question] for name in about["concepts"]] for question in about["questions"]]
        )
        probes = [probe for probe in load_probes(start.bundle) if self._first in probe]
        if not probes:
            raise BundleError(f"{start.bundle.folder}: a probe must hold {self._first}, got none")
        _check_parts(f"{start.bundle.folder}", self._predictor, signature, probes[0], start.model.probe_tolerance)
        self._one = cast(Tensor, probes[0][self._first])[:1]
        self.try_out()

    def check(self, call: Call) -> None:
        """Raise ``RefusedError`` for inputs that do not fit, and for maps that the model does not have."""
        if call.params.get(_NAMES, self._signature.about["concepts"]) != self._signature.about["concepts"]:
            # Columns were told apart by the names of another version.
            sentence = f"model {self._description.name} is changing its version; try again"
            raise RefusedError(503, sentence, "rollout", {"Retry-After": "1"})
        _check_inputs(call.inputs, self._signature)
        if call.params.get(EXPLAIN):
            _check_explains(call.inputs, self._description)
            self._columns(call)

    async def pieces(self, call: Call) -> list[ConceptPiece]:
        """Split a checked call into pieces of at most one batch."""
        columns = self._columns(call) if call.params.get(EXPLAIN) else None
        pieces = []
        for start in range(0, self._signature.num_examples(call.inputs), self._max_batch_size):
            part = slice(start, start + self._max_batch_size)
            inputs = {name: values[part] for name, values in call.inputs.items()}
            pieces.append(ConceptPiece(inputs, start, call.params, None if columns is None else columns[part]))
        return pieces

    def run(self, pieces: Sequence[ConceptPiece]) -> list[Result]:
        """Answer each piece, in order.

        All images share one pass of the backbone, states take none, and all examples share one pass of the head. A
        piece that a step fails on does not take part in the next ones.
        """
        results: list[Any] = [*pieces]
        for step, takes in (
            (self._unpack, lambda piece: STATE in piece.inputs),
            (self._encode, lambda piece: piece.encoded is None),
            (self._respond, lambda piece: True),
            (self._explain, lambda piece: bool(piece.params.get(EXPLAIN))),
        ):
            chosen = [position for position, one in enumerate(results) if isinstance(one, ConceptPiece) and takes(one)]
            if chosen:
                done = isolated(step, [results[position] for position in chosen])
                for position, one in zip(chosen, done, strict=True):
                    results[position] = one
        return [self._finished(one) if isinstance(one, ConceptPiece) else one for one in results]

    def try_out(self) -> None:
        """Raise if the predictor no longer works."""
        with torch.inference_mode():
            self._predictor.respond(self._predictor.encode(self._one))

    def _columns(self, call: Call) -> np.ndarray | None:
        return self._index.labels(call.params.get(EXPLAIN_CLASS), self._signature.num_examples(call.inputs))

    def _unpack(self, pieces: Sequence[ConceptPiece]) -> list[ConceptPiece | RefusedError]:
        found: list[ConceptPiece | RefusedError] = []
        for piece in pieces:
            try:
                found.append(replace(piece, encoded=self._predictor.unpack(torch.tensor(piece.inputs[STATE]))))
            except ValueError as error:
                where = f"from example {piece.start} on, " if piece.start else ""
                found.append(invalid(f"{where}{error}", STATE))
        return found

    def _encode(self, pieces: Sequence[ConceptPiece]) -> list[ConceptPiece]:
        with torch.inference_mode():
            encoded = self._predictor.encode(_joined([piece.inputs[self._first] for piece in pieces]))
        rows = encoded.split([len(piece) for piece in pieces])
        return [replace(piece, encoded=row) for piece, row in zip(pieces, rows, strict=True)]

    def _respond(self, pieces: Sequence[ConceptPiece]) -> list[ConceptPiece | RefusedError]:
        corrections = {}
        for name in CORRECTIONS:
            slot = next(slot for slot in self._signature.inputs if slot.name == name)
            if any(name in piece.inputs for piece in pieces):
                missing = [np.zeros((len(piece), *slot.shape), slot.dtype) for piece in pieces]
                corrections[name] = _joined(
                    [piece.inputs.get(name, zeros) for piece, zeros in zip(pieces, missing, strict=True)]
                )
        try:
            outputs = self._answer(pieces, **corrections)
        except ValueError as error:
            if len(pieces) > 1:
                raise  # each piece is then retried alone
            # Corrections that the signature allows but the model rejects: the client must change them.
            return [invalid(str(error), INTERVENTIONS)]
        uncorrected = [position for position, piece in enumerate(pieces) if piece.params.get(_BEFORE)]
        if uncorrected:
            # A pass of its own, so that the answer does not depend on whether it is wanted.
            before = self._answer([pieces[position] for position in uncorrected])
            for position, one in zip(uncorrected, before, strict=True):
                outputs[position][_PROBS_BEFORE] = one["probs"]
        return [replace(piece, outputs=one) for piece, one in zip(pieces, outputs, strict=True)]

    def _answer(self, pieces: Sequence[ConceptPiece], **corrections: Tensor) -> list[Outputs]:
        with torch.inference_mode():
            encoded = torch.cat([piece.encoded for piece in pieces if piece.encoded is not None])
            return divided(as_arrays(self._predictor.respond(encoded, **corrections)), pieces)

    def _explain(self, pieces: Sequence[ConceptPiece]) -> list[ConceptPiece]:
        asked = [self._asked(piece) if piece.columns is None else piece.columns for piece in pieces]
        # Not in inference mode: a map may take gradients.
        maps = self._predictor.explain(
            _joined([piece.inputs[self._first] for piece in pieces]), _joined(asked)
        ).detach()
        parts = divided({ATTRIBUTIONS: maps.cpu().numpy(), EXPLAINED: np.concatenate(asked)}, pieces)
        return [
            replace(piece, outputs={**cast(Outputs, piece.outputs), **part})
            for piece, part in zip(pieces, parts, strict=True)
        ]

    def _asked(self, piece: ConceptPiece) -> np.ndarray:
        """The most uncertain concept that the next question asks, or of all where nothing is left, int64 ``(N,)``."""
        outputs = cast(Outputs, piece.outputs)
        questions = outputs[NEXT_CONCEPT]
        is_free = self._members[np.maximum(questions, 0)]
        for name in (CONCEPT_MASK, CONCEPT_UNKNOWN):
            if name in piece.inputs:
                is_free = is_free & (piece.inputs[name] == 0)
        is_free = np.where(((questions >= 0) & is_free.any(1))[:, None], is_free, True)
        doubt = -np.abs(outputs[CONCEPTS] - 0.5)
        return np.where(is_free, doubt, -np.inf).argmax(1)

    def _finished(self, piece: ConceptPiece) -> Outputs:
        outputs = dict(cast(Outputs, piece.outputs))
        if piece.params.get(WITH_STATE):
            outputs[STATE] = self._predictor.pack(cast(Tensor, piece.encoded)).numpy()
        names = (*(slot.name for slot in self._signature.outputs), _PROBS_BEFORE)
        return {name: outputs[name] for name in names if name in outputs}


load = Concepts


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    # A copy: arrays from a request's bytes or another process are read-only, which torch does not support.
    return torch.from_numpy(np.concatenate(parts))


def _check_parts(
    where: str, model: ConceptPredictor, signature: Signature, probe: Mapping[str, Any], tolerance: float
) -> None:
    """Raise ``BundleError`` unless the parts give what the whole gives, states come back, and maps are valid."""
    corrections = {name: probe[name] for name in CORRECTIONS if name in probe}
    seen = probe[signature.inputs[0].name]
    with torch.inference_mode():
        expected = cast(Any, model)(**probe)
        encoded = model.encode(seen)
        outputs = model.respond(encoded, **corrections)
        states = model.pack(encoded)
        back = model.unpack(states)
    if missing := [slot.name for slot in signature.always if slot.name not in outputs]:
        raise BundleError(f"{where}: respond must answer with {missing[0]}, got {sorted(outputs)}")
    allowed = tolerance * max(1.0, float(expected["logits"].abs().max()))
    if not float((outputs["logits"] - expected["logits"]).abs().max()) <= allowed:  # also where there is NaN
        raise BundleError(f"{where}: respond must answer with the logits of a prediction, got others")
    [slot] = [slot for slot in signature.inputs if slot.name == STATE]
    try:
        slot.check(states)
    except ValueError as error:
        raise BundleError(f"{where}: pack must fit the signature: {error}") from error
    if not torch.equal(back, encoded):
        raise BundleError(f"{where}: unpack must give what pack was given, got other numbers")
    if not signature.gives(ATTRIBUTIONS):
        return
    maps = model.explain(seen, torch.zeros(len(seen), dtype=torch.int64))
    if maps.dtype != torch.float32 or maps.shape != seen.shape[:3] or not bool(((maps >= 0) & (maps <= 1)).all()):
        raise BundleError(f"{where}: maps must be float32 {tuple(seen.shape[:3])} in [0, 1], got {maps.dtype} "
                          f"{tuple(maps.shape)}, or numbers outside")  # fmt: skip
