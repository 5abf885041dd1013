"""The Open Inference Protocol v2 with raw bytes: for servers that have no codec of their own, and for the client."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

INFER_PATH = "/v2/models/conv/infer"
JSON_LENGTH_HEADER = "inference-header-content-length"
OUTPUTS = ("probs", "logits")


def decode_images(body: bytes, json_length: str) -> np.ndarray:
    """Images of an infer request, uint8 ``(N, S, S, 3)``."""
    length = int(json_length)
    (tensor,) = json.loads(body[:length])["inputs"]
    start, size = length, tensor["parameters"]["binary_data_size"]
    if tensor["datatype"] != "UINT8" or len(body) != start + size:
        raise ValueError(f"expected one tensor UINT8 of {len(body) - start} bytes, got {tensor}")
    return np.frombuffer(body, np.uint8, size, start).reshape(tensor["shape"])


def encode_outputs(outputs: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the reply with ``outputs``, ``(N, 2, C)``."""
    tensors, raw = [], []
    for number, name in enumerate(OUTPUTS):
        values = np.ascontiguousarray(outputs[:, number], "<f4")
        raw.append(values.tobytes())
        parameters = {"binary_data_size": len(raw[-1])}
        tensors.append({"name": name, "datatype": "FP32", "shape": list(values.shape), "parameters": parameters})
    return _join({"model_name": "conv", "model_version": "1", "outputs": tensors}, raw)


def encode_images(images: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the infer request with ``images``, uint8 ``(N, S, S, 3)``."""
    raw = images.tobytes()
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "parameters": parameters}
    return _join({"inputs": [tensor], "parameters": {"binary_data_output": True}}, [raw])


def decode_outputs(body: bytes, json_length: str) -> np.ndarray:
    """Outputs of the reply, ``(N, 2, C)``; raises ValueError or KeyError for another reply."""
    start = int(json_length)
    outputs: dict[str, np.ndarray] = {}
    for tensor in json.loads(body[:start])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        outputs[tensor["name"]] = np.frombuffer(body[start : start + size], "<f4").reshape(tensor["shape"])
        start += size
    return np.stack([outputs[name] for name in OUTPUTS], axis=1)


def _join(header: dict[str, Any], raw: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    encoded = json.dumps(header).encode()
    headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(encoded))}
    return b"".join([encoded, *raw]), headers
