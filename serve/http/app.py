"""HTTP application: both protocols over a desk of models. Independent of Ray.

The two routes that models are asked by are plain ASGI, ahead of FastAPI, which keeps the documented slow routes and
the OpenAPI page.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

import tenfold
from serve.contract import Call, Description, Kind, RefusedError, Sent
from serve.http.access_log import Telemetry, Trace, log_failure, trace_of
from serve.http.desk import Desk, num_bytes
from serve.http.keys import Keys
from serve.http.middleware import Guard, Headers, refusal, send_reply
from serve.http.openapi import NOT_READY, REFUSALS, ModelList, document, summary
from serve.protocols import plain, v2
from serve.protocols.bodies import header, number_of, read_body
from tenfold.data.images import count_pixels
from tenfold.tasks import ATTRIBUTIONS

KindOf = Callable[[str], Kind]
Reply = tuple[int, Headers, bytes]
_PREDICT = re.compile(r"/predict/([^/]+)")
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class App:
    """ASGI application.

    Args:
        desk: The models.
        kind_of: The module of a kind, by its name.
        words: Words of the query by kind.
        keys: Accepted API keys; None: no key is needed.
        telemetry: Records finished requests.
        server_tells_id: See ``Guard``.
    """

    def __init__(
        self,
        desk: Desk,
        kind_of: KindOf,
        words: dict[str, tuple[str, ...]],
        keys: Keys | None,
        telemetry: Telemetry,
        *,
        server_tells_id: bool = False,
    ) -> None:
        self._hot = HotRoutes(desk, kind_of, words)
        slow = slow_routes(desk, kind_of)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            answer = self._hot.handler(scope) if scope["type"] == "http" else None
            if answer is None:
                await slow(scope, receive, send)
                return
            status, headers, body = await answer(scope, receive)
            if status:
                await send_reply(send, status, headers, body)

        self._app: ASGIApp = Guard(
            route, keys, desk.settings.max_body_bytes, desk.settings.body_timeout_s, telemetry, server_tells_id
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class HotRoutes:
    """``POST /predict/MODEL`` and ``POST /v2/models/MODEL[/versions/VERSION]/infer``."""

    def __init__(self, desk: Desk, kind_of: KindOf, words: dict[str, tuple[str, ...]]) -> None:
        self._desk = desk
        self._kind_of = kind_of
        self._words = {word: kind for kind, own in words.items() for word in own}

    def handler(self, scope: Scope) -> Callable[[Scope, Receive], Awaitable[Reply]] | None:
        """The function that answers a request; None where FastAPI does."""
        path = get_route_path(scope)
        if match := _INFER.fullmatch(path):
            name, version = match[1], match[2]

            async def infer(scope: Scope, receive: Receive) -> Reply:
                return await self._infer(scope, receive, name, version)

            return self._caught(infer, scope)
        if match := _PREDICT.fullmatch(path):
            name = match[1]

            async def predict(scope: Scope, receive: Receive) -> Reply:
                return await self._predict(scope, receive, name)

            return self._caught(predict, scope)
        return None

    def _caught(
        self, function: Callable[[Scope, Receive], Awaitable[Reply]], scope: Scope
    ) -> Callable[[Scope, Receive], Awaitable[Reply]]:
        """Wrap a route so that refusals and errors become replies."""

        async def answer(scope: Scope, receive: Receive) -> Reply:
            try:
                if scope["method"] != "POST":
                    raise RefusedError(405, "Method Not Allowed", "method", {"Allow": "POST"})
                return await function(scope, receive)
            except RefusedError as error:
                if error.status == 499:
                    return 0, {}, b""
                return refusal(scope, error)
            except RecursionError:  # JSON that can just be parsed may be too deep to be quoted
                return refusal(scope, RefusedError(400, "the request is nested too deeply", "malformed"))
            except Exception as error:  # noqa: BLE001 - its text may contain paths, which the client must not see
                return refusal(scope, failure(scope, error))

        return answer

    async def _infer(self, scope: Scope, receive: Receive, name: str, version: str | None) -> Reply:
        desk = self._desk
        trace = begin(desk, scope, name, version)
        check_encoding(scope)
        body = await read_body(receive)
        json_length = header(scope, b"inference-header-content-length")
        # Raw numbers are only looked at; it is JSON and texts that take time.
        brings_texts = any(slot.dtype == "text" for slot in desk.description(name).signature.inputs)
        size = len(body) if json_length is None or brings_texts else number_of(json_length) or 0
        form: v2.ReplyForm | None = None

        async def make_call(description: Description) -> Call:
            nonlocal form
            kind = self._kind_of(description.signature.kind)
            call, form = await desk.run(size, v2.decode, body, json_length, kind, description, desk.settings)
            trace.num_images = description.signature.num_examples(call.inputs)
            return call

        answer, description, call = await desk.ask(name, version, make_call)
        assert form is not None
        trace.version = answer.version
        trace.num_explained = trace.num_images if ATTRIBUTIONS in answer.outputs else 0
        in_text = sum(values.nbytes for output, values in answer.outputs.items() if form.in_text(output))
        content, headers = await desk.run(in_text, v2.encode, form, call, description, answer, desk.settings)
        return 200, headers, content

    async def _predict(self, scope: Scope, receive: Receive, name: str) -> Reply:
        desk = self._desk
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
        if query:
            known = desk.description(name)
            plain.query_of(query, self._kind_of(known.signature.kind), known, self._words)
        trace = begin(desk, scope, name)
        check_encoding(scope)
        body = await read_body(receive)
        description = await desk.known(name)
        kind = self._kind_of(description.signature.kind)
        sent = await plain.read(scope, body, query, kind, desk.settings, desk.run)
        pixels = count_pixels(sent.file) if sent.file is not None else 0
        trace.num_images = 1

        async def make_call(description: Description) -> Call:
            reader = self._kind_of(description.signature.kind)
            return await desk.decode(pixels, len(body), reader.read, sent, description, desk.settings)

        answer, description, call = await desk.ask(name, None, make_call)
        trace.version = answer.version
        trace.num_explained = int(ATTRIBUTIONS in answer.outputs)
        kind = self._kind_of(description.signature.kind)
        size = num_bytes(answer) + (10 * pixels if "image/" in sent.accept else 0)

        def show(sent: Sent) -> tuple[bytes, Headers]:
            shown = kind.show(answer, call, description, sent, desk.settings)
            return plain.reply(shown, answer, description, trace.request_id)

        content, headers = await desk.run(size, show, sent)
        return 200, headers, content


def begin(desk: Desk, scope: Scope, name: str, version: str | None = None) -> Trace:
    """Start the trace of a request; refuse an unknown model before its body is read."""
    description = desk.description(name, version)
    trace = trace_of(scope)
    trace.model, trace.version = name, description.version
    return trace


def check_encoding(scope: Scope) -> None:
    """Raise ``RefusedError`` (415) for a compressed body."""
    if encoding := header(scope, b"content-encoding"):
        raise RefusedError(415, f"the content encoding {encoding} is not accepted; send it plain", "content_type")


def failure(scope: Scope, error: Exception) -> RefusedError:
    """A reply (500) to an error of ours, which goes to the server's log."""
    request_id = trace_of(scope).request_id
    log_failure(request_id, error)
    return RefusedError(
        500, f"an internal error; the server's log tells more under the request id {request_id}", "error"
    )


