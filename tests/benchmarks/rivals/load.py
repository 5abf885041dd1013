"""Load from ``wrk``, a compiled generator: one in Python would be slower than the servers."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 60
_SCRIPT = """
local file = assert(io.open(BODY, "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
for name, value in pairs(HEADERS) do wrk.headers[name] = value end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"replies": %d, "wrong_status": %d, "broken": %d, "us": %d, "p50_us": %d, "p99_us": %d}\\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Request:
    """One request, sent over and over."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Figures:
    """What the clients saw."""

    requests_per_s: float
    """Successful ones."""
    p50_ms: float
    p99_ms: float
    num_replies: int
    num_failed: int
    """Replies of another status than 2xx or 3xx, and requests without a reply."""


def check_generator() -> str:
    """Return the version of wrk; raise RuntimeError if it is missing."""
    path = shutil.which("wrk")
    if path is None:
        raise RuntimeError(
            "the load generator wrk is not on the PATH; install it with `apt-get install wrk` (Debian, Ubuntu), "
            "`dnf install wrk` (Fedora) or from https://github.com/wg/wrk"
        )
    # It prints its version above its help, with an exit code of 1.
    shown = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    return shown.stdout.partition(" Copyright")[0].strip()


def send(url: str, request: Request, folder: Path, num_clients: int, seconds: int) -> Figures:
    """Let ``num_clients`` persistent connections send ``request``, each as soon as its last reply has arrived.

    Args:
        url: Where to.
        request: What.
        folder: For the files that wrk reads.
        num_clients: Connections.
        seconds: How long.

    Raises:
        RuntimeError: If wrk fails, for example because nothing listens.
    """
    body, script = folder / "body", folder / "request.lua"
    body.write_bytes(request.body)
    headers = ", ".join(f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items())
    script.write_text(f"local BODY, HEADERS = {json.dumps(str(body))}, {{{headers}}}\n{_SCRIPT}")
    options = ["-t1", f"-c{num_clients}", f"-d{seconds}s", "--timeout", f"{_TIMEOUT_S}s", "-s", str(script)]
    ran = subprocess.run(["wrk", *options, url], capture_output=True, text=True, check=False)
    result = next((line for line in ran.stdout.splitlines() if line.startswith("RESULT ")), None)
    if ran.returncode or result is None:
        raise RuntimeError(f"wrk failed with code {ran.returncode}: {ran.stderr.strip() or ran.stdout.strip()}")
    seen = json.loads(result.removeprefix("RESULT "))
    return Figures(
        requests_per_s=(seen["replies"] - seen["wrong_status"]) / (seen["us"] / 1e6),
        p50_ms=seen["p50_us"] / 1000,
        p99_ms=seen["p99_us"] / 1000,
        num_replies=seen["replies"],
        num_failed=seen["wrong_status"] + seen["broken"],
    )
