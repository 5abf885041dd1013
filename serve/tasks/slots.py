"""Reading and checking by the slots and parameters of a signature: what every kind starts from.

``read``, ``accept``, ``misnamed``, ``show`` and ``form`` serve a kind that has nothing special about them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from serve import strict_json
from serve.contract import (
    FILE,
    Answer,
    Call,
    Description,
    Form,
    Limits,
    RefusedError,
    Sent,
    check_reply,
    invalid,
    shown,
)
from tenfold.data.images import decode_image, resize_image
from tenfold.tasks import Param, Pixels, Signature, Slot, fits, told
from tenfold.types import Preprocessing

INPUTS = "inputs"
"""Member of a JSON body: values by the name of the input."""
IMAGE_SCHEMA = {"type": "string", "format": "byte", "description": "Image file in base64."}
WORDS: tuple[str, ...] = ()
ACCEPTED = "send JSON with 'inputs', or, to a model that takes a picture, its file as a form, as a body or in JSON"
_Validator: Any = extend(
    Draft202012Validator,
    # JSON schema counts 1.0 among the integers.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)
_KINDS = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}
_SHOWN_LENGTH = 4  # of an axis of any length, in an example


def read(sent: Sent, description: Description, limits: Limits) -> Call:
    """Read one example: values under ``inputs``, an image as a file or in base64 under ``image``.

    Raises:
        RefusedError: 422, naming what was expected.
    """
    signature = description.signature
    params = read_params(sent, signature, limits)
    slots = {slot.name: slot for slot in signature.inputs}
    values = _values(sent, signature, limits)
    inputs: dict[str, np.ndarray] = {}
    if sent.file is not None:
        slot = image_slot(description)
        inputs[slot.name] = pixels(sent.file, slot, limits)
    if values is not None:
        if not inputs.keys().isdisjoint(values) or not signature.takes(inputs.keys() | values.keys()):
            expected = ", ".join(told(slot) for name, slot in slots.items() if name not in inputs)
            raise invalid(f"{INPUTS!r} must be {expected}, got {', '.join(sorted(values)) or 'none'}")
        for name, given in values.items():
            inputs[name] = _one(slots[name], given, limits)
    return accept(Call(inputs=inputs, params=params), description, limits, lambda _: True)


def accept(call: Call, description: Description, limits: Limits, in_text: Callable[[str], bool]) -> Call:
    """Check the inputs against the slots, the parameters against their schemas, and both against the limits.

    Raises:
        RefusedError: 422, naming what was expected.
    """
    signature = description.signature
    if message := misfit(call.inputs, signature.inputs):
        raise invalid(message)
    length = signature.num_examples(call.inputs)
    if length > limits.max_images:
        raise invalid(f"a request may have at most {limits.max_images} examples, got {length}", "batch_size")
    for slot in signature.inputs:
        if slot.dtype == "text" and slot.name in call.inputs:
            texts(slot.name, call.inputs[slot.name], limits)
    if (size := num_values(call.inputs)) > limits.max_values:
        raise too_many_values(size, limits)
    params = {param.name: check_param(param, call.params[param.name]) for param in known(call.params, signature)}
    return Call(inputs=call.inputs, params=params, outputs=call.outputs, budget=call.budget)


def misnamed(names: Sequence[Any], description: Description) -> RefusedError:
    """Refuse tensors whose names are not those of the inputs."""
    expected = ", ".join(map(told, description.signature.inputs))
    return invalid(f"the inputs are {expected}, each once; got {[*names][:8]}")


def show(answer: Answer, call: Call, description: Description, sent: Sent, limits: Limits) -> Mapping[str, Any]:
    """Show the outputs of one example by name, as numbers, texts or nested lists of them."""
    check_reply(sum(values.size for values in answer.outputs.values()), True, limits)
    return {
        **{
            param.name: call.params[param.name] for param in known(call.params, description.signature) if param.repeated
        },
        "outputs": {name: values[:1].tolist()[0] for name, values in answer.outputs.items()},
    }


def form(description: Description) -> Form:
    """Describe what ``read`` takes and ``show`` gives."""
    signature = description.signature
    outputs = {slot.name: json_schema(slot) for slot in signature.outputs}
    always = [slot.name for slot in signature.always]
    outputs_schema = {"type": "object", "properties": outputs, "required": always}
    return form_of(description, {"outputs": outputs_schema})


def form_of(description: Description, reply: Mapping[str, Any], **more: Any) -> Form:
    """Describe the body that ``read`` takes, with another reply."""
    signature = description.signature
    takes_file = any(slot.image is not None for slot in signature.inputs)
    numbers_only = [slot for slot in signature.inputs if not isinstance(slot.image, Preprocessing)]
    properties: dict[str, Any] = {}
    example: dict[str, Any] = {}
    if takes_file:
        properties[FILE] = IMAGE_SCHEMA
    if numbers_only:
        properties[INPUTS] = {
            "type": "object",
            "properties": {slot.name: json_schema(slot) for slot in numbers_only},
            "required": [slot.name for slot in numbers_only if not slot.optional and slot.image is None],
            "additionalProperties": False,
        }
        example[INPUTS] = {slot.name: example_of(slot) for slot in numbers_only if not slot.optional}
    params = {param.name: dict(param.schema) for param in signature.params}
    example |= {name: schema["examples"][0] for name, schema in params.items() if "examples" in schema}
    return Form(
        properties=properties | params,
        required=(INPUTS,) if numbers_only and not takes_file else (),
        example=example if not takes_file or numbers_only else {},
        takes_file=takes_file,
        query=params,
        reply=reply,
        **more,
    )


# ---- parameters ----


def known(params: Mapping[str, Any], signature: Signature) -> list[Param]:
    """Parameters of the signature that a request gives."""
    return [param for param in signature.params if params.get(param.name) is not None]


def read_params(sent: Sent, signature: Signature, limits: Limits) -> dict[str, Any]:
    """Read the signature's parameters from the query or the body, as values or as texts.

    Raises:
        RefusedError: 422 for a parameter that is given twice.
    """
    found: dict[str, Any] = {}
    for param in signature.params:
        texts = [text for text in (sent.query.get(param.name), form_text(sent, param.name)) if text is not None]
        values = [_from_text(param, text, limits) for text in texts]
        if (value := sent.values.get(param.name)) is not None:
            values.append(value)
        if len(values) > 1:
            raise invalid(f"{param.name!r} is given in the query and in the body; give it once", param.name)
        if values:
            found[param.name] = check_param(param, values[0])
    return found


def check_param(param: Param, value: Any, reason: str | None = None) -> Any:
    """Return a valid value of a parameter; a number may come as text.

    Args:
        param: The parameter.
        value: As sent.
        reason: Word for the logs if it is refused; None: the parameter's name.

    Raises:
        RefusedError: 422 for any other.
    """
    checked = value
    if param.schema.get("type") in ("number", "integer") and not isinstance(value, bool):
        is_integer = param.schema["type"] == "integer"
        # Python reads 0.9_9, and cuts 1.5 to 1.
        is_other = (isinstance(value, str) and "_" in value) or (is_integer and isinstance(value, float))
        try:
            checked = None if is_other else (int if is_integer else float)(value)
        except (TypeError, ValueError, OverflowError):
            checked = None
    if checked is None or not _is_json(checked) or not _validator(json.dumps(dict(param.schema))).is_valid(checked):
        expected = param.schema.get("description", f"as its schema {dict(param.schema)} says")
        raise invalid(f"{param.name!r} must be {expected}, got {shown(value)}", reason or param.name)
    return checked


def _is_json(value: Any) -> bool:
    """Return whether a reply can repeat a value: finite numbers and Unicode texts, not nested too deeply."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _from_text(param: Param, text: str, limits: Limits) -> Any:
    """Value of a parameter that the query or a form gives as text."""
    if param.schema.get("type") == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    if param.schema.get("type") in ("array", "object"):
        try:
            return strict_json.loads(text, limits.max_json_keys, limits.max_json_lists)
        except ValueError as error:
            raise invalid(f"{param.name!r} must be JSON in the query or a form ({error})", param.name) from error
    return text


