"""ASGI middleware of every request: request id, API key and body size before, access log and metrics after."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import Keys, presented_key
from serve.limits import RefusedError, check_content_length, limited
from serve.trace import (
    REQUEST_ID_HEADER,
    VERSION_HEADER,
    Telemetry,
    Trace,
    attach,
    log_access,
    request_id_from,
    trace_of,
)

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: orchestrators probe them."""


def refuse(scope: Scope, error: RefusedError) -> JSONResponse:
    """Build the reply of a refusal."""
    trace_of(scope).reason = error.reason
    return JSONResponse({"error": error.message}, error.status, headers=error.headers)


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        keys: Accepted API keys; None: no key is needed.
        max_body_bytes: Limit of a request's body, declared or streamed.
        telemetry: Records finished requests.
        server_tells_id: Whether the server in front already copies the request's ``x-request-id`` to the reply.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys | None, max_body_bytes: int, telemetry: Telemetry, server_tells_id: bool = False
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._telemetry = telemetry
        self._server_tells_id = server_tells_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        presented_id = headers.get(REQUEST_ID_HEADER)
        trace = Trace(request_id_from(presented_id), scope["method"], scope["path"])
        attach(scope, trace)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                reply_headers = MutableHeaders(scope=message)
                if not (self._server_tells_id and presented_id == trace.request_id):
                    reply_headers[REQUEST_ID_HEADER] = trace.request_id
                if trace.version:
                    reply_headers[VERSION_HEADER] = trace.version
            await send(message)

        try:
            try:
                self._check(scope["path"], headers, trace)
            except RefusedError as error:
                await refuse(scope, error)(scope, receive, tell)
            else:
                await self._app(scope, limited(receive, self._max_body_bytes), tell)
        finally:
            # Also for a request whose client disconnected: its status is still 0 and logged as 499.
            trace.status = trace.status or 499
            log_access(trace)
            self._telemetry.record(trace)

    def _check(self, path: str, headers: Headers, trace: Trace) -> None:
        if self._keys is not None and path not in OPEN_PATHS:
            key = presented_key(headers)
            trace.key_id = self._keys.identify(key) if key is not None else None
            if trace.key_id is None:
                what = "the API key is not known" if key is not None else "an API key is needed"
                raise RefusedError(
                    401,
                    f"{what}; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                    "key",
                    {"WWW-Authenticate": "Bearer"},
                )
        check_content_length(headers, self._max_body_bytes)
