"""Open Inference Protocol v2 over REST, with the binary tensor extension: bytes in, arrays out, and back.

https://github.com/open-inference/open-inference-protocol and its extension ``binary_tensor_data``: where the header
``Inference-Header-Content-Length`` gives the length of the JSON part, raw tensors follow it in their order.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.contract import Description
from serve.limits import RefusedError, parse_json

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
INPUT_NAME = "images"
EXTENSIONS = ("binary_tensor_data",)


@dataclass(frozen=True)
class InferRequest:
    """A parsed infer request."""

    images: np.ndarray
    """uint8 ``(N, S, S, 3)``."""
    outputs: Mapping[str, bool] | None
    """Name of each output asked for, and whether as raw bytes; None: all there are."""
    binary_default: bool
    """Whether outputs that are not named come as raw bytes."""
    request_id: str | None


def invalid(message: str, reason: str = "tensor") -> RefusedError:
    return RefusedError(422, message, reason)


def decode_request(body: bytes, json_length: str | None, image_size: int, max_images: int) -> InferRequest:
    """Parse and check the body of an infer request.

    Args:
        body: As it came.
        json_length: Value of ``Inference-Header-Content-Length``; None: the body is JSON only.
        image_size: Height and width S that the model takes.
        max_images: Most pictures allowed.

    Raises:
        RefusedError: 400 where the body is not what the protocol describes, 422 where the tensor is not the model's.
    """
    header, binary = _split(body, json_length)
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise RefusedError(400, "the request needs a list of tensors under 'inputs'", "malformed")
    if len(inputs) != 1 or inputs[0].get("name") != INPUT_NAME:
        names = [tensor.get("name") for tensor in inputs]
        raise invalid(f"the model has one input, named {INPUT_NAME!r}; got {names}")
    request_id = header.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RefusedError(400, "the request's 'id' must be a string", "malformed")
    parameters = _parameters(header)
    return InferRequest(
        images=_decode_images(inputs[0], binary, image_size, max_images),
        outputs=_requested_outputs(header.get("outputs"), bool(parameters.get("binary_data_output", False))),
        binary_default=bool(parameters.get("binary_data_output", False)),
        request_id=request_id,
    )


def _split(body: bytes, json_length: str | None) -> tuple[dict[str, Any], bytes]:
    if json_length is None:
        return parse_json(body), b""
    if not (json_length.isascii() and json_length.isdigit()) or int(json_length) > len(body):
        raise RefusedError(
            400, f"{JSON_LENGTH_HEADER} must be a number up to the body's length {len(body)}", "malformed"
        )
    return parse_json(body[: int(json_length)]), body[int(json_length) :]


def _parameters(part: Mapping[str, Any]) -> dict[str, Any]:
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
    return {output["name"]: bool(_parameters(output).get("binary_data", binary_default)) for output in outputs}


def _decode_images(tensor: Mapping[str, Any], binary: bytes, size: int, max_images: int) -> np.ndarray:
    shape = _check_shape(tensor, size, max_images)
    num_bytes = math.prod(shape)
    binary_size = _parameters(tensor).get("binary_data_size")
    if binary_size is not None:
        if "data" in tensor:
            raise RefusedError(400, "a tensor has either 'data' or 'binary_data_size', not both", "malformed")
        if binary_size != num_bytes or len(binary) != num_bytes:
            raise invalid(
                f"UINT8 {shape} takes {num_bytes} bytes; "
                f"binary_data_size is {binary_size!r} and {len(binary)} bytes follow the JSON part"
            )
        return np.frombuffer(binary, np.uint8).reshape(shape)
    if binary:
        raise RefusedError(400, f"{len(binary)} bytes follow the JSON part, but no tensor claims them", "malformed")
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
    request: InferRequest, model: str, version: str, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the reply to ``request``.

    Args:
        request: What was asked; decides which outputs are told, and in which form.
        model: Name of the model.
        version: Version that ran.
        outputs: All outputs, float32, first axis N.

    Raises:
        RefusedError: 422 for an output that the model does not have.
        ValueError: A value is NaN or infinite and was to be told in JSON, which has no word for it.
    """
    wanted = request.outputs or dict.fromkeys(outputs, request.binary_default)
    if unknown := sorted(wanted.keys() - outputs.keys()):
        raise invalid(f"the model has no output {unknown[0]!r}; it has {', '.join(outputs)}")
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, as_binary in wanted.items():
        values = np.ascontiguousarray(outputs[name], dtype="<f4")
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if as_binary:
            raw.append(values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    reply: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.request_id is not None:
        reply["id"] = request.request_id
    header = json.dumps(reply, allow_nan=False).encode()
    if not raw:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *raw]), {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(header)),
    }


def encode_request(
    images: np.ndarray, *, binary: bool = True, request_id: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer request, as a client sends it.

    Args:
        images: uint8 ``(N, S, S, 3)``.
        binary: Pictures and outputs as raw bytes; False: everything in JSON.
        request_id: Echoed in the reply.
    """
    tensor: dict[str, Any] = {"name": INPUT_NAME, "shape": list(images.shape), "datatype": "UINT8"}
    request: dict[str, Any] = {"inputs": [tensor]}
    if request_id is not None:
        request["id"] = request_id
    if not binary:
        tensor["data"] = images.ravel().tolist()
        return json.dumps(request).encode(), {"Content-Type": "application/json"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    request["parameters"] = {"binary_data_output": True}
    header = json.dumps(request).encode()
    return header + np.ascontiguousarray(images).tobytes(), {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(header)),
    }


def decode_response(body: bytes, json_length: str | None) -> dict[str, np.ndarray]:
    """Float32 outputs by name from the body of an infer reply, as a client reads it."""
    header_length = len(body) if json_length is None else int(json_length)
    outputs, start = {}, header_length
    for tensor in json.loads(body[:header_length])["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.asarray(tensor["data"], np.float32)
        else:
            values = np.frombuffer(body[start : start + size], "<f4")
            start += size
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
    return outputs


def model_metadata(description: Description) -> dict[str, Any]:
    """The reply to ``GET /v2/models/<m>``; class names are in the parameters."""
    size = description.image_size
    return {
        "name": description.name,
        "versions": [description.version],
        "platform": f"tenfold_{description.method}",
        "inputs": [{"name": INPUT_NAME, "datatype": "UINT8", "shape": [-1, size, size, 3]}],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in description.outputs.items()
        ],
        "parameters": {"task": str(description.task), "classes": list(description.classes)},
    }
