"""The HTTP application: both protocols over a table of models. Knows nothing of Ray, ``serve.ingress`` does."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import tenfold
from serve import picture_explanation, plain, plain_regression, v2, v2_regression
from serve.contract import Answer, Description
from serve.explanation import EXPLAIN, EXPLAIN_CLASS
from serve.guard import Guard, refuse
from serve.keys import Keys
from serve.limits import RefusedError
from serve.models import ModelTable
from serve.plain_regression import SHOW
from serve.regression import LEVEL, Regression
from serve.schemas import (
    IMAGE_BODY,
    PREDICT_REPLIES,
    REFUSALS,
    TENSOR_BODY,
    ExplainClassQuery,
    ExplainQuery,
    InputSummary,
    LevelQuery,
    ModelList,
    ModelSummary,
    Prediction,
    RegressionReply,
    ShowQuery,
)
from serve.settings import ServeSettings
from serve.trace import Telemetry, Trace, trace_of
from tenfold.types import Preprocessing, Task

T = TypeVar("T")

_INLINE_BYTES = 64 * 1024  # below it, parsing takes less than handing over to a thread is worth
_READY_TIMEOUT_S = 2.0


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

    async def label(self, request: Request, name: str, top: int | None, query: picture_explanation.Asked) -> Response:
        trace = self.begin(request, name)
        plain.check_labels(self.table.description(name))
        asked = await plain.read_request(request, self.settings)
        maps = picture_explanation.merge(query, asked.maps)
        explain = picture_explanation.explain_of(maps)
        trace.num_images, trace.num_explained = 1, int(explain is not None)

        def prepare(preprocessing: Preprocessing) -> "asyncio.Future[Any]":
            return self.in_thread(plain.prepare_image, asked.data, preprocessing, self.settings.max_pixels)

        answer, description, images = await self.table.infer_image(name, prepare, asked.vocabulary, explain)
        trace.version = answer.version
        classes = asked.vocabulary.classes if asked.vocabulary else description.classes
        reply = plain.label_reply(answer, description, classes, trace.request_id, top)
        if explain is None:
            return JSONResponse(reply)
        reply["explanation"] = picture_explanation.explanation(answer, description.classes)
        as_png = picture_explanation.prefers_png(request.headers.get("accept"))
        if as_png or maps.explain == picture_explanation.OVERLAY:
            picture = await self.in_thread(picture_explanation.overlay_png, images[0], answer)
            if as_png:
                return Response(
                    picture, media_type=picture_explanation.PNG, headers=picture_explanation.png_headers(reply)
                )
            reply["explanation"]["overlay"] = picture_explanation.as_base64(picture)
        return JSONResponse(reply)

    async def regress(self, request: Request, name: str, level: str | None, show: str | None) -> Response:
        trace = self.begin(request, name)
        as_png = picture_explanation.prefers_png(request.headers.get("accept"))
        shown = plain_regression.read_shown(show, as_png)
        sent = await plain_regression.read_request(request, self.settings, level)
        trace.num_images = 1

        def prepare(description: Description) -> "asyncio.Future[Regression]":
            return self.in_thread(plain_regression.as_regression, sent, description, self.settings)

        answer, description, asked = await self.table.regress(name, prepare)
        trace.version = answer.version
        if as_png:
            picture, headers = await self.in_thread(plain_regression.image_png, answer, description, shown)
            return Response(picture, media_type=picture_explanation.PNG, headers=headers)
        arguments = (answer, description, asked, trace.request_id, self.settings)
        return JSONResponse(await self.sized(_num_bytes(answer), plain_regression.reply, *arguments))

    async def infer(self, request: Request, name: str, version: str | None) -> Response:
        trace = self.begin(request, name, version)
        if encoding := request.headers.get("content-encoding"):
            raise RefusedError(415, f"the content encoding {encoding} is not accepted; send it plain", "content_type")
        body = await request.body()
        if self.table.description(name).task is Task.REGRESSION:
            return await self._infer_regression(trace, name, version, body, request.headers.get(v2.JSON_LENGTH_HEADER))
        image_size = self.table.description(name).image_preprocessing.image_size
        parsed = await self.sized(
            len(body),
            v2.decode_request,
            body,
            request.headers.get(v2.JSON_LENGTH_HEADER),
            image_size,
            self.settings,
        )
        trace.num_images = len(parsed.images)
        trace.num_explained = len(parsed.images) if parsed.explain is not None else 0
        answer, _ = await self.table.infer(name, parsed.images, version, parsed.vocabulary, parsed.explain)
        trace.version = answer.version
        content, headers = await self.sized(
            _num_bytes(answer), v2.encode_response, parsed, name, answer.version, answer.outputs
        )
        return Response(content, headers=headers)

    async def _infer_regression(
        self, trace: Trace, name: str, version: str | None, body: bytes, json_length: str | None
    ) -> Response:
        async def prepare(description: Description) -> v2_regression.RegressionRequest:
            arguments = (body, json_length, description.inputs, self.settings)
            return await self.sized(len(body), v2_regression.decode_request, *arguments)

        answer, _, asked = await self.table.regress(name, prepare, version)
        trace.version, trace.num_images = answer.version, len(asked)
        arguments = (asked, name, answer, self.settings)
        content, headers = await self.sized(_num_bytes(answer), v2_regression.encode_response, *arguments)
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


def _num_bytes(answer: Answer) -> int:
    return sum(values.nbytes for values in answer.outputs.values())


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
                    image_size=one.preprocessing.image_size if one.preprocessing else None,
                    inputs=[InputSummary(**asdict(schema)) for schema in one.inputs],
                    classes=list(one.classes),
                    prompt_template=one.prompt_template,
                    explains=one.explains,
                )
                for one in descriptions
            ]
        )

    @app.post(
        "/predict/{model}",
        response_model=Prediction | RegressionReply,
        responses=PREDICT_REPLIES,
        openapi_extra=IMAGE_BODY,
        tags=["plain"],
    )
    async def predict(
        request: Request,
        model: str,
        top: Annotated[int | None, Query(ge=1)] = None,
        explain: ExplainQuery = None,
        explain_class: ExplainClassQuery = None,
        level: LevelQuery = None,
        show: ShowQuery = None,
    ) -> Response:
        """Labels of one picture: a file in a form, a picture as the body, or JSON with base64 under ``image``.

        Models that name a ``prompt_template`` take classes that the request brings along: names under ``classes``, or
        texts about each under ``prompts``. Models that say ``explains`` tell with ``explain=true`` where in the picture
        they saw the most probable class, or ``explain_class``; with ``Accept: image/png`` the reply is a picture of it.

        Models of the task ``regression`` take one example as JSON, its numbers by the input's name under ``inputs``, or
        a picture where their ``inputs`` in ``/models`` have a ``max_value``. They answer with the mean and the std of
        every target, and with the interval that holds it with the probability ``level``. Where the target is a picture,
        ``Accept: image/png`` shows it, or its std.
        """
        of_labels = {"top": top, EXPLAIN: explain, EXPLAIN_CLASS: explain_class}
        of_numbers = {LEVEL: level, SHOW: show}
        task = work.table.description(model).task
        is_regression = task is Task.REGRESSION
        for name, value in (of_labels if is_regression else of_numbers).items():
            if value is not None:
                raise RefusedError(422, f"model {model} does {task}, which knows no {name!r}", "parameter")
        if is_regression:
            return await work.regress(request, model, level, show)
        query = picture_explanation.read_asked({EXPLAIN: explain, EXPLAIN_CLASS: explain_class})
        return await work.label(request, model, top, query)


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

    @app.get("/v2/models/{model}", responses=REFUSALS, tags=["v2"])
    @app.get("/v2/models/{model}/versions/{version}", responses=REFUSALS, tags=["v2"])
    async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
        trace = work.begin(request, model, version)
        description = await work.table.known(model)
        trace.version = description.version
        if description.task is Task.REGRESSION:
            return v2_regression.model_metadata(description)
        return v2.model_metadata(description)

    @app.get("/v2/models/{model}/ready", responses=REFUSALS, tags=["v2"])
    @app.get("/v2/models/{model}/versions/{version}/ready", responses=REFUSALS, tags=["v2"])
    async def model_ready(request: Request, model: str, version: str | None = None) -> JSONResponse:
        work.begin(request, model, version)
        is_ready = await work.is_ready(model)
        return JSONResponse({"name": model, "ready": is_ready}, 200 if is_ready else 400)

    @app.post("/v2/models/{model}/infer", responses=REFUSALS, openapi_extra=TENSOR_BODY, tags=["v2"])
    @app.post("/v2/models/{model}/versions/{version}/infer", responses=REFUSALS, openapi_extra=TENSOR_BODY, tags=["v2"])
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Tensors in JSON or in raw bytes (header ``Inference-Header-Content-Length``).

        Models whose metadata lists the inputs take class names under ``classes`` (BYTES ``[K]``), or texts under
        ``prompts`` with the class of each under ``prompt_classes`` (BYTES ``[P]`` both).

        Models whose metadata lists the output ``attributions`` give maps where the request's parameters have
        ``"explain": true``, or where its outputs name it: FP32 ``[N,S,S]`` in [0, 1], and with them ``explained``,
        INT64 ``[N]``, the class of each map. Which class that is, ``"explain_class"`` says: a name or an index, or a
        list of one for each picture; left out, it is the one with the highest logit.

        Models of the task ``regression`` take the inputs that their metadata lists, and answer with ``mean``, ``std``
        and what these are made of; ``"level": 0.9`` in the request's parameters adds ``lower`` and ``upper``.
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
