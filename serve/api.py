"""The HTTP application: both protocols over a table of models. Knows nothing of Ray, ``serve.ingress`` does."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import tenfold
from serve import plain, v2
from serve.contract import Description
from serve.guard import Guard, refuse
from serve.keys import Keys
from serve.limits import RefusedError
from serve.models import ModelTable
from serve.settings import ServeSettings
from serve.trace import Telemetry, Trace, trace_of
from serve.vocabulary import CLASSES, PROMPTS
from tenfold.types import Preprocessing

T = TypeVar("T")

_INLINE_BYTES = 64 * 1024  # below it, parsing takes less than handing over to a thread is worth
_READY_TIMEOUT_S = 2.0


class Label(BaseModel):
    name: str
    probability: float


class Prediction(BaseModel):
    """Labels of one picture, the most probable first: of the model's classes, or of those that the request brought."""

    model: str
    version: str
    request_id: str
    task: str
    labels: list[Label]


class ModelSummary(BaseModel):
    name: str
    version: str
    method: str
    task: str
    image_size: int
    classes: list[str]
    prompt_template: str | None
    """The sentence around a class's name, where a request may bring classes of its own; null where it may not."""


class ModelList(BaseModel):
    models: list[ModelSummary]


class ErrorReply(BaseModel):
    error: str


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The body is not of the form announced.",
        401: "No API key, or an unknown one.",
        404: "No such model or version.",
        413: "The body is too large.",
        415: "The content type is not accepted or does not match the data.",
        422: "The picture, tensor or list of classes is not what the model takes.",
        503: "Overloaded; try again after Retry-After seconds.",
        504: "The model took too long.",
    }.items()
}
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


def _picture_schema(image_format: str, more: dict[str, Any]) -> dict[str, Any]:
    properties = {"image": {"type": "string", "format": image_format}, **more}
    return {"schema": {"type": "object", "required": ["image"], "properties": properties}}


_PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _picture_schema("binary", _IN_FORM),
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/webp": {"schema": {"type": "string", "format": "binary"}},
            "application/json": _picture_schema("byte", _IN_JSON),
        },
    }
}
_TENSOR_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class _Work:
    """What the routes share: the models, the limits, and threads that keep long work off the event loop."""

    def __init__(self, table: ModelTable, settings: ServeSettings, executor: Executor) -> None:
        self.table = table
        self.settings = settings
        self._executor = executor

    def in_thread(self, function: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))

    async def sized(self, num_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
        """In a thread if it handles many bytes, else at once."""
        return function(*arguments) if num_bytes <= _INLINE_BYTES else await self.in_thread(function, *arguments)

    def begin(self, request: Request, name: str, version: str | None = None) -> Trace:
        """Check that the model is there before anything of the body is read."""
        description = self.table.description(name, version)
        trace = trace_of(request.scope)
        trace.model, trace.version = name, description.version
        return trace

    async def predict(self, request: Request, name: str, top: int | None) -> dict[str, Any]:
        trace = self.begin(request, name)
        plain.check_labels(self.table.description(name))
        asked = await plain.read_request(request, self.settings)
        trace.num_images = 1

        def prepare(preprocessing: Preprocessing) -> "asyncio.Future[Any]":
            return self.in_thread(plain.prepare_picture, asked.data, preprocessing, self.settings.max_pixels)

        answer, description = await self.table.infer_picture(name, prepare, asked.vocabulary)
        trace.version = answer.version
        classes = asked.vocabulary.classes if asked.vocabulary else description.classes
        return plain.label_reply(answer, description, classes, trace.request_id, top)

    async def infer(self, request: Request, name: str, version: str | None) -> Response:
        trace = self.begin(request, name, version)
        if encoding := request.headers.get("content-encoding"):
            raise RefusedError(415, f"the content encoding {encoding} is not accepted; send it plain", "content_type")
        body = await request.body()
        parsed = await self.sized(
            len(body),
            v2.decode_request,
            body,
            request.headers.get(v2.JSON_LENGTH_HEADER),
            self.table.description(name).image_size,
            self.settings,
        )
        trace.num_images = len(parsed.images)
        answer, _ = await self.table.infer(name, parsed.images, version, parsed.vocabulary)
        trace.version = answer.version
        num_bytes = sum(values.nbytes for values in answer.outputs.values())
        content, headers = await self.sized(num_bytes, v2.encode_response, parsed, name, answer.version, answer.outputs)
        return Response(content, headers=headers)

    async def last_seen(self, name: str) -> Description:
        """What is known of a model; a replica is asked where none has told yet and one is there."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                return await self.table.known(name)
        except (TimeoutError, RefusedError):
            return self.table.description(name)

    async def is_ready(self, name: str) -> bool:
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self.table.refresh(name)
        except (TimeoutError, RefusedError):
            return False
        return True


class _GuardedApp(FastAPI):
    """FastAPI inside ``Guard``, which also has to see the replies to errors that nothing in the application handles."""

    def __init__(self, guard: Callable[[ASGIApp], ASGIApp]) -> None:
        super().__init__(
            title="Tenfold",
            version=tenfold.__version__,
            description="Vision models behind a plain protocol for people and the Open Inference Protocol v2.",
        )
        self._guard = guard

    def build_middleware_stack(self) -> ASGIApp:
        # Middleware that is added the usual way sits inside the one that answers with 500.
        return self._guard(super().build_middleware_stack())


def create_app(
    table: ModelTable,
    settings: ServeSettings,
    keys: Keys | None,
    telemetry: Telemetry,
    executor: Executor,
    *,
    server_tells_id: bool = False,
) -> FastAPI:
    """Routes, limits and replies in one ASGI application.

    Args:
        table: The models.
        settings: The limits.
        keys: Accepted API keys; None: everybody may call.
        telemetry: Where finished requests are counted.
        executor: Threads that decode pictures and large bodies.
        server_tells_id: See ``Guard``.
    """
    app = _GuardedApp(
        partial(
            Guard,
            keys=keys,
            max_body_bytes=settings.max_body_bytes,
            telemetry=telemetry,
            server_tells_id=server_tells_id,
        )
    )
    work = _Work(table, settings, executor)
    _add_plain_routes(app, work)
    _add_v2_routes(app, work)
    _add_error_replies(app)
    return app


def _add_plain_routes(app: FastAPI, work: _Work) -> None:
    @app.get("/models", response_model=ModelList, tags=["plain"])
    async def list_models() -> ModelList:
        """The models that are served, as last seen."""
        descriptions = await asyncio.gather(*(work.last_seen(name) for name in work.table.names()))
        return ModelList(
            models=[
                ModelSummary(
                    name=one.name,
                    version=one.version,
                    method=one.method,
                    task=str(one.task),
                    image_size=one.image_size,
                    classes=list(one.classes),
                    prompt_template=one.prompt_template,
                )
                for one in descriptions
            ]
        )

    @app.post(
        "/predict/{model}",
        response_model=Prediction,
        responses=_REFUSALS,
        openapi_extra=_PICTURE_BODY,
        tags=["plain"],
    )
    async def predict(request: Request, model: str, top: Annotated[int | None, Query(ge=1)] = None) -> JSONResponse:
        """Labels of one picture: a file in a form, a picture as the body, or JSON with base64 under ``image``.

        Models that name a ``prompt_template`` take classes that the request brings along: names under ``classes``, or
        texts about each under ``prompts``.
        """
        return JSONResponse(await work.predict(request, model, top))


def _add_v2_routes(app: FastAPI, work: _Work) -> None:
    @app.get("/v2", tags=["v2"])
    async def server_metadata() -> dict[str, Any]:
        return {"name": "tenfold", "version": tenfold.__version__, "extensions": list(v2.EXTENSIONS)}

    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"])
    async def ready() -> JSONResponse:
        states = await asyncio.gather(*(work.is_ready(name) for name in work.table.names()))
        # The protocol tells "not ready" by a 4xx.
        return JSONResponse({"ready": all(states)}, 200 if all(states) else 400)

    @app.get("/v2/models/{model}", responses=_REFUSALS, tags=["v2"])
    @app.get("/v2/models/{model}/versions/{version}", responses=_REFUSALS, tags=["v2"])
    async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
        trace = work.begin(request, model, version)
        description = await work.table.known(model)
        trace.version = description.version
        return v2.model_metadata(description)

    @app.get("/v2/models/{model}/ready", responses=_REFUSALS, tags=["v2"])
    @app.get("/v2/models/{model}/versions/{version}/ready", responses=_REFUSALS, tags=["v2"])
    async def model_ready(request: Request, model: str, version: str | None = None) -> JSONResponse:
        work.begin(request, model, version)
        is_ready = await work.is_ready(model)
        return JSONResponse({"name": model, "ready": is_ready}, 200 if is_ready else 400)

    @app.post("/v2/models/{model}/infer", responses=_REFUSALS, openapi_extra=_TENSOR_BODY, tags=["v2"])
    @app.post(
        "/v2/models/{model}/versions/{version}/infer", responses=_REFUSALS, openapi_extra=_TENSOR_BODY, tags=["v2"]
    )
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Tensors in JSON or in raw bytes (header ``Inference-Header-Content-Length``).

        Models whose metadata lists the inputs take class names under ``classes`` (BYTES ``[K]``), or texts under
        ``prompts`` with the class of each under ``prompt_classes`` (BYTES ``[P]`` both).
        """
        return await work.infer(request, model, version)


def _add_error_replies(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return refuse(request.scope, error)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        reason = {404: "unknown_path", 405: "method"}.get(error.status_code, "malformed")
        return refuse(request.scope, RefusedError(error.status_code, str(error.detail), reason, error.headers))

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])
        return refuse(request.scope, RefusedError(422, f"{where}: {first['msg']}", "parameter"))

    @app.exception_handler(500)
    async def failed(request: Request, _: Exception) -> JSONResponse:
        # The error goes on to the server's log; its text may hold paths and is no business of the client's.
        request_id = trace_of(request.scope).request_id
        message = f"an internal error; the server's log tells more under the request id {request_id}"
        return refuse(request.scope, RefusedError(500, message, "error"))
