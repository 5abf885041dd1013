"""ASGI middleware of every request: request id, API key and body size before, access log and metrics after."""

import json

from starlette.routing import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.contract import RefusedError
from serve.http.access_log import Telemetry, Trace, attach, log_access, request_id_from, trace_of
from serve.http.keys import Keys, presented_key
from serve.protocols.bodies import check_content_length, limited

REQUEST_ID_HEADER = b"x-request-id"
VERSION_HEADER = b"tenfold-model-version"
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: orchestrators probe them."""
_MAX_SENTENCE = 2000  # of a refusal, which may quote the client
_READ = (b"x-request-id", b"content-length", b"authorization", b"x-api-key")
Headers = dict[str, str]


async def send_reply(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole reply."""
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def refusal(scope: Scope, error: RefusedError) -> tuple[int, Headers, bytes]:
    """Status, headers and body of a refusal, which the request's trace remembers."""
    trace_of(scope).reason = error.reason
    # A sentence may quote half of a surrogate pair, which has no UTF-8.
    sentence = error.sentence[:_MAX_SENTENCE].encode("utf-8", "backslashreplace").decode()
    sentence += "..." if len(error.sentence) > _MAX_SENTENCE else ""
    body = json.dumps({"error": sentence}, ensure_ascii=False, separators=(",", ":")).encode()
    return error.status, {"content-type": "application/json", **error.headers}, body


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        keys: Accepted API keys; None: no key is needed.
        max_body_bytes: Limit of a request's body, declared or streamed.
        body_timeout_s: Time in which it must arrive.
        telemetry: Records finished requests.
        server_tells_id: Whether the server in front already copies the request's ``x-request-id`` to the reply.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        max_body_bytes: int,
        body_timeout_s: float,
        telemetry: Telemetry,
        server_tells_id: bool = False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._telemetry = telemetry
        self._server_tells_id = server_tells_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in _READ and name not in headers:
                headers[name] = str(value, "latin-1")
        presented_id = headers.get(REQUEST_ID_HEADER)
        trace = Trace(request_id_from(presented_id), scope["method"], scope["path"])
        attach(scope, trace)
        tells_id = not (self._server_tells_id and presented_id == trace.request_id)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                added = [(REQUEST_ID_HEADER, trace.request_id.encode())] if tells_id else []
                if trace.version:
                    added.append((VERSION_HEADER, trace.version.encode()))
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            try:
                self._check(get_route_path(scope), headers, trace)
            except RefusedError as error:
                await send_reply(tell, *refusal(scope, error))
            else:
                await self._app(scope, limited(receive, self._max_body_bytes, self._body_timeout_s), tell)
        finally:
            # Also for a request whose client disconnected: its status is still 0 and logged as 499.
            trace.status = trace.status or 499
            log_access(trace)
            self._telemetry.record(trace)

    def _check(self, path: str, headers: dict[bytes, str], trace: Trace) -> None:
        if self._keys is not None and path not in OPEN_PATHS:
            key = presented_key(headers.get(b"authorization", ""), headers.get(b"x-api-key"))
            trace.key_id = self._keys.identify(key) if key is not None else None
            if trace.key_id is None:
                what = "the API key is not known" if key is not None else "an API key is needed"
                raise RefusedError(
                    401,
                    f"{what}; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                    "key",
                    {"WWW-Authenticate": "Bearer"},
                )
        check_content_length(headers.get(b"content-length"), self._max_body_bytes)
