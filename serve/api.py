"""HTTP application: both protocols over a table of models. Independent of Ray; ``serve.ingress`` connects the two."""

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

_INLINE_BYTES = 64 * 1024  # smaller bodies parse faster than they reach a thread
_READY_TIMEOUT_S = 2.0


class _Work:
    """State shared by the routes: models, limits, and threads that keep long work off the event loop."""

    def __init__(self, table: ModelTable, settings: ServeSettings, executor: Executor) -> None:
        self.table = table
        self.settings = settings
        self._executor = executor

    def in_thread(self, function: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))

    async def sized(self, num_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
        """Run ``function`` in a thread if it handles many bytes, else inline."""
        return function(*arguments) if num_bytes <= _INLINE_BYTES else await self.in_thread(function, *arguments)

    def begin(self, request: Request, name: str, version: str | None = None) -> Trace:
        """Start the trace of a request; refuse an unknown model before its body is read."""
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
            png = await self.in_thread(picture_explanation.overlay_png, images[0], answer)
            if as_png:
                return Response(png, media_type=picture_explanation.PNG, headers=picture_explanation.png_headers(reply))
            reply["explanation"]["overlay"] = picture_explanation.as_base64(png)
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
            png, headers = await self.in_thread(plain_regression.image_png, answer, description, shown)
            return Response(png, media_type=picture_explanation.PNG, headers=headers)
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
        """Latest description of a model, asked from a replica if none has reported yet and one is up."""
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
    """FastAPI wrapped in ``Guard``, which must also see the replies to unhandled errors."""

    def __init__(self, guard: Callable[[ASGIApp], ASGIApp]) -> None:
        super().__init__(
            title="Tenfold",
            version=tenfold.__version__,
            description="Vision models over a plain protocol and the Open Inference Protocol v2.",
        )
        self._guard = guard

    def build_middleware_stack(self) -> ASGIApp:
        # Middleware added the usual way runs inside the one that replies with 500.
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
    """Build the ASGI application with its routes, limits and error replies.

    Args:
        table: The models.
        settings: The limits.
        keys: Accepted API keys; None: no key is needed.
        telemetry: Records finished requests.
        executor: Threads that decode images and large bodies.
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
        """List the served models."""
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
        """Predict one image: a file in a form, an image as the body, or JSON with base64 under ``image``.

        Models with a ``prompt_template`` (open vocabulary) accept classes with the request: names under ``classes``, or
        prompts for each under ``prompts``. Models with ``explains`` add, for ``explain=true``, an attribution map of
        the most probable class, or of ``explain_class``; with ``Accept: image/png`` the reply is its overlay.

        Models of the task ``regression`` take one example as JSON, values by input name under ``inputs``, or an image
        file if their input in ``/models`` has a ``max_value``. They reply with mean and std of every target, and with
        the interval that contains the target with probability ``level``. If the target is an image, ``Accept:
        image/png`` returns it, or its std.
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
        # The protocol signals "not ready" by a 4xx.
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
        """Run tensors, sent in JSON or as raw bytes (header ``Inference-Header-Content-Length``).

        Open-vocabulary models also list the inputs ``classes``, class names (BYTES ``[K]``), and ``prompts`` with the
        class of each prompt under ``prompt_classes`` (BYTES ``[P]`` both).

        Models that list the output ``attributions`` return maps if the request's parameters have ``"explain": true``,
        or its outputs name them: FP32 ``[N,S,S]`` in [0, 1], together with ``explained``, INT64 ``[N]``, the class of
        each map. ``"explain_class"`` selects that class, by name or index, as one value or a list with one for each
        image; the default is the class with the highest logit.

        Models of the task ``regression`` take the inputs of their metadata and return ``mean``, ``std`` and the parts
        of the std; ``"level": 0.9`` in the request's parameters adds ``lower`` and ``upper``.
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
        # The error goes to the server's log; its text may contain paths, which the client must not see.
        request_id = trace_of(request.scope).request_id
        message = f"an internal error; the server's log tells more under the request id {request_id}"
        return refuse(request.scope, RefusedError(500, message, "error"))
