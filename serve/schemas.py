"""What the HTTP application says of itself: the forms of bodies and replies, for ``/docs`` and ``/openapi.json``."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from serve.explanation import EXPLAIN, EXPLAIN_CLASS
from serve.picture_explanation import OVERLAY, PNG
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


class Prediction(BaseModel):
    """Labels of one picture, the most probable first: of the model's classes, or of those that the request brought."""

    model: str
    version: str
    request_id: str
    task: str
    labels: list[Label]
    uncertainty: dict[str, float] | None = None
    """Only of models that know how unsure they are: each score by its name, and ``outside``, 1 where the picture does
    not seem to belong."""
    explanation: Explanation | None = None
    """Only where the request asks with ``explain``."""


class ModelSummary(BaseModel):
    name: str
    version: str
    method: str
    task: str
    image_size: int
    classes: list[str]
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
_PICTURE_REPLY: dict[str, Any] = {
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
PREDICT_REPLIES: dict[int | str, dict[str, Any]] = {200: _PICTURE_REPLY, **REFUSALS}

_ASK_MAP = (
    "Where in the picture the model saw a class: true adds 'explanation' to the JSON, "
    f"'{OVERLAY}' also the picture under the colours of its map; with 'Accept: {PNG}' that picture is the reply. "
    "For models that say so ('explains' of /models)."
)
_ASK_CLASS = "Name or index of the class to explain. Left out: the most probable one."
_WORDS = ["true", "false", OVERLAY]
ExplainQuery = Annotated[str | None, Query(description=_ASK_MAP, json_schema_extra={"enum": [*_WORDS]})]
ExplainClassQuery = Annotated[str | None, Query(description=_ASK_CLASS)]

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


def _picture_schema(image_format: str, more: dict[str, Any]) -> dict[str, Any]:
    properties = {"image": {"type": "string", "format": image_format}, **more}
    return {"schema": {"type": "object", "required": ["image"], "properties": properties}}


PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _picture_schema("binary", _IN_FORM | _EXPLAIN_IN_FORM),
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/webp": {"schema": {"type": "string", "format": "binary"}},
            "application/json": _picture_schema("byte", _IN_JSON | _EXPLAIN_IN_JSON),
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
