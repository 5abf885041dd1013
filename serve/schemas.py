"""What the HTTP application says of itself: the forms of bodies and replies, for ``/docs`` and ``/openapi.json``."""

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
    """A pixel of the picture as the model saw it, counted from its upper left corner."""

    x: int
    y: int


class Explanation(BaseModel):
    """Where in the picture the model saw a class."""

    class_: str = Field(alias="class")
    index: int
    """Of the class, among the model's."""
    probability: float
    image_size: int
    """Height and width of the picture as the model saw it."""
    strongest: Place | None
    """Null where the map is the same everywhere."""
    overlay: str | None = None
    """PNG of that picture under the colours of the map, in base64; only where ``explain`` is ``overlay``."""


class Outside(BaseModel):
    """Whether a picture seems to belong to none of the model's classes."""

    flagged: bool
    score: str
    """Under ``uncertainty``; a picture is flagged where it exceeds the threshold."""
    threshold: float
    false_positive_rate: float
    """Share of held-out pictures of the model's classes that the threshold was set to flag."""


class Prediction(BaseModel):
    """Labels of one picture, the most probable first: of the model's classes, or of those that the request brought."""

    model: str
    version: str
    request_id: str
    task: str
    labels: list[Label]
    uncertainty: dict[str, float] | None = None
    """Only of models that know how unsure they are: each score by its name."""
    outside: Outside | None = None
    """Only of models that can tell."""
    explanation: Explanation | None = None
    """Only where the request asks with ``explain``."""


Nested = float | list[Any]


class Target(BaseModel):
    """One channel of what is predicted: numbers, or nested lists of them where it is a series or a picture."""

    model_config = ConfigDict(extra="allow")

    name: str
    mean: Nested
    std: Nested
    lower: Nested | None = None
    """Lower end of the interval, only where the request asks for a level."""
    upper: Nested | None = None


class RegressionReply(BaseModel):
    """What a regression says of one example: every target with its mean, its std and what that is made of."""

    model: str
    version: str
    request_id: str
    task: str
    level: float | None = None
    """Of the interval, as it was asked for."""
    targets: list[Target]


class InputSummary(BaseModel):
    """One input of a model that takes no pictures, or takes them as numbers."""

    name: str
    dtype: str
    shape: list[int]
    """Without the example axis; -1 where any length will do."""
    max_value: float | None
    """Where it is a picture that can be sent as a file: the value of white."""


class ModelSummary(BaseModel):
    name: str
    version: str
    method: str
    task: str
    image_size: int | None
    """Height and width of the pictures that it takes; null where it takes ``inputs``."""
    inputs: list[InputSummary]
    """By name; empty where it takes pictures."""
    classes: list[str]
    """Of a regression: the targets."""
    prompt_template: str | None
    """The sentence around a class's name, where a request may bring classes of its own; null where it may not."""
    explains: bool
    """Whether a request may ask where in the picture the answer was seen."""


class ModelList(BaseModel):
    models: list[ModelSummary]


class ErrorReply(BaseModel):
    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The body is not of the form announced.",
        401: "No API key, or an unknown one.",
        404: "No such model or version.",
        413: "The body is too large.",
        415: "The content type is not accepted or does not match the data.",
        422: "The picture, tensor or list of classes is not what the model takes, or it can't explain what is asked.",
        503: "Overloaded; try again after Retry-After seconds.",
        504: "The model took too long.",
    }.items()
}
_IMAGE_REPLY: dict[str, Any] = {
    "description": f"JSON; or, with 'explain' and 'Accept: {PNG}', the picture under the colours of its map.",
    "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in {
            "tenfold-class": "With a PNG: the most probable class, percent-encoded UTF-8.",
            "tenfold-probability": "With a PNG: its probability.",
            "tenfold-explained-class": "With a PNG: the class that the map is about, percent-encoded UTF-8.",
            "tenfold-explained-index": "With a PNG: its index among the model's classes.",
            "tenfold-explained-probability": "With a PNG: its probability.",
        }.items()
    },
}
PREDICT_REPLIES: dict[int | str, dict[str, Any]] = {200: _IMAGE_REPLY, **REFUSALS}

_ASK_MAP = (
    "Where in the picture the model saw a class: true adds 'explanation' to the JSON, "
    f"'{OVERLAY}' also the picture under the colours of its map; with 'Accept: {PNG}' that picture is the reply. "
    "For models that say so ('explains' of /models)."
)
_ASK_CLASS = "Name or index of the class to explain. Left out: the most probable one."
_WORDS = ["true", "false", OVERLAY]
ExplainQuery = Annotated[str | None, Query(description=_ASK_MAP, json_schema_extra={"enum": [*_WORDS]})]
ExplainClassQuery = Annotated[str | None, Query(description=_ASK_CLASS)]

LevelQuery = Annotated[
    str | None, Query(description="Of a regression: add the interval that holds each target with this probability.")
]
ShowQuery = Annotated[
    str | None,
    Query(
        description=f"Of a regression with 'Accept: {PNG}': the predicted picture, or its std in colours.",
        json_schema_extra={"enum": ["mean", "std"]},
    ),
]

_ASK_OWN = "for a model with an open vocabulary"
_IN_JSON: dict[str, Any] = {
    CLASSES: {
        "type": "array",
        "items": {"type": "string"},
        "description": f"Names to choose from, {_ASK_OWN}; each once. Left out: the model's own classes.",
        "example": ["cat", "dog"],
    },
    PROMPTS: {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "string"}},
        "description": f"In place of 'classes', {_ASK_OWN}: name of each class and the texts that describe it.",
        "example": {"cat": ["a photo of a cat.", "a drawing of a cat."], "dog": ["a photo of a dog."]},
    },
}
_IN_FORM = {
    name: {"type": "string", "contentMediaType": "application/json", "description": f"{schema['description']} In JSON."}
    for name, schema in _IN_JSON.items()
}
_EXPLAIN_IN_JSON = {
    EXPLAIN: {"enum": [True, False, OVERLAY], "description": f"In place of the query's. {_ASK_MAP}"},
    EXPLAIN_CLASS: {"oneOf": [{"type": "string"}, {"type": "integer"}], "description": _ASK_CLASS},
}
_EXPLAIN_IN_FORM = {
    EXPLAIN: {"enum": _WORDS, "description": f"In place of the query's. {_ASK_MAP}"},
    EXPLAIN_CLASS: {"type": "string", "description": _ASK_CLASS},
}


_OF_REGRESSION = {
    LEVEL: {"type": "number", "description": "Of a regression, in place of the query's.", "example": 0.9},
    INPUTS: {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {}},
        "description": "In place of 'image', for a regression: the numbers of one example by the input's name.",
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
