"""A client of the Open Inference Protocol v2: encodes infer requests and decodes their replies."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.regression import LEVEL
from serve.v2 import DATATYPES, INPUT_NAME, JSON_LENGTH_HEADER, PROMPT_CLASSES
from serve.vocabulary import CLASSES, PROMPTS

_INPUT_DATATYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}


def encode_request(
    images: np.ndarray,
    *,
    binary: bool = True,
    request_id: str | None = None,
    classes: Sequence[str] | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Encode an infer request for a model that takes images.

    Args:
        images: uint8 ``(N, S, S, 3)``.
        binary: Whether images, texts and outputs travel as raw bytes; False: everything in JSON.
        request_id: Echoed in the reply.
        classes: Class names for an open-vocabulary model; None: its own classes.
        prompts: Class name to its prompts, in place of ``classes``.
        parameters: Parameters of the request, such as ``explain`` and ``explain_class``.

    Returns:
        Body and headers.
    """
    texts: dict[str, list[str]] = {} if classes is None else {CLASSES: list(classes)}
    if prompts is not None:
        texts[PROMPTS] = [text for of_class in prompts.values() for text in of_class]
        texts[PROMPT_CLASSES] = [name for name, of_class in prompts.items() for _ in of_class]
    tensors: list[dict[str, Any]] = [_tensor(INPUT_NAME, images)]
    tensors += [{"name": name, "shape": [len(of_name)], "datatype": "BYTES"} for name, of_name in texts.items()]
    data = [images.ravel().tolist(), *texts.values()]
    raw = [np.ascontiguousarray(images).tobytes(), *(_join_texts(of_name) for of_name in texts.values())]
    return _encode(tensors, raw if binary else None, data, dict(parameters or {}), request_id)


def encode_regression_request(
    inputs: Mapping[str, np.ndarray], *, level: float | None = None, binary: bool = True
) -> tuple[bytes, dict[str, str]]:
    """Encode an infer request for a model that takes named inputs.

    Args:
        inputs: Input name to values, first axis N; float32, int64 or uint8.
        level: Level of the interval; None: no interval.
        binary: Whether inputs and outputs travel as raw bytes; False: everything in JSON.

    Returns:
        Body and headers.
    """
    tensors = [_tensor(name, values) for name, values in inputs.items()]
    data = [values.ravel().tolist() for values in inputs.values()]
    raw = [np.ascontiguousarray(values).tobytes() for values in inputs.values()]
    return _encode(tensors, raw if binary else None, data, {} if level is None else {LEVEL: level})


def decode_response(body: bytes, json_length: str | None) -> dict[str, np.ndarray]:
    """Decode the outputs of an infer reply by name: float32, or int64 where the datatype is INT64."""
    header_length = len(body) if json_length is None else int(json_length)
    outputs, start = {}, header_length
    for tensor in json.loads(body[:header_length])["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        dtype = DATATYPES[tensor["datatype"]]
        if size is None:
            values = np.asarray(tensor["data"], dtype)
        else:
            values = np.frombuffer(body[start : start + size], dtype)
            start += size
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
    return outputs


def outputs_of(reply: Any) -> dict[str, np.ndarray]:
    """Decode a successful reply."""
    assert reply.status_code == 200, reply.text
    return decode_response(reply.content, reply.headers.get(JSON_LENGTH_HEADER))


def _tensor(name: str, values: np.ndarray) -> dict[str, Any]:
    return {"name": name, "shape": list(values.shape), "datatype": _INPUT_DATATYPES[str(values.dtype)]}


def _encode(
    tensors: Sequence[dict[str, Any]],
    raw: Sequence[bytes] | None,
    data: Sequence[list[Any]],
    parameters: dict[str, Any],
    request_id: str | None = None,
) -> tuple[bytes, dict[str, str]]:
    request: dict[str, Any] = {"inputs": tensors}
    if request_id is not None:
        request["id"] = request_id
    for number, tensor in enumerate(tensors):
        tensor |= {"data": data[number]} if raw is None else {"parameters": {"binary_data_size": len(raw[number])}}
    if raw is not None:
        parameters["binary_data_output"] = True
    if parameters:
        request["parameters"] = parameters
    header = json.dumps(request).encode()
    if raw is None:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *raw]), {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(header)),
    }


def _join_texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
