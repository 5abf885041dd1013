"""Open Inference Protocol v2 over REST, with the binary tensor extension.

https://github.com/open-inference/open-inference-protocol and its extension ``binary_tensor_data``: where the header
``Inference-Header-Content-Length`` gives the length of the JSON part, raw tensors follow it in order.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serve.contract import Description
from serve.explanation import ATTRIBUTIONS, EXPLAINED, Explain, check_size, read_explain
from serve.limits import RefusedError, invalid, parse_json
from serve.settings import ServeSettings
from serve.vocabulary import CLASSES, PROMPTS, Vocabulary, check_count, read_vocabulary

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
INPUT_NAME = "images"
PROMPT_CLASSES = "prompt_classes"
TEXT_INPUTS = (CLASSES, PROMPTS, PROMPT_CLASSES)
"""Optional BYTES inputs of open-vocabulary models: class names ``[K]``; or prompts ``[P]`` with the class of each
``[P]``, where classes are ordered by their first prompt."""
EXTENSIONS = ("binary_tensor_data",)
_MAP_OUTPUTS = (ATTRIBUTIONS, EXPLAINED)
DATATYPES = {"FP32": "<f4", "INT64": "<i8"}


@dataclass(frozen=True, kw_only=True)
class ReplyForm:
    """Form of the reply, as set by an infer request."""

    outputs: Mapping[str, bool] | None
    """Requested output to whether it comes as raw bytes; None: all outputs, maps only with ``explain``."""
    binary_default: bool
    """Whether outputs come as raw bytes by default."""
    request_id: str | None


@dataclass(frozen=True, kw_only=True)
class InferRequest(ReplyForm):
    """A parsed infer request."""

    images: np.ndarray
    """uint8 ``(N, S, S, 3)``."""
    vocabulary: Vocabulary | None = None
    """Classes of the request; None: the model's own."""
    explain: Explain | None = None
    """Requested maps; None: no maps."""


def decode_request(body: bytes, json_length: str | None, image_size: int, settings: ServeSettings) -> InferRequest:
    """Parse and check the body of an infer request.

    Args:
        body: Raw body.
        json_length: Value of ``Inference-Header-Content-Length``; None: the body is JSON only.
        image_size: Height and width S that the model takes.
        settings: The limits.

    Raises:
        RefusedError: 400 if the body violates the protocol, 422 if a tensor does not fit the model.
    """
    header, binary = split_body(body, json_length)
    tensors = _named_inputs(header.get("inputs"))
    form = read_form(header)
    parameters, outputs, binary_default = parameters_of(header), form.outputs, form.binary_default
    raw = claim_raw(tensors, binary)
    texts = {name: _decode_texts(name, tensors[name], raw[name], settings) for name in TEXT_INPUTS if name in tensors}
    images = _decode_images(tensors[INPUT_NAME], raw[INPUT_NAME], image_size, settings.max_images)
    is_named = outputs is not None and not outputs.keys().isdisjoint(_MAP_OUTPUTS)
    explain = read_explain(parameters, is_named, len(images))
    if explain is not None:
        if outputs is not None and not is_named:
            outputs = {**outputs, **dict.fromkeys(_MAP_OUTPUTS, binary_default)}
        in_json = not (outputs or {}).get(ATTRIBUTIONS, binary_default)
        check_size(len(images), image_size, in_json, settings)
    return InferRequest(
        images=images,
        outputs=outputs,
        binary_default=binary_default,
        request_id=form.request_id,
        vocabulary=_vocabulary(texts, settings),
        explain=explain,
    )


def read_form(header: Mapping[str, Any]) -> ReplyForm:
    """Read the form of the reply from the JSON part; raises ``RefusedError`` (400) if it is malformed."""
    request_id = header.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RefusedError(400, "the request's 'id' must be a string", "malformed")
    binary_default = bool(parameters_of(header).get("binary_data_output", False))
    outputs = _requested_outputs(header.get("outputs"), binary_default)
    return ReplyForm(outputs=outputs, binary_default=binary_default, request_id=request_id)


