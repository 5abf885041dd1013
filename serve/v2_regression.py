"""Open Inference Protocol v2 of regression models: named inputs in, mean, std and intervals out.

The level of the interval is a parameter of the request: ``"parameters": {"level": 0.9}`` adds the outputs ``lower`` and
``upper``, shaped like ``mean``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.contract import Answer, Description
from serve.limits import RefusedError, invalid
from serve.regression import LEVEL, LOWER, UPPER, Regression, check_reply, check_request, numbers, read_level
from serve.settings import ServeSettings
from serve.v2 import (
    ReplyForm,
    claim_raw,
    metadata_reply,
    named_tensors,
    parameters_of,
    read_form,
    split_body,
)
from serve.v2 import encode_response as encode_reply
from tenfold.types import TensorSchema

_DATATYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
_ENDS = (LOWER, UPPER)


@dataclass(frozen=True, kw_only=True)
class RegressionRequest(ReplyForm, Regression):
    """A parsed infer request."""


def decode_request(
    body: bytes, json_length: str | None, schemas: Sequence[TensorSchema], settings: ServeSettings
) -> RegressionRequest:
    """Parse and check the body of an infer request.

    Args:
        body: Raw body.
        json_length: Value of ``Inference-Header-Content-Length``; None: the body is JSON only.
        schemas: Inputs of the model.
        settings: The limits.

    Raises:
        RefusedError: 400 if the body violates the protocol, 422 if a tensor does not fit the model.
    """
    header, binary = split_body(body, json_length)
    tensors = named_tensors(header.get("inputs"))
    names = [tensor.get("name") for tensor in tensors]
    wanted = {schema.name: schema for schema in schemas}
    if sorted(map(str, names)) != sorted(wanted):
        raise invalid(f"the inputs are {', '.join(wanted)}, each once; got {names[:8]}")
    named = dict(zip(map(str, names), tensors, strict=True))
    raw = claim_raw(named, binary)
    inputs = {name: _decode(tensor, raw[name], wanted[name]) for name, tensor in named.items()}
    form = read_form(header)
    level, outputs = read_level(parameters_of(header).get(LEVEL)), form.outputs
    if outputs is not None:
        is_named = not outputs.keys().isdisjoint(_ENDS)
        if is_named and level is None:
            raise invalid(f"{LOWER!r} and {UPPER!r} need the interval's {LEVEL!r} in the request's parameters", LEVEL)
        if level is not None and not is_named:
            outputs = {**outputs, **dict.fromkeys(_ENDS, form.binary_default)}
    check_request(Regression(inputs, level), schemas, settings)
    return RegressionRequest(
        inputs=inputs,
        level=level,
        outputs=outputs,
        binary_default=form.binary_default,
        request_id=form.request_id,
    )


def encode_response(
    request: RegressionRequest, model: str, answer: Answer, settings: ServeSettings
) -> tuple[bytes, dict[str, str]]:
    """Encode the reply to ``request`` as body and headers; its parameters repeat the level.

    Raises:
        RefusedError: 422 for an unknown output, and for a reply that would be too large.
    """
    outputs = answer.outputs
    wanted = request.outputs or dict.fromkeys(outputs, request.binary_default)
    in_json = sum(outputs[name].size for name, as_binary in wanted.items() if not as_binary and name in outputs)
    check_reply(in_json, True, settings)
    check_reply(sum(outputs[name].size for name in wanted if name in outputs), False, settings)
    parameters = None if request.level is None else {LEVEL: request.level}
    return encode_reply(request, model, answer.version, outputs, parameters)


def model_metadata(description: Description) -> dict[str, Any]:
    """Build the reply to ``GET /v2/models/<m>``; the parameters have the names of the targets.

    The bounds of the interval, which require a level, are marked optional.
    """
    inputs: list[dict[str, Any]] = []
    for schema in description.inputs:
        image = {} if schema.max_value is None else {"parameters": {"max_value": schema.max_value}}
        inputs.append(
            {"name": schema.name, "datatype": _DATATYPES[schema.dtype], "shape": [-1, *schema.shape], **image}
        )
    outputs: list[dict[str, Any]] = [
        {"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in description.outputs.items()
    ]
    outputs += [
        {"name": name, "datatype": "FP32", "shape": [-1, *description.outputs["mean"]],
         "parameters": {"optional": True}}
        for name in _ENDS if "mean" in description.outputs
    ]  # fmt: skip
    parameters = {"task": str(description.task), "targets": list(description.classes)}
    return metadata_reply(description, inputs, outputs, parameters)


def _decode(tensor: Mapping[str, Any], raw: memoryview | None, schema: TensorSchema) -> np.ndarray:
    name, datatype = schema.name, _DATATYPES[schema.dtype]
    shape = tensor.get("shape")
    if tensor.get("datatype") != datatype:
        raise invalid(f"{name!r} must have datatype {datatype}, got {tensor.get('datatype')!r}")
    if not isinstance(shape, list) or not shape or not all(type(length) is int and length >= 1 for length in shape):
        raise invalid(f"the shape of {name!r} must be a list of lengths, each at least 1, got {shape!r}")
    size = math.prod(shape)
    if raw is not None:
        dtype = np.dtype(schema.dtype).newbyteorder("<")
        if len(raw) != size * dtype.itemsize:
            raise invalid(
                f"{datatype} {shape} of {name!r} takes {size * dtype.itemsize} bytes; binary_data_size is {len(raw)}"
            )
        return np.frombuffer(raw, dtype).astype(schema.dtype, copy=False).reshape(shape)
    if not isinstance(tensor.get("data"), list):
        raise RefusedError(400, f"the tensor {name!r} needs a list under 'data'", "malformed")
    values = numbers(name, tensor["data"], schema.dtype)
    if values.shape not in ((size,), tuple(shape)):
        raise invalid(f"'data' of {name!r} must hold {size} values for shape {shape}, got {list(values.shape)}")
    return values.reshape(shape)
