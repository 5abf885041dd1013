"""Open Inference Protocol v2 over REST, with the binary tensor extension.

https://github.com/open-inference/open-inference-protocol and its extension ``binary_tensor_data``: where the header
``Inference-Header-Content-Length`` gives the length of the JSON part, raw tensors follow it in order. An element of a
BYTES tensor is its length as a little-endian uint32, followed by its bytes (UTF-8).
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve import strict_json
from serve.contract import Answer, Call, Description, Kind, Limits, RefusedError, check_reply, invalid, shown
from serve.protocols.bodies import number_of, parse_object
from tenfold.tasks import Pixels, Slot
from tenfold.types import Preprocessing

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FP32",
    "float64": "FP64",
    "text": "BYTES",
}
"""Type of a slot to its datatype."""
DTYPES = {
    datatype: np.dtype(object) if name == "text" else np.dtype(name).newbyteorder("<")
    for name, datatype in DATATYPES.items()
}
"""Datatype to numpy's type of the raw bytes."""
_OUTPUT_DATATYPES = {np.dtype(name): datatype for name, datatype in DATATYPES.items() if name != "text"}
_encode_json = json.JSONEncoder(allow_nan=False).encode  # json.dumps would build one for each reply
_KINDS = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}
_LONGEST = 2**40  # of an axis
_TOLD_AXES = 200  # of a shape that is refused
_MOST_AXES = 32  # numpy takes 64; products of so many lengths stay numbers that can be printed


@dataclass(frozen=True, kw_only=True)
class ReplyForm:
    """Form of the reply, as set by an infer request."""

    binary: Mapping[str, bool]
    """Requested output to whether it comes as raw bytes; empty: all outputs, optional ones only where asked for."""
    binary_default: bool
    """Whether outputs come as raw bytes by default."""
    request_id: str | None

    def in_text(self, output: str) -> bool:
        """Return whether an output travels as JSON."""
        return not self.binary.get(output, self.binary_default)


def decode(
    body: bytes, json_length: str | None, kind: Kind, description: Description, limits: Limits
) -> tuple[Call, ReplyForm]:
    """Parse and check the body of an infer request.

    Args:
        body: Raw body.
        json_length: Value of ``Inference-Header-Content-Length``; None: the body is JSON only.
        kind: Kind of the model, which checks what the tensors mean.
        description: The model.
        limits: The limits.

    Raises:
        RefusedError: 400 if the body violates the protocol, 422 if a tensor does not fit the model.
    """
    head, raw_part = split_body(body, json_length, limits)
    tensors = head.get("inputs")
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise RefusedError(400, "the request needs a list of tensors under 'inputs'", "malformed")
    form = _read_form(head)
    named = _named(tensors, kind, description)
    raw = _claim_raw(named, raw_part)
    slots = {slot.name: slot for slot in description.signature.inputs}
    inputs = {name: _decode(slots[name], tensor, raw[name], limits) for name, tensor in named.items()}
    call = Call(inputs=inputs, params=_parameters(head), outputs=tuple(form.binary) or None)
    return kind.accept(call, description, limits, form.in_text), form


def split_body(body: bytes, json_length: str | None, limits: Limits) -> tuple[dict[str, Any], memoryview]:
    """Split a body into its JSON part and a view of the bytes behind it."""
    if json_length is None:
        return parse_object(body, limits), memoryview(b"")
    length = number_of(json_length)
    if length is None or length > len(body):
        raise RefusedError(
            400, f"{JSON_LENGTH_HEADER} must be a number up to the body's length {len(body)}", "malformed"
        )
    return parse_object(body[:length], limits), memoryview(body)[length:]


def _named(tensors: Sequence[Mapping[str, Any]], kind: Kind, description: Description) -> dict[str, Mapping[str, Any]]:
    """Input tensors by name, in the order of the request."""
    names = [tensor.get("name") for tensor in tensors]
    texts = [name for name in names if isinstance(name, str)]
    if len(set(texts)) < len(names) or not description.signature.takes(texts):
        raise kind.misnamed(names, description)
    return dict(zip(texts, tensors, strict=True))


