"""A client of the Open Inference Protocol v2: encodes infer requests and decodes their replies."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.protocols.v2 import DATATYPES, DTYPES, JSON_LENGTH_HEADER
from tenfold.tasks import CLASSES, IMAGES, LEVEL, PROMPT_CLASSES, PROMPTS


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
    inputs = {IMAGES: images}
    if classes is not None:
        inputs[CLASSES] = np.array(list(classes), object)
    if prompts is not None:
        inputs[PROMPTS] = np.array([text for of_class in prompts.values() for text in of_class], object)
        inputs[PROMPT_CLASSES] = np.array([name for name, of_class in prompts.items() for _ in of_class], object)
    return encode_inputs(inputs, binary=binary, parameters=parameters, request_id=request_id)


def encode_regression_request(
    inputs: Mapping[str, np.ndarray], *, level: float | None = None, binary: bool = True
) -> tuple[bytes, dict[str, str]]:
    """Encode an infer request for a regression; ``level`` is that of the interval, None: no interval."""
    return encode_inputs(inputs, binary=binary, parameters={} if level is None else {LEVEL: level})


def encode_inputs(
    inputs: Mapping[str, np.ndarray],
    *,
    binary: bool = True,
    parameters: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Encode an infer request.

    Args:
        inputs: Input name to values, first axis N; texts as arrays of objects.
        binary: Whether inputs and outputs travel as raw bytes; False: everything in JSON.
        parameters: Parameters of the request.
        request_id: Echoed in the reply.

    Returns:
        Body and headers.
    """
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, values in inputs.items():
        dtype = "text" if values.dtype.kind == "O" else str(values.dtype)
        tensor: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": DATATYPES[dtype]}
        if binary:
            raw.append(join_texts(values.ravel().tolist()) if dtype == "text" else values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    said = {**(parameters or {}), **({"binary_data_output": True} if binary else {})}
    request: dict[str, Any] = {"inputs": tensors, **({"parameters": said} if said else {})}
    if request_id is not None:
        request["id"] = request_id
    head = json.dumps(request).encode()
    if not binary:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *raw]), {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(head)),
    }


def decode_response(body: bytes, json_length: str | None) -> dict[str, np.ndarray]:
    """Decode the outputs of an infer reply by name; texts are arrays of objects."""
    head_length = len(body) if json_length is None else int(json_length)
    outputs, start = {}, head_length
    for tensor in json.loads(body[:head_length])["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        dtype = DTYPES[tensor["datatype"]]
        if size is None:
            values = np.asarray(tensor["data"], dtype)
        else:
            part = body[start : start + size]
            values = np.array(split_texts(part), object) if dtype.kind == "O" else np.frombuffer(part, dtype)
            start += size
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
    return outputs


def outputs_of(reply: Any) -> dict[str, np.ndarray]:
    """Decode a successful reply."""
    assert reply.status_code == 200, reply.text
    return decode_response(reply.content, reply.headers.get(JSON_LENGTH_HEADER))


def join_texts(texts: Sequence[str]) -> bytes:
    """Elements of a BYTES tensor as raw bytes."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def split_texts(raw: bytes) -> list[str]:
    """Elements of a BYTES tensor from raw bytes."""
    texts, start = [], 0
    while start < len(raw):
        (length,) = struct.unpack_from("<I", raw, start)
        start += 4 + length
        texts.append(raw[start - length : start].decode())
    return texts
