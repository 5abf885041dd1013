"""Trace of one request (id, key, model, outcome), for the access log and the metrics."""

import json
import logging
import re
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from starlette.types import Scope

_SCOPE_KEY = "tenfold.trace"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

access_logger = logging.getLogger("tenfold.serve.access")
failure_logger = logging.getLogger("tenfold.serve")


@dataclass
class Trace:
    """Trace of one request, filled in while it is served."""

    request_id: str
    method: str
    path: str
    key_id: str | None = None
    model: str = ""
    """Name of a served model; unknown names are left out, so that clients can't flood the metrics."""
    version: str = ""
    num_images: int = 0
    """Number of images or other examples."""
    num_explained: int = 0
    """Number of these images with an attribution map."""
    status: int = 0
    reason: str = ""
    """One word, if the request was refused."""
    started: float = field(default_factory=time.perf_counter)

    @property
    def latency_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1000


class Telemetry(Protocol):
    """Sink of finished requests."""

    def record(self, trace: Trace) -> None: ...


def request_id_from(header: str | None) -> str:
    """Return the client's id if it is 1 to 128 letters, digits, dots, dashes, underscores; else a new one."""
    return header if header is not None and _REQUEST_ID.fullmatch(header) else str(uuid.uuid4())


def attach(scope: Scope, trace: Trace) -> None:
    scope[_SCOPE_KEY] = trace


def trace_of(scope: Scope) -> Trace:
    trace: Trace = scope[_SCOPE_KEY]
    return trace


def log_access(trace: Trace) -> None:
    """Write one line of JSON; never the image, the key or the body."""
    if not access_logger.isEnabledFor(logging.INFO):
        return
    record = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": trace.request_id,
        "key_id": trace.key_id,
        "method": trace.method,
        "path": trace.path,
        "model": trace.model,
        "version": trace.version,
        "images": trace.num_images,
        "explained": trace.num_explained,
        "status": trace.status,
        "reason": trace.reason,
        "latency_ms": round(trace.latency_ms, 3),
    }
    access_logger.info(json.dumps(record))


def log_to_stdout() -> None:
    """Send access lines, unformatted and unbuffered, to standard output, where containers expect them."""
    if not access_logger.handlers:
        # The original stream: Serve replaces sys.stdout by a buffer of its own log, which a crash loses.
        handler = logging.StreamHandler(sys.__stdout__ or sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False


def log_failure(request_id: str, error: Exception) -> None:
    """Log an error of ours with its traceback."""
    failure_logger.error("request %s failed", request_id, exc_info=error)