def split_body(body: bytes, json_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Split a body into its JSON part and a view of the bytes behind it."""
    if json_length is None:
        return parse_json(body), memoryview(b"")
    if not (json_length.isascii() and json_length.isdigit()) or int(json_length) > len(body):
        raise RefusedError(
            400, f"{JSON_LENGTH_HEADER} must be a number up to the body's length {len(body)}", "malformed"
        )
    return parse_json(body[: int(json_length)]), memoryview(body)[int(json_length) :]


def named_tensors(inputs: Any) -> list[Mapping[str, Any]]:
    """Return the input tensors in order; raises ``RefusedError`` (400) if they are not a list of objects."""
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise RefusedError(400, "the request needs a list of tensors under 'inputs'", "malformed")
    return inputs


def _named_inputs(inputs: Any) -> dict[str, Mapping[str, Any]]:
    """Input tensors by name, in order."""
    tensors = named_tensors(inputs)
    names = [tensor.get("name") for tensor in tensors]
    known = [name for name in names if name == INPUT_NAME or name in TEXT_INPUTS]
    if INPUT_NAME not in names or len(known) < len(names) or len(set(known)) < len(names):
        raise invalid(
            f"the inputs are {INPUT_NAME!r} and, for a model with an open vocabulary, {CLASSES!r} or {PROMPTS!r} with "
            f"{PROMPT_CLASSES!r}, each once; got {names[:8]}"
        )
    return dict(zip(known, tensors, strict=True))


def claim_raw(tensors: Mapping[str, Mapping[str, Any]], binary: memoryview) -> dict[str, memoryview | None]:
    """Assign the raw bytes to the tensors, in order; None for a tensor in JSON."""
    raw: dict[str, memoryview | None] = {}
    start = 0
    for name, tensor in tensors.items():
        size = parameters_of(tensor).get("binary_data_size")
        if size is None:
            raw[name] = None
            continue
        if "data" in tensor:
            raise RefusedError(400, "a tensor has either 'data' or 'binary_data_size', not both", "malformed")
        if type(size) is not int or size < 0:
            raise invalid(f"binary_data_size must be a number of bytes, got {size!r} for {name!r}")
        raw[name] = binary[start : start + size]
        start += size
    if start == len(binary):
        return raw
    if all(part is None for part in raw.values()):
        raise RefusedError(400, f"{len(binary)} bytes follow the JSON part, but no tensor claims them", "malformed")
    raise invalid(f"binary_data_size comes to {start} bytes in all, and {len(binary)} bytes follow the JSON part")


def _decode_texts(name: str, tensor: Mapping[str, Any], raw: memoryview | None, settings: ServeSettings) -> list[Any]:
    """Decode the elements of a BYTES tensor; elements in JSON may still have any type."""
    shape = tensor.get("shape")
    is_shape = isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and shape[0] >= 0
    if tensor.get("datatype") != "BYTES" or not isinstance(shape, list) or not is_shape:
        raise invalid(f"{name!r} must have datatype BYTES and shape [K], got {tensor.get('datatype')!r} and {shape!r}")
    check_count(CLASSES if name == CLASSES else "prompts in all", shape[0], settings)
    if raw is not None:
        return _split_texts(name, raw, shape[0])
    texts = tensor.get("data")
    if not isinstance(texts, list):
        raise RefusedError(400, f"the tensor {name!r} needs a list under 'data'", "malformed")
    if len(texts) != shape[0]:
        raise invalid(f"'data' of {name!r} must hold {shape[0]} texts for shape {shape}, got {len(texts)}")
    return texts


def _split_texts(name: str, raw: memoryview, count: int) -> list[str]:
    """Split raw BYTES: each element is its length as a little-endian uint32, followed by UTF-8."""
    texts, start = [], 0
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


def _vocabulary(texts: Mapping[str, list[Any]], settings: ServeSettings) -> Vocabulary | None:
    if (PROMPTS in texts) != (PROMPT_CLASSES in texts):
        raise invalid(f"{PROMPTS!r} and {PROMPT_CLASSES!r} come together: a text, and the class that it is about")
    if PROMPTS not in texts:
        return read_vocabulary(texts.get(CLASSES), None, settings)
    if len(texts[PROMPTS]) != len(texts[PROMPT_CLASSES]):
        lengths = f"{len(texts[PROMPTS])} and {len(texts[PROMPT_CLASSES])}"
        raise invalid(f"{PROMPTS!r} and {PROMPT_CLASSES!r} must be of one length, got {lengths}")
    prompts: dict[str, list[Any]] = {}
    for text, name in zip(texts[PROMPTS], texts[PROMPT_CLASSES], strict=True):
        if not isinstance(name, str):
            raise invalid(f"{PROMPT_CLASSES!r} must hold texts, got {name!r}")
        prompts.setdefault(name, []).append(text)
    return read_vocabulary(texts.get(CLASSES), prompts, settings)


def parameters_of(part: Mapping[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RefusedError(400, "'parameters' must be an object", "malformed")
    return parameters


def _requested_outputs(outputs: Any, binary_default: bool) -> dict[str, bool] | None:
    if not outputs:
        return None
    if not isinstance(outputs, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise RefusedError(400, "'outputs' must be a list of objects with a 'name'", "malformed")
    return {output["name"]: bool(parameters_of(output).get("binary_data", binary_default)) for output in outputs}


def _decode_images(tensor: Mapping[str, Any], raw: memoryview | None, size: int, max_images: int) -> np.ndarray:
    shape = _check_shape(tensor, size, max_images)
    num_bytes = math.prod(shape)
    if raw is not None:
        if len(raw) != num_bytes:
            raise invalid(f"UINT8 {shape} takes {num_bytes} bytes; binary_data_size is {len(raw)}")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    if not isinstance(tensor.get("data"), list):
        raise RefusedError(400, f"the tensor {INPUT_NAME!r} needs a list under 'data'", "malformed")
    return _decode_data(tensor["data"], shape)


def _check_shape(tensor: Mapping[str, Any], size: int, max_images: int) -> list[int]:
    if tensor.get("datatype") != "UINT8":
        raise invalid(f"{INPUT_NAME!r} must have datatype UINT8, got {tensor.get('datatype')!r}")
    shape = tensor.get("shape")
    is_shape = isinstance(shape, list) and all(type(length) is int for length in shape)
    if not isinstance(shape, list) or not is_shape or len(shape) != 4 or shape[1:] != [size, size, 3] or shape[0] < 1:
        raise invalid(f"{INPUT_NAME!r} must have shape [N,{size},{size},3] with N at least 1, got {shape!r}")
    if shape[0] > max_images:
        raise invalid(f"a request may have at most {max_images} pictures, got {shape[0]}", "batch_size")
    return shape


def _decode_data(data: list[Any], shape: Sequence[int]) -> np.ndarray:
    try:
        values = np.asarray(data)
    except ValueError as error:  # nested lists of different lengths
        raise invalid(f"'data' must be flat or nested as the shape says: {error}") from error
    if values.dtype.kind not in "iu":
        raise invalid(f"'data' must hold whole numbers from 0 to 255, got {values.dtype}")
    if values.shape not in ((math.prod(shape),), tuple(shape)):
        raise invalid(f"'data' must hold {math.prod(shape)} values for shape {list(shape)}, got {list(values.shape)}")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise invalid(f"'data' must hold numbers from 0 to 255, got {values.min()} to {values.max()}")
    return values.astype(np.uint8).reshape(shape)


def encode_response(
    request: ReplyForm,
    model: str,
    version: str,
    outputs: Mapping[str, np.ndarray],
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Encode the reply to ``request`` as body and headers.

    Args:
        request: Selects the outputs and their form.
        model: Name of the model.
        version: Version of the model that ran.
        outputs: All outputs, first axis N; integers are encoded as INT64, the rest as FP32.
        parameters: Parameters of the reply, if any.

    Raises:
        RefusedError: 422 for an unknown output.
        ValueError: If a value in JSON is NaN or infinite, which JSON can't express.
    """
    wanted = request.outputs or dict.fromkeys(outputs, request.binary_default)
    if unknown := sorted(wanted.keys() - outputs.keys()):
        raise invalid(f"the model has no output {unknown[0]!r}; it has {', '.join(outputs)}")
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, as_binary in wanted.items():
        datatype = "INT64" if outputs[name].dtype.kind == "i" else "FP32"
        values = np.ascontiguousarray(outputs[name], dtype=DATATYPES[datatype])
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if as_binary:
            raw.append(values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    reply: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if parameters is not None:
        reply["parameters"] = dict(parameters)
    if request.request_id is not None:
        reply["id"] = request.request_id
    header = json.dumps(reply, allow_nan=False).encode()
    if not raw:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *raw]), {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(header)),
    }


