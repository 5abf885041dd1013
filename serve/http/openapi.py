"""The OpenAPI document: typed bodies, replies and examples for every served model, read off its signature."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from serve.contract import Description, Form, Kind
from serve.protocols.bodies import IMAGE_TYPES
from serve.protocols.v2 import DATATYPES
from tenfold.tasks import ATTRIBUTIONS, Pixels, Slot
from tenfold.types import Preprocessing

_EXAMPLE_LENGTH = 2  # of an open axis, in an example
_MAX_EXAMPLE = 4096  # numbers; a larger tensor is described without an example


class InputSummary(BaseModel):
    """One named input of a model that takes more than images."""

    name: str
    dtype: str
    shape: list[int]
    """Shape without the example axis; -1 for an axis of any length."""
    max_value: float | None
    """Value of white, for an image that can be sent as a file."""


class ModelSummary(BaseModel):
    name: str
    version: str
    method: str
    task: str
    image_size: int | None
    """Height and width of the images that the model takes; null for a model without image input."""
    inputs: list[InputSummary]
    """Named inputs that every request brings; empty for a model of images alone."""
    classes: list[str]
    """Class names; for a regression, the targets."""
    prompt_template: str | None
    """Prompt template of an open-vocabulary model; null for others."""
    explains: bool
    """Whether a request may ask for attribution maps."""


class ModelList(BaseModel):
    models: list[ModelSummary]


class ErrorReply(BaseModel):
    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The body is malformed.",
        401: "No API key, or an unknown one.",
        404: "No such model or version.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The content type is not accepted or does not match the data.",
        422: "The model does not accept the input or a parameter, or answers it with NaN.",
        500: "An internal error; the server's log tells more under the request id.",
        502: "A process that answered broke off; try again.",
        503: "Overloaded; try again after Retry-After seconds.",
        504: "The model took too long.",
    }.items()
}
NOT_READY: dict[int | str, dict[str, Any]] = {
    **REFUSALS,
    400: {
        "description": "It is not ready.",
        "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}},
    },
}


def summary(description: Description) -> ModelSummary:
    """The entry of a model in ``GET /models``."""
    signature = description.signature
    preprocessing = signature.preprocessing
    return ModelSummary(
        name=description.name,
        version=description.version,
        method=description.method,
        task=str(signature.task),
        image_size=preprocessing.image_size if preprocessing else None,
        inputs=[
            InputSummary(
                name=slot.name,
                dtype=slot.dtype,
                shape=list(slot.shape),
                max_value=slot.image.max_value if isinstance(slot.image, Pixels) else None,
            )
            for slot in signature.inputs
            if not isinstance(slot.image, Preprocessing) and not slot.optional
        ],
        classes=list(signature.columns),
        prompt_template=signature.about.get("prompt_template"),
        explains=signature.gives(ATTRIBUTIONS),
    )


def document(
    base: Mapping[str, Any], descriptions: Sequence[Description], kind_of: Callable[[str], Kind]
) -> dict[str, Any]:
    """Add the routes of every model to FastAPI's document of the others."""
    paths: dict[str, Any] = dict(base["paths"])
    for one in descriptions:
        form = kind_of(one.signature.kind).form(one)
        paths[f"/predict/{one.name}"] = {"post": _predict(one, form)}
        paths[f"/v2/models/{one.name}/infer"] = {"post": _infer(one)}
        paths[f"/v2/models/{one.name}/versions/{one.version}/infer"] = {"post": _infer(one, "_version")}
    return {**base, "paths": paths}


def _predict(description: Description, form: Form) -> dict[str, Any]:
    signature = description.signature
    bodies: dict[str, Any] = {}
    schema = {"type": "object", "properties": dict(form.properties), "required": [*form.required]}
    bodies["application/json"] = {"schema": schema} | ({"example": dict(form.example)} if form.example else {})
    if form.takes_file:
        binary = {"type": "string", "format": "binary"}
        texts = {
            name: {"type": "string", "description": str(each.get("description", ""))}
            for name, each in form.properties.items()
            if name != "image"
        }
        in_form = {"type": "object", "properties": {"image": binary, **texts}, "required": ["image"]}
        bodies["multipart/form-data"] = {"schema": in_form}
        bodies |= {kind: {"schema": binary} for kind in IMAGE_TYPES if kind != "image/jpg"}
    text = {"type": "string"}
    head = dict.fromkeys(("model", "version", "request_id", "task"), text)
    reply = {"type": "object", "properties": {**head, **form.reply}, "required": [*head]}
    content: dict[str, Any] = {"application/json": {"schema": reply}}
    if form.gives_picture:
        content["image/png"] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "tags": ["plain"],
        "operationId": f"predict_{_identifier(description.name)}",
        "summary": f"Ask {description.name} ({signature.task}) about one example.",
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {**each}} for name, each in form.query.items()
        ],
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": {"description": "The answer.", "content": content}, **_refusals()},
    }