def _read_form(head: Mapping[str, Any]) -> ReplyForm:
    request_id = head.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RefusedError(400, "the request's 'id' must be a string", "malformed")
    binary_default = _flag(head, "binary_data_output", False)
    outputs = [] if head.get("outputs") is None else head["outputs"]
    if not isinstance(outputs, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise RefusedError(400, "'outputs' must be a list of objects with a 'name'", "malformed")
    binary = {output["name"]: _flag(output, "binary_data", binary_default) for output in outputs}
    return ReplyForm(binary=binary, binary_default=binary_default, request_id=request_id)


def _flag(part: Mapping[str, Any], name: str, default: bool) -> bool:
    value = _parameters(part).get(name, default)
    if not isinstance(value, bool):
        raise RefusedError(400, f"{name!r} must be true or false, got {shown(value)}", "malformed")
    return value


def _parameters(part: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {} if part.get("parameters") is None else part["parameters"]
    if not isinstance(parameters, dict):
        raise RefusedError(400, "'parameters' must be an object", "malformed")
    return parameters


def _claim_raw(tensors: Mapping[str, Mapping[str, Any]], binary: memoryview) -> dict[str, memoryview | None]:
    """Assign the raw bytes to the tensors, in order; None for a tensor in JSON."""
    raw: dict[str, memoryview | None] = {}
    start = 0
    for name, tensor in tensors.items():
        size = _parameters(tensor).get("binary_data_size")
        if size is None:
            raw[name] = None
            continue
        if "data" in tensor:
            raise RefusedError(400, "a tensor has either 'data' or 'binary_data_size', not both", "malformed")
        if type(size) is not int or not 0 <= size <= _LONGEST:
            got = repr(size) if type(size) is not int or abs(size) <= _LONGEST else "a number that is too large"
            raise invalid(f"binary_data_size must be a number of bytes, got {got} for {name!r}")
        raw[name] = binary[start : start + size]
        start += size
    if start == len(binary):
        return raw
    if all(part is None for part in raw.values()):
        raise RefusedError(400, f"{len(binary)} bytes follow the JSON part, but no tensor claims them", "malformed")
    raise invalid(f"binary_data_size comes to {start} bytes in all, and {len(binary)} bytes follow the JSON part")


def _decode(slot: Slot, tensor: Mapping[str, Any], raw: memoryview | None, limits: Limits) -> np.ndarray:
    name, datatype = slot.name, DATATYPES[slot.dtype]
    shape = _shape(slot, tensor, limits)
    size = math.prod(shape)
    if raw is not None:
        if slot.dtype == "text":
            return _as_texts(_split_texts(name, raw, size), shape)
        dtype = DTYPES[datatype]
        if len(raw) != size * dtype.itemsize:
            of_name = "" if isinstance(slot.image, Preprocessing) else f" of {name!r}"
            raise invalid(
                f"{datatype} {shape}{of_name} takes {size * dtype.itemsize} bytes; binary_data_size is {len(raw)}"
            )
        return np.frombuffer(raw, dtype).astype(slot.dtype, copy=False).reshape(shape)
    data = tensor.get("data")
    if not isinstance(data, list):
        raise RefusedError(400, f"the tensor {name!r} needs a list under 'data'", "malformed")
    if slot.dtype == "text":
        return _texts_in_json(slot, data, shape)
    return _numbers_in_json(slot, data, shape)


def _shape(slot: Slot, tensor: Mapping[str, Any], limits: Limits) -> list[int]:
    """Check datatype and shape of a tensor; the number of examples of images and of texts too, before they are read."""
    name, datatype = slot.name, DATATYPES[slot.dtype]
    found, shape = tensor.get("datatype"), tensor.get("shape")
    told = _told_shape(shape)
    is_shape = isinstance(shape, list) and all(
        type(length) is int and 0 <= length <= _LONGEST for length in shape[:_TOLD_AXES]
    )
    if slot.dtype == "text" and slot.shared:
        if found != datatype or not isinstance(shape, list) or not is_shape or len(shape) != len(slot.shape) + 1:
            raise invalid(f"{name!r} must have datatype {datatype} and shape [K], got {shown(found)} and {told}")
        return shape
    if found != datatype:
        raise invalid(f"{name!r} must have datatype {datatype}, got {shown(found)}")
    if isinstance(slot.image, Preprocessing):
        if not isinstance(shape, list) or not is_shape or not slot.holds(shape) or shape[0] < 1:
            wanted = ",".join(map(str, slot.shape))
            raise invalid(f"{name!r} must have shape [N,{wanted}] with N at least 1, got {told}")
        if shape[0] > limits.max_images:
            raise invalid(f"a request may have at most {limits.max_images} pictures, got {shape[0]}", "batch_size")
        return shape
    if not isinstance(shape, list) or not is_shape or not shape or 0 in shape:
        raise invalid(f"the shape of {name!r} must be a list of lengths, each at least 1, got {told}")
    if len(shape) > _MOST_AXES:
        raise invalid(f"the shape of {name!r} may have at most {_MOST_AXES} lengths, got {len(shape)}")
    return shape


def _told_shape(shape: Any) -> str:
    """The shape as sent; huge lengths and long lists are cut, since printing them takes time or fails."""
    shape = shape[:_TOLD_AXES] if isinstance(shape, list) else shape
    if isinstance(shape, list) and all(type(length) is not int or abs(length) <= _LONGEST for length in shape):
        text = repr(shape)
        return text if len(text) <= 200 else f"{text[:200]}..."
    return "lengths that are too large" if isinstance(shape, list) else f"{shape!r}"[:200]


def _split_texts(name: str, raw: memoryview, count: int) -> list[str]:
    """Split raw BYTES."""
    texts: list[str] = []
    start = 0
    try:
        for _ in range(count):
            (length,) = struct.unpack_from("<I", raw, start)
            start += 4 + length
            texts.append(str(raw[start - length : start], "utf-8"))
    except (struct.error, UnicodeDecodeError) as error:
        raise invalid(
            f"the bytes of {name!r} must be {count} texts, each its length and its UTF-8 ({error})"
        ) from error
    if start != len(raw):
        raise invalid(f"{count} texts of {name!r} take {start} bytes; binary_data_size is {len(raw)}")
    return texts


def _as_texts(texts: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    values = np.empty(len(texts), object)
    values[:] = texts
    return values.reshape(shape)


def _texts_in_json(slot: Slot, data: list[Any], shape: list[int]) -> np.ndarray:
    """Texts as listed, flat or nested; whether they are texts is for the kind to say, which knows what they mean."""
    count = math.prod(shape)
    values = data
    for _ in range(len(shape) - 1):
        if len(values) == count and not any(isinstance(each, list) for each in values):
            break
        values = [one for each in values for one in (each if isinstance(each, list) else [each])]
    if len(values) != count:
        raise invalid(f"'data' of {slot.name!r} must hold {count} texts for shape {shape}, got {len(values)}")
    return _as_texts(values, shape)


def _numbers_in_json(slot: Slot, data: list[Any], shape: list[int]) -> np.ndarray:
    """Numbers as listed, flat or nested as the shape says."""
    is_image = isinstance(slot.image, Preprocessing)
    of_name, size, dtype = f"{slot.name!r}", math.prod(shape), np.dtype(slot.dtype)
    try:
        values = strict_json.as_array(data)
    except (ValueError, OverflowError) as error:  # nested lists of different lengths
        if is_image:
            raise invalid(f"'data' must be flat or nested as the shape says: {error}") from error
        raise invalid(f"{of_name} must be nested lists of one length in each axis: {error}") from error
    if values.dtype.kind not in _KINDS[dtype.kind] and (values.size or is_image):
        if is_image:
            raise invalid(f"'data' must hold whole numbers from 0 to 255, got {values.dtype}")
        kind = {"f": "numbers", "b": "true or false"}.get(dtype.kind, "whole numbers")
        raise invalid(f"{of_name} must hold {kind} that {slot.dtype} can hold, got {values.dtype}")
    if is_image:
        _check_count("'data'", values, shape, size)
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            wanted = "'data' must hold numbers from 0 to 255" if is_image else f"{of_name} must hold {slot.dtype}"
            raise invalid(f"{wanted}, got {values.min()} to {values.max()}")
    _check_count(f"'data' of {of_name}", values, shape, size)
    with np.errstate(over="ignore"):  # overflow becomes infinite, which the kind refuses
        return values.astype(dtype).reshape(shape)


def _check_count(what: str, values: np.ndarray, shape: list[int], size: int) -> None:
    if values.shape not in ((size,), tuple(shape)):
        raise invalid(f"{what} must hold {size} values for shape {shape}, got {list(values.shape)}")


def encode(
    form: ReplyForm, call: Call, description: Description, answer: Answer, limits: Limits
) -> tuple[bytes, dict[str, str]]:
    """Encode the reply to an infer request as body and headers.

    Args:
        form: Form of the reply.
        call: The call that was answered; the reply repeats the parameters that its signature says.
        description: The model that answered.
        answer: Its answer, finite where JSON carries it.
        limits: The limits.

    Raises:
        RefusedError: 422 for an unknown output, and for a reply that would be too large.
    """
    outputs = answer.outputs
    wanted = call.outputs if call.outputs is not None else tuple(outputs)
    if unknown := sorted(set(wanted) - outputs.keys()):
        raise invalid(f"the model has no output {unknown[0]!r}; it has {', '.join(outputs)}")
    check_reply(sum(outputs[name].size for name in wanted if form.in_text(name)), True, limits)
    check_reply(sum(outputs[name].size for name in wanted), False, limits)
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name in wanted:
        datatype, values = _with_datatype(outputs[name])
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if form.in_text(name):
            tensor["data"] = values.ravel().tolist()
        else:
            raw.append(_join_texts(values.ravel().tolist()) if datatype == "BYTES" else values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        tensors.append(tensor)
    reply: dict[str, Any] = {"model_name": description.name, "model_version": answer.version, "outputs": tensors}
    repeated = {
        param.name: call.params[param.name]
        for param in description.signature.params
        if param.repeated and param.name in call.params
    }
    if repeated:
        reply["parameters"] = repeated
    if form.request_id is not None:
        reply["id"] = form.request_id
    head = _encode_json(reply).encode()
    if not raw:
        return head, {"content-type": "application/json"}
    return b"".join([head, *raw]), {
        "content-type": "application/octet-stream",
        JSON_LENGTH_HEADER.lower(): str(len(head)),
    }


def _with_datatype(values: np.ndarray) -> tuple[str, np.ndarray]:
    """Datatype of an output, and its values contiguous in that type."""
    if values.dtype.kind in "OU":
        return "BYTES", values
    datatype = _OUTPUT_DATATYPES.get(values.dtype, "FP32")
    return datatype, np.ascontiguousarray(values, dtype=DTYPES[datatype])


def _join_texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def model_metadata(description: Description) -> dict[str, Any]:
    """Build the reply to ``GET /v2/models/<m>``: slots as tensors, optional ones marked, and what is told about it."""
    signature = description.signature
    return {
        "name": description.name,
        "versions": [description.version],
        "platform": f"tenfold_{description.method}",
        "inputs": [_tensor_metadata(slot) for slot in signature.inputs],
        "outputs": [_tensor_metadata(slot) for slot in signature.outputs],
        "parameters": {"task": str(signature.task), **signature.about},
    }


def _tensor_metadata(slot: Slot) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if isinstance(slot.image, Pixels):
        parameters["max_value"] = slot.image.max_value
    if slot.optional:
        parameters["optional"] = True
    told = {"name": slot.name, "datatype": DATATYPES[slot.dtype], "shape": [-1, *slot.shape]}
    return {**told, "parameters": parameters} if parameters else told
