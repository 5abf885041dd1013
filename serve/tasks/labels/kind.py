"""Labels: classes of an image with their probabilities, over the model's classes or those of the request."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from serve.contract import FILE, Answer, Call, Description, Form, Limits, Picture, RefusedError, Sent, invalid, shown
from serve.tasks import slots
from serve.tasks.labels.loaded import Labels, only_own_explained, own_classes_only
from serve.tasks.labels.pictures import explanation, png_headers
from serve.tasks.labels.vocabulary import CHECKED, TEXT_INPUTS, read_vocabulary, vocabulary_of
from serve.tasks.maps import MAP_OUTPUTS, check_explains, check_size, read_explain
from serve.tasks.pictures import PNG, overlay_png, prefers_png
from tenfold.tasks import (
    ATTRIBUTIONS,
    CLASSES,
    EXPLAIN,
    EXPLAIN_CLASS,
    IMAGES,
    OUTSIDE,
    PROMPT_CLASSES,
    PROMPTS,
)

TOP, OVERLAY = "top", "overlay"
WORDS = (TOP, EXPLAIN, EXPLAIN_CLASS)
ACCEPTED = "send the file as multipart/form-data, as a body of type image/jpeg, image/png or image/webp, or as JSON"
_EXPLAIN_WORDS: dict[str, bool | str] = {"true": True, "false": False, OVERLAY: OVERLAY}
_TOP = TypeAdapter(Annotated[int, Field(ge=1)])
_CLASSES_FORM = """JSON such as ["cat", "dog"]"""
_PROMPTS_FORM = """JSON such as {"cat": ["a photo of a cat."]}"""

load = Labels


def read(sent: Sent, description: Description, limits: Limits) -> Call:
    """Read one image with its vocabulary and the parameters of its map.

    Raises:
        RefusedError: 422 for a missing or broken image, and for invalid classes or parameters.
    """
    _read_top(sent)
    wanted, classes = _asked(sent)
    vocabulary = read_vocabulary(
        _member(sent, CLASSES, _CLASSES_FORM, limits), _member(sent, PROMPTS, _PROMPTS_FORM, limits), limits
    )
    data = slots.file_of(sent)
    slot = slots.image_slot(description)
    params = {EXPLAIN: wanted if wanted is None else bool(wanted), EXPLAIN_CLASS: classes}
    texts = vocabulary.as_inputs() if vocabulary is not None else {}
    params = read_explain(params, False, 1)
    _check_wishes(params, bool(texts), description)
    return Call(inputs={slot.name: slots.pixels(data, slot, limits), **texts}, params=params)


def accept(call: Call, description: Description, limits: Limits, in_text: Callable[[str], bool]) -> Call:
    """Check images, vocabulary and parameters; see ``Kind``."""
    images = call.inputs[IMAGES]
    if len(images) > limits.max_images:
        raise invalid(f"a request may have at most {limits.max_images} pictures, got {len(images)}", "batch_size")
    outputs = call.outputs
    is_named = outputs is not None and not set(outputs).isdisjoint(MAP_OUTPUTS)
    params = read_explain(call.params, is_named, len(images))
    if params:
        if outputs is not None and not is_named:
            outputs = (*outputs, *MAP_OUTPUTS)
        check_size(len(images), images.shape[1], in_text(ATTRIBUTIONS), limits)
    vocabulary = vocabulary_of(call.inputs, limits)
    texts = vocabulary.as_inputs() if vocabulary is not None else {}
    _check_wishes(params, bool(texts), description)
    return Call(inputs={IMAGES: images, **texts}, params=params, outputs=outputs, budget=call.budget)


def misnamed(names: Sequence[Any], description: Description) -> RefusedError:
    """Refuse tensors whose names are not those of the inputs; see ``Kind``."""
    known = {IMAGES, *TEXT_INPUTS}
    if IMAGES in names and len(set(map(str, names))) == len(names) and set(map(str, names)) <= known:
        return own_classes_only(description.name)
    return invalid(
        f"the inputs are {IMAGES!r} and, for a model with an open vocabulary, {CLASSES!r} or {PROMPTS!r} with "
        f"{PROMPT_CLASSES!r}, each once; got {[*names][:8]}"
    )


def show(
    answer: Answer, call: Call, description: Description, sent: Sent, limits: Limits
) -> Mapping[str, Any] | Picture:
    """Show the labels of one image, most probable first; with a map, the image under its colours where asked."""
    reply = _labels(answer, call, description, _read_top(sent))
    if not call.params.get(EXPLAIN):
        return reply
    told = reply["explanation"] = explanation(answer, description.signature.columns)
    as_png = prefers_png(sent.accept)
    if as_png or _asked(sent)[0] == OVERLAY:
        png = overlay_png(call.inputs[IMAGES][0], answer.outputs[ATTRIBUTIONS][0])
        if as_png:
            return Picture(content=png, media_type=PNG, headers=png_headers(reply))
        told[OVERLAY] = base64.b64encode(png).decode()
    return reply


def form(description: Description) -> Form:
    """Describe what ``read`` takes and ``show`` gives."""
    signature = description.signature
    properties: dict[str, Any] = {FILE: slots.IMAGE_SCHEMA}
    text: dict[str, Any] = {"type": "string", "minLength": 1}
    if "prompt_template" in signature.about:
        properties[CLASSES] = {
            "type": "array", "items": text, "minItems": 1, "uniqueItems": True,
            "description": "Class names, each once. Default: the model's own classes.", "examples": [["cat", "dog"]],
        }  # fmt: skip
        properties[PROMPTS] = {
            "type": "object", "additionalProperties": {"type": "array", "items": text, "minItems": 1},
            "description": "Instead of 'classes': class name to its prompts.",
            "examples": [{"cat": ["a photo of a cat.", "a drawing of a cat."], "dog": ["a photo of a dog."]}],
        }  # fmt: skip
    query: dict[str, Any] = {
        TOP: {"type": "integer", "minimum": 1, "description": "Number of labels in the reply. Default: all."}
    }
    explains = signature.gives(ATTRIBUTIONS)
    if explains:
        asked: dict[str, dict[str, Any]] = {
            EXPLAIN: {
                "enum": ["true", "false", OVERLAY],
                "description": "Attribution map of a class: true adds 'explanation' to the JSON, 'overlay' also the "
                "image under the colours of its map; with 'Accept: image/png' that overlay is the reply.",
            },
            EXPLAIN_CLASS: {
                "type": "string",
                "description": "Name or index of the class to explain. Default: the most probable class.",
            },
        }
        query |= asked
        properties |= {
            EXPLAIN: {
                "anyOf": [{"type": "boolean"}, {"enum": ["true", "false", OVERLAY]}],
                "description": asked[EXPLAIN]["description"],
            },
            EXPLAIN_CLASS: {**asked[EXPLAIN_CLASS], "type": ["string", "integer"]},
        }
    return Form(
        properties=properties,
        required=(FILE,),
        example={},
        takes_file=True,
        query=query,
        reply=_reply_schema(description),
        gives_picture=explains,
    )


def _reply_schema(description: Description) -> dict[str, Any]:
    about = description.signature.about
    number = {"type": "number"}
    label = {"type": "object", "properties": {"name": {"type": "string"}, "probability": number},
             "required": ["name", "probability"]}  # fmt: skip
    schema: dict[str, Any] = {
        "labels": {"type": "array", "items": label, "description": "Labels of the image, most probable first."}
    }
    scores = [slot.name for slot in description.signature.always if not slot.shape and slot.name != OUTSIDE]
    if scores:
        schema["uncertainty"] = {"type": "object", "properties": dict.fromkeys(scores, number), "required": scores}
    if OUTSIDE in about:
        schema[OUTSIDE] = {
            "type": "object",
            "description": "Whether the image seems to belong to none of the model's classes, and the rule for it.",
            "properties": {"flagged": {"type": "boolean"}, "score": {"type": "string"}, "threshold": number,
                           "false_positive_rate": number},
            "required": ["flagged", "score", "threshold", "false_positive_rate"],
        }  # fmt: skip
    if description.signature.gives(ATTRIBUTIONS):
        place = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}
        schema["explanation"] = {
            "type": "object",
            "description": "Summary of the map, only where it is asked for.",
            "properties": {
                "class": {"type": "string"}, "index": {"type": "integer"}, "probability": number,
                "image_size": {"type": "integer"}, "strongest": {"anyOf": [place, {"type": "null"}]},
                OVERLAY: {"type": "string", "format": "byte"},
            },
        }  # fmt: skip
    return schema


def _read_top(sent: Sent) -> int | None:
    if (text := sent.query.get(TOP)) is None:
        return None
    try:
        return _TOP.validate_python(text)
    except ValidationError as error:
        raise RefusedError(422, f"query {TOP}: {error.errors()[0]['msg']}", "parameter") from error


def _asked(sent: Sent) -> tuple[bool | str | None, Any]:
    """``explain`` (a boolean or ``overlay``) and ``explain_class``, from the query or the body.

    Raises:
        RefusedError: 422 for another value of ``explain``, and for a parameter that is given in both.
    """
    body: dict[str, Any] = {name: slots.form_text(sent, name, EXPLAIN) for name in (EXPLAIN, EXPLAIN_CLASS)}
    body |= {name: sent.values[name] for name in body if name in sent.values}
    found: list[Any] = []
    for name in (EXPLAIN, EXPLAIN_CLASS):
        given = [value for value in (sent.query.get(name), body[name]) if value is not None]
        if name == EXPLAIN:
            given = [_explain_word(value) for value in given]
        if len(given) > 1:
            raise invalid(f"{name!r} is given in the query and in the body; give it once", "explain")
        found.append(given[0] if given else None)
    return found[0], found[1]


def _explain_word(value: Any) -> bool | str:
    word = _EXPLAIN_WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(word, bool) and word != OVERLAY:
        raise invalid(f"{EXPLAIN!r} must be true, false or {OVERLAY}, got {shown(value)}", "explain")
    return word


def _member(sent: Sent, name: str, expected: str, limits: Limits) -> Any:
    """Value of a member of the JSON body, or of a form's text field that holds JSON."""
    texts = sent.texts.get(name, ())
    if len(texts) > 1 or sent.file_field == name:
        raise invalid(f"the form needs {name!r} once, as a text field with JSON", "vocabulary")
    if texts:
        return slots.json_text(name, texts[0], expected, limits)
    return sent.values.get(name)