def _infer(description: Description, suffix: str = "") -> dict[str, Any]:
    signature = description.signature
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "description": "Repeated in the reply."},
            "inputs": {
                "type": "array",
                "minItems": len(signature.required),
                "maxItems": len(signature.inputs),
                "items": _any_of([_tensor(slot, given=True) for slot in signature.inputs]),
            },
            "parameters": {
                "type": "object",
                "properties": {
                    **{param.name: dict(param.schema) for param in signature.params},
                    "binary_data_output": {"type": "boolean", "description": "Outputs as raw bytes."},
                },
            },
            "outputs": {
                "type": "array",
                "description": "Wanted outputs; all where it is left out.",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": [slot.name for slot in signature.outputs]},
                        "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
                    },
                },
            },
        },
    }
    reply = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": description.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": _any_of([_tensor(slot) for slot in signature.outputs])},
        },
    }
    body: dict[str, Any] = {"schema": request}
    if (example := _example(description)) is not None:
        body["example"] = example
    raw = {"schema": {"type": "string", "format": "binary"}}
    return {
        "tags": ["v2"],
        "operationId": f"infer_{_identifier(description.name)}{suffix}",
        "summary": f"Ask {description.name} ({signature.task}) by tensors.",
        "description": "Tensors in JSON, or as raw bytes behind it; the header Inference-Header-Content-Length then "
        "gives the length of the JSON.",
        "parameters": [
            {"name": "Inference-Header-Content-Length", "in": "header", "required": False,
             "schema": {"type": "integer", "minimum": 0}}
        ],
        "requestBody": {"required": True, "content": {"application/json": body, "application/octet-stream": raw}},
        "responses": {
            "200": {
                "description": "The outputs.",
                "content": {"application/json": {"schema": reply}, "application/octet-stream": raw},
            },
            **_refusals(),
        },
    }  # fmt: skip


def _tensor(slot: Slot, given: bool = False) -> dict[str, Any]:
    """Schema of a tensor in a body."""
    kind = {"text": "string", "bool": "boolean"}.get(slot.dtype, "number" if "float" in slot.dtype else "integer")
    # Plain lists of integers: few generators of clients know ``prefixItems``.
    axes = ", ".join(["K" if slot.shared else "N", *("any" if length < 0 else str(length) for length in slot.shape)])
    lengths = {
        "type": "array",
        "items": {"type": "integer", "minimum": 1},
        "minItems": 1 + len(slot.shape),
        "maxItems": 1 + len(slot.shape),
        "description": f"[{axes}]",
    }
    parameters = {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}}
    return {
        "type": "object",
        "title": slot.name,
        "required": ["name", "datatype", "shape", *(["data"] if given else [])],
        "properties": {
            "name": {"const": slot.name},
            "datatype": {"const": DATATYPES[slot.dtype]},
            "shape": lengths,
            "data": {"type": "array", "items": {"type": kind}, "description": "Flat, in row-major order; or nested."},
            "parameters": parameters,
        },
    }


def _example(description: Description) -> dict[str, Any] | None:
    tensors = []
    for slot in description.signature.required:
        shape = [1, *(_EXAMPLE_LENGTH if length < 0 else length for length in slot.shape)]
        count = 1
        for length in shape:
            count *= length
        if count > _MAX_EXAMPLE:
            return None
        value: Any = {"text": "a text", "bool": True}.get(slot.dtype, 1)
        tensors.append({"name": slot.name, "datatype": DATATYPES[slot.dtype], "shape": shape, "data": [value] * count})
    return {"inputs": tensors}


def _any_of(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"oneOf": [*schemas]}


def _refusals() -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{ErrorReply.__name__}"}
    return {
        str(status): {"description": each["description"], "content": {"application/json": {"schema": schema}}}
        for status, each in REFUSALS.items()
    }


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