def model_metadata(description: Description) -> dict[str, Any]:
    """Build the reply to ``GET /v2/models/<m>``; the parameters have the class names and the image preprocessing.

    For a model with an out-of-distribution flag, they also have the rule that sets the output ``outside`` to 1. For an
    open-vocabulary model, the text inputs are marked optional and the class axis of ``probs`` and ``logits`` is open.
    For a model with attribution maps, the outputs of the maps are marked optional.
    """
    preprocessing = description.image_preprocessing
    size = preprocessing.image_size
    inputs: list[dict[str, Any]] = [{"name": INPUT_NAME, "datatype": "UINT8", "shape": [-1, size, size, 3]}]
    shapes = dict(description.outputs)
    parameters: dict[str, Any] = {
        "task": str(description.task),
        "classes": list(description.classes),
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
    }
    optional = {"optional": True}
    if description.prompt_template is not None:
        inputs += [{"name": name, "datatype": "BYTES", "shape": [-1], "parameters": optional} for name in TEXT_INPUTS]
        shapes |= {name: (-1,) for name in ("probs", "logits") if name in shapes}
        parameters["prompt_template"] = description.prompt_template
    if description.flag is not None:
        parameters["outside"] = asdict(description.flag)
    outputs: list[dict[str, Any]] = [
        {"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in shapes.items()
    ]
    if description.explains:
        outputs += [
            {"name": ATTRIBUTIONS, "datatype": "FP32", "shape": [-1, size, size], "parameters": optional},
            {"name": EXPLAINED, "datatype": "INT64", "shape": [-1], "parameters": optional},
        ]
    return metadata_reply(description, inputs, outputs, parameters)


def metadata_reply(
    description: Description,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """Assemble the reply to ``GET /v2/models/<m>``."""
    return {
        "name": description.name,
        "versions": [description.version],
        "platform": f"tenfold_{description.method}",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": parameters,
    }