@lru_cache(maxsize=128)
def _validator(schema: str) -> Any:
    return _Validator(json.loads(schema))


# ---- inputs ----


def misfit(inputs: Mapping[str, np.ndarray], slots: Sequence[Slot]) -> str | None:
    """Reason why inputs (first axis N) do not fit the slots; None if they do."""
    if not fits(inputs, slots):
        return f"the inputs must be {', '.join(map(told, slots))}, got {', '.join(sorted(inputs)) or 'none'}"
    counts: dict[str, int] = {}
    for slot in slots:
        if slot.name not in inputs:
            continue
        values = inputs[slot.name]
        dtype = "text" if values.dtype.kind in "OU" else str(values.dtype)
        if not slot.holds(values.shape) or 0 in values.shape or dtype != slot.dtype:
            shape = ",".join(["N", *("any" if length < 0 else str(length) for length in slot.shape)])
            return (
                f"{slot.name!r} must be {slot.dtype} [{shape}], each length at least 1, got {dtype} "
                f"{list(values.shape)}"
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"{slot.name!r} must hold finite {slot.dtype} numbers, got NaN or infinite ones"
        if values.dtype.kind == "O" and not all(isinstance(text, str) for text in values.flat):
            return f"{slot.name!r} must hold texts, got other values"
        if not slot.shared:
            counts[slot.name] = len(values)
    return f"all inputs must have one row for each example, got {counts}" if len(set(counts.values())) > 1 else None


def too_many_values(size: int, limits: Limits) -> RefusedError:
    """A refusal (422) of inputs with so many numbers."""
    return invalid(f"the inputs of a request may hold at most {limits.max_values} numbers, got {size}", "size")


def num_values(inputs: Mapping[str, np.ndarray]) -> int:
    """Number of values in all inputs; a text counts its characters."""
    return sum(
        sum(map(len, values.flat)) if values.dtype.kind == "O" else int(values.size) for values in inputs.values()
    )


def numbers(name: str, data: Any, dtype: str) -> np.ndarray:
    """Convert nested JSON lists to an array.

    Raises:
        RefusedError: 422 for ragged lists, for values that are not numbers, and for numbers out of the type's range.
    """
    try:
        values = strict_json.as_array(data)
    except (ValueError, OverflowError) as error:  # nested lists of different lengths
        raise invalid(f"{name!r} must be nested lists of one length in each axis: {error}") from error
    wanted = np.dtype(dtype)
    if values.dtype.kind not in _KINDS[wanted.kind] and values.size:
        kind = {"f": "numbers", "b": "true or false"}.get(wanted.kind, "whole numbers")
        raise invalid(f"{name!r} must hold {kind} that {dtype} can hold, got {values.dtype}")
    if wanted.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise invalid(f"{name!r} must hold {dtype}, got {values.min()} to {values.max()}")
    with np.errstate(over="ignore"):  # overflow becomes infinite, which is refused later
        return values.astype(dtype)


def texts(name: str, data: Any, limits: Limits) -> np.ndarray:
    """Convert a text or nested JSON lists of texts to an array of objects.

    Raises:
        RefusedError: 422 for anything else, and for a text that is too long or no Unicode.
    """
    values = np.asarray(data, dtype=object)
    for text in values.ravel():  # ``flat`` takes 32 axes
        if not isinstance(text, str):
            raise invalid(f"{name!r} must hold texts, got {shown(text)}")
        if len(text) > limits.max_text_characters:
            raise invalid(
                f"a text of {name!r} may have at most {limits.max_text_characters} characters, got {len(text)}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write as an escape
            raise invalid(f"{name!r} must hold Unicode texts: {error.reason}") from error
    return values


def _one(slot: Slot, given: Any, limits: Limits) -> np.ndarray:
    """One example's value, with the batch axis added unless the slot is of the whole request."""
    values = texts(slot.name, given, limits) if slot.dtype == "text" else numbers(slot.name, given, slot.dtype)
    return values if slot.shared else values[None]


# ---- images ----


def image_slot(description: Description) -> Slot:
    """The one input that takes an image file.

    Raises:
        RefusedError: 422, if there is none.
    """
    slots = [slot for slot in description.signature.inputs if slot.image is not None]
    if len(slots) != 1:
        names = ", ".join(slot.name for slot in description.signature.inputs)
        raise invalid(f"model {description.name} takes no picture; send JSON with {INPUTS!r}: {names}", "picture")
    return slots[0]


def pixels(data: bytes, slot: Slot, limits: Limits) -> np.ndarray:
    """Decode an image file as the slot wants it, with the batch axis.

    Returns:
        uint8 ``(1, S, S, 3)``, resized as in training; or float32 ``(1, C, H, W)``, of which one channel is the mean of
        the colours.

    Raises:
        RefusedError: 422, if the file can't be decoded.
    """
    try:
        image = decode_image(data, max_pixels=limits.max_pixels)
    except ValueError as error:
        raise invalid(str(error), "picture") from error
    form = slot.image
    if isinstance(form, Preprocessing):
        return resize_image(image, form.image_size, resize=form.resize, interpolation=form.interpolation)[None]
    assert isinstance(form, Pixels)
    size = slot.shape[0] * image.shape[0] * image.shape[1]
    if size > limits.max_values:  # as floats they would take four times as much
        raise too_many_values(size, limits)
    values = image.astype(np.float32) * np.float32(form.max_value / 255)
    if slot.shape[0] == 1:
        values = values.mean(-1, keepdims=True)
    return np.ascontiguousarray(values.transpose(2, 0, 1))[None]


# ---- what people send ----


def file_of(sent: Sent) -> bytes:
    """The image file; raises ``RefusedError`` (422) if none was sent."""
    if sent.file is None:
        raise invalid(f"the JSON needs the picture's file in base64 under {FILE!r}", "picture")
    return sent.file


def form_text(sent: Sent, name: str, reason: str | None = None) -> str | None:
    """Value of a text field of the form; None if it is missing.

    Args:
        sent: What was sent.
        name: Name of the field.
        reason: Word for the logs if it is refused; None: the field's name.

    Raises:
        RefusedError: 422, if it comes several times.
    """
    given = sent.texts.get(name, ())
    if len(given) > 1:
        raise invalid(f"the form needs {name!r} once, got it {len(given)} times", reason or name)
    return given[0] if given else None


def json_text(name: str, text: str, expected: str, limits: Limits) -> Any:
    """JSON value of a text field; raises ``RefusedError`` (422) naming what was expected."""
    try:
        return strict_json.loads(text, limits.max_json_keys, limits.max_json_lists)
    except ValueError as error:
        raise RefusedError(422, f"the form's field {name!r} must be {expected} ({error})", "malformed") from error


def _values(sent: Sent, signature: Signature, limits: Limits) -> Mapping[str, Any] | None:
    """Values by input name; None where an image file is all that is sent."""
    if sent.content_type != "application/json":
        names = [slot.name for slot in signature.inputs if slot.image is None and slot.name in sent.texts]
        return {name: json_text(name, form_text(sent, name) or "", "JSON", limits) for name in names} or None
    has_values, has_file = INPUTS in sent.values, sent.file is not None
    takes_both = len(signature.inputs) > 1
    if has_values == has_file and not (has_values and takes_both):
        raise invalid(f"the JSON needs an example's numbers by name under {INPUTS!r}, or a picture under {FILE!r}")
    if not has_values:
        return None
    values = sent.values[INPUTS]
    if not isinstance(values, dict):
        raise invalid(f"{INPUTS!r} must be an object: the numbers of one example by the input's name")
    return values


# ---- schemas and examples ----


def json_schema(slot: Slot) -> dict[str, Any]:
    """JSON schema of one example's value, nested as its shape says."""
    kind = {"text": "string", "bool": "boolean"}.get(slot.dtype, "number" if "float" in slot.dtype else "integer")
    schema: dict[str, Any] = {"type": kind}
    if slot.dtype.startswith(("int", "uint")):
        limits = np.iinfo(slot.dtype)
        schema |= {"minimum": int(limits.min), "maximum": int(limits.max)}
    for length in reversed(((-1,) if slot.shared else ()) + slot.shape):
        schema = {"type": "array", "items": schema, "minItems": max(length, 1)}
        if length > 0:
            schema["maxItems"] = length
    return schema


def example_of(slot: Slot) -> Any:
    """A value that the schema allows, short where a length is open."""
    shape = [_SHOWN_LENGTH if length < 0 else length for length in ((-1,) if slot.shared else ()) + slot.shape]
    if slot.dtype == "text":
        return np.full(shape, "a text", object).tolist()
    return np.ones(shape, slot.dtype).tolist()
