"""Schemas of bodies and replies, for ``/docs`` and ``/openapi.json``."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from serve.explanation import EXPLAIN, EXPLAIN_CLASS
from serve.picture_explanation import OVERLAY, PNG
from serve.plain_regression import INPUTS
from serve.regression import LEVEL
from serve.vocabulary import CLASSES, PROMPTS


class Label(BaseModel):
    name: str
    probability: float


class Place(BaseModel):
    """A pixel of the image as the model saw it, counted from the upper left corner."""

    x: int
    y: int


class Explanation(BaseModel):
    """Summary of the attribution map of a class."""

    class_: str = Field(alias="class")
    index: int
    """Index of the class among the model's classes."""
    probability: float
    image_size: int
    """Height and width of the image as the model saw it."""
    strongest: Place | None
    """Position of the maximum; null for an all-zero map."""
    overlay: str | None = None
    """PNG of that image under the colours of the map, in base64; only with ``explain=overlay``."""


class Outside(BaseModel):
    """Out-of-distribution flag: whether an image seems to belong to none of the model's classes."""

    flagged: bool
    score: str
    """Name of the score under ``uncertainty``; an image is flagged if the score exceeds the threshold."""
    threshold: float
    false_positive_rate: float
    """Share of held-out images of the model's classes that the threshold was set to flag."""


class Prediction(BaseModel):
    """Labels of one image, most probable first, over the classes of the model or of the request."""

    model: str
    version: str
    request_id: str
    task: str
    labels: list[Label]
    uncertainty: dict[str, float] | None = None
    """Uncertainty scores by name; only for models that provide them."""
    outside: Outside | None = None
    """Only for models with an out-of-distribution flag."""
    explanation: Explanation | None = None
    """Only if the request asks for it with ``explain``."""


Nested = float | list[Any]


class Target(BaseModel):
    """One channel of the target: numbers, or nested lists of numbers for a series or an image."""

    model_config = ConfigDict(extra="allow")

    name: str
    mean: Nested
    std: Nested
    lower: Nested | None = None
    """Lower bound of the interval; only if the request has a level."""
    upper: Nested | None = None


class RegressionReply(BaseModel):
    """Prediction for one example: mean, std and the parts of the std of every target."""

    model: str
    version: str
    request_id: str
    task: str
    level: float | None = None
    """Level of the interval, as requested."""
    targets: list[Target]


class InputSummary(BaseModel):
    """One named input of a regression model."""

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
    """Height and width of the images that the model takes; null for a model with ``inputs``."""
    inputs: list[InputSummary]
    """Named inputs; empty for an image classifier."""
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
        413: "The body is too large.",
        415: "The content type is not accepted or does not match the data.",
        422: "The model does not accept the image, tensor or classes, or can't explain them.",
        503: "Overloaded; try again after Retry-After seconds.",
        504: "The model took too long.",
    }.items()
}
_IMAGE_REPLY: dict[str, Any] = {
    "description": f"JSON; or, with 'explain' and 'Accept: {PNG}', the image under the colours of its map.",
    "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in {
            "tenfold-class": "With a PNG: the most probable class, percent-encoded UTF-8.",
            "tenfold-probability": "With a PNG: its probability.",
            "tenfold-explained-class": "With a PNG: the explained class, percent-encoded UTF-8.",
            "tenfold-explained-index": "With a PNG: its index among the model's classes.",
            "tenfold-explained-probability": "With a PNG: its probability.",
        }.items()
    },
}
PREDICT_REPLIES: dict[int | str, dict[str, Any]] = {200: _IMAGE_REPLY, **REFUSALS}

_ASK_MAP = (
    "Attribution map of a class: true adds 'explanation' to the JSON, "
    f"'{OVERLAY}' also the image under the colours of its map; with 'Accept: {PNG}' that overlay is the reply. "
    "For models with 'explains' in /models."
)
_ASK_CLASS = "Name or index of the class to explain. Default: the most probable class."
_WORDS = ["true", "false", OVERLAY]
ExplainQuery = Annotated[str | None, Query(description=_ASK_MAP, json_schema_extra={"enum": [*_WORDS]})]
ExplainClassQuery = Annotated[str | None, Query(description=_ASK_CLASS)]

LevelQuery = Annotated[
    str | None, Query(description="Regression: add the interval that contains each target with this probability.")
]
ShowQuery = Annotated[
    str | None,
    Query(
        description=f"Regression with 'Accept: {PNG}': the predicted image, or its std in colours.",
        json_schema_extra={"enum": ["mean", "std"]},
    ),
]

_ASK_OWN = "for an open-vocabulary model"
_IN_JSON: dict[str, Any] = {
    CLASSES: {
        "type": "array",
        "items": {"type": "string"},
        "description": f"Class names, {_ASK_OWN}; each once. Default: the model's own classes.",
        "example": ["cat", "dog"],
    },
    PROMPTS: {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "string"}},
        "description": f"Instead of 'classes', {_ASK_OWN}: class name to its prompts.",
        "example": {"cat": ["a photo of a cat.", "a drawing of a cat."], "dog": ["a photo of a dog."]},
    },
}
_IN_FORM = {
    name: {"type": "string", "contentMediaType": "application/json", "description": f"{schema['description']} In JSON."}
    for name, schema in _IN_JSON.items()
}
_EXPLAIN_IN_JSON = {
    EXPLAIN: {"enum": [True, False, OVERLAY], "description": f"Instead of the query parameter. {_ASK_MAP}"},
    EXPLAIN_CLASS: {"oneOf": [{"type": "string"}, {"type": "integer"}], "description": _ASK_CLASS},
}
_EXPLAIN_IN_FORM = {
    EXPLAIN: {"enum": _WORDS, "description": f"Instead of the query parameter. {_ASK_MAP}"},
    EXPLAIN_CLASS: {"type": "string", "description": _ASK_CLASS},
}


_OF_REGRESSION = {
    LEVEL: {"type": "number", "description": "Regression: instead of the query parameter.", "example": 0.9},
    INPUTS: {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {}},
        "description": "Instead of 'image', for a regression: the values of one example by input name.",
        "example": {"input": [0.1, 0.2, 0.3]},
    },
}


def _image_schema(image_format: str, more: dict[str, Any], required: tuple[str, ...] = ("image",)) -> dict[str, Any]:
    properties = {"image": {"type": "string", "format": image_format}, **more}
    return {"schema": {"type": "object", "required": [*required], "properties": properties}}


IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _image_schema(
                "binary", _IN_FORM | _EXPLAIN_IN_FORM | {LEVEL: _OF_REGRESSION[LEVEL]}
            ),
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/webp": {"schema": {"type": "string", "format": "binary"}},
            "application/json": _image_schema("byte", _IN_JSON | _EXPLAIN_IN_JSON | _OF_REGRESSION, ()),
        },
    }
}
TENSOR_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