def slow_routes(desk: Desk, kind_of: KindOf) -> FastAPI:
    """Build the routes that describe: models, metadata, health, OpenAPI."""
    app = FastAPI(
        title="Tenfold",
        version=tenfold.__version__,
        description="Vision models over a plain protocol and the Open Inference Protocol v2.",
    )
    described = app.openapi

    def openapi() -> dict[str, Any]:
        app.openapi_schema = None  # models change
        return document(described(), [desk.description(name) for name in desk.names()], kind_of)

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/models", response_model=ModelList, tags=["plain"])
    async def list_models() -> ModelList:
        """List the served models."""
        descriptions = await asyncio.gather(*(desk.last_seen(name) for name in desk.names()))
        return ModelList(models=[summary(one) for one in descriptions])

    @app.get("/v2", tags=["v2"])
    async def server_metadata() -> dict[str, Any]:
        return {"name": "tenfold", "version": tenfold.__version__, "extensions": list(v2.EXTENSIONS)}

    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses={400: {"description": "A model is not ready."}}, tags=["v2"])
    async def ready() -> JSONResponse:
        is_ready = all(desk.is_ready(name) for name in desk.names())
        # The protocol signals "not ready" by a 4xx.
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 400)

    @app.get("/v2/models/{model}", responses=REFUSALS, tags=["v2"])
    async def model_metadata(request: Request, model: str) -> dict[str, Any]:
        return await metadata(request, model)

    @app.get("/v2/models/{model}/versions/{version}", responses=REFUSALS, tags=["v2"])
    async def version_metadata(request: Request, model: str, version: str) -> dict[str, Any]:
        return await metadata(request, model, version)

    async def metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
        trace = begin(desk, request.scope, model, version)
        description = await desk.known(model)
        trace.version = description.version
        return v2.model_metadata(description)

    @app.get("/v2/models/{model}/ready", responses=NOT_READY, tags=["v2"])
    async def model_ready(request: Request, model: str) -> JSONResponse:
        return readiness(request, model)

    @app.get("/v2/models/{model}/versions/{version}/ready", responses=NOT_READY, tags=["v2"])
    async def version_ready(request: Request, model: str, version: str) -> JSONResponse:
        return readiness(request, model, version)

    def readiness(request: Request, model: str, version: str | None = None) -> JSONResponse:
        begin(desk, request.scope, model, version)
        is_ready = desk.is_ready(model)
        return JSONResponse({"name": model, "ready": is_ready}, 200 if is_ready else 400)

    def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            reason = {404: "unknown_path", 405: "method"}.get(error.status_code, "malformed")
            error = RefusedError(error.status_code, str(error.detail), reason, error.headers)
        elif not isinstance(error, RefusedError):
            error = failure(request.scope, error)
        status, headers, body = refusal(request.scope, error)
        return Response(body, status, headers)

    for kind in (RefusedError, HTTPException, 500):
        app.add_exception_handler(kind, refused)
    return app