def _check_wishes(params: Mapping[str, Any], has_classes: bool, description: Description) -> None:
    """Refuse maps and classes that the model does not have."""
    signature = description.signature
    if params:
        check_explains(signature.gives(ATTRIBUTIONS), description.name, description.method)
    if has_classes and "prompt_template" not in signature.about:
        raise own_classes_only(description.name)
    if params and has_classes:
        raise only_own_explained()


def _labels(answer: Answer, call: Call, description: Description, top: int | None) -> dict[str, Any]:
    vocabulary = vocabulary_of(call.inputs, CHECKED)
    classes = vocabulary.classes if vocabulary is not None else description.signature.columns
    outputs = dict(answer.outputs)
    probs = outputs["probs"][0]
    if len(probs) != len(classes):  # a faulty predictor; wrong names would be worse than an error
        raise ValueError(f"model {description.name} gave {len(probs)} probabilities for {len(classes)} classes")
    order = np.argsort(-probs, kind="stable")[:top]
    flag = description.signature.about.get(OUTSIDE)
    flagged = outputs.pop(OUTSIDE, None) if flag else None
    doubt = {
        name: float(values[0]) for name, values in outputs.items() if values.ndim == 1 and values.dtype.kind == "f"
    }
    return {
        "labels": [{"name": classes[k], "probability": float(probs[k])} for k in order],
        **({"uncertainty": doubt} if doubt else {}),
        **({OUTSIDE: {"flagged": bool(flagged[0]), **flag}} if flag and flagged is not None else {}),
    }
