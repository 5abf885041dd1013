"""Start of HAProxy with a hardened configuration: Ray's own has no limits for slow clients, and no setting for them.

Ray runs this file in place of HAProxy, at every reload: ``python -I -S haproxy_wrapper.py -db -f haproxy.cfg ...``. It
rewrites the configuration in place, so that Ray still recognises its processes by their arguments, and becomes HAProxy.
Only builtin modules are imported, for a start within tens of milliseconds.
"""

import os
import sys

TYPE_CHECKING = False  # typing takes longer to import than all of this to run
if TYPE_CHECKING:
    from collections.abc import Callable

BINARY = "TENFOLD_HAPROXY_BINARY"
"""Environment variable: path of HAProxy itself."""
REQUEST_TIMEOUT = "TENFOLD_HAPROXY_REQUEST_TIMEOUT_S"
"""Environment variable: seconds that a client has for the headers of a request and the first 16 KiB of its body."""
HOST_FILE = "TENFOLD_HAPROXY_HOST_FILE"
"""Environment variable: file with the host to listen on; without it, the host that Serve was started with."""

DEFAULT_REQUEST_TIMEOUT_S = 10
KEEP_ALIVE_S = 30
SHARE_OF_ONE_CLIENT = 0.75
"""Share of all connections that one address may hold."""
MARK = "# Rewritten by Tenfold"

_REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
_LISTENERS = ("frontend prometheus", "frontend http_frontend", "frontend grpc_frontend", "listen stats")
_ERRORS = {
    400: "the request is malformed",
    403: "the request is not allowed",
    408: "the request must arrive within {timeout_s:g} s",
    413: "the request is too large",
    429: "too many requests; try again later",
    500: "internal error of the proxy",
    501: "the request needs what the proxy does not implement",
    502: "the service broke off while it answered; try again",
    503: "the service is not ready; try again",
    504: "the service did not answer in time",
}


def rewrite(text: str, request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S, host: str | None = None) -> str:
    """Rewrite the configuration that Ray generated; a rewritten one is returned as it is.

    Args:
        text: Ray's configuration.
        request_timeout_s: Time for the headers of a request and the first 16 KiB of its body.
        host: Host to listen on; None: as Ray wrote.

    Raises:
        ValueError: If the configuration is not as in Ray 2.60.
    """
    if text.startswith(MARK):
        return text
    config = _Configuration(text)
    config.check_listeners()
    config.replace("global", "stats socket ", lambda line: [_swapped(line, " mode 666 ", " mode 600 ")])
    max_connections = 0

    def read_max(line: str) -> list[str]:
        nonlocal max_connections
        max_connections = int(line.split()[1])
        return [line]

    config.replace("global", "maxconn ", read_max)
    for status in (502, 503, 504):
        config.replace("defaults", f"errorfile {status} ", lambda _line: [])
    config.append(
        "defaults",
        [
            f"timeout http-request {round(1000 * request_timeout_s)}ms",
            f"timeout http-keep-alive {KEEP_ALIVE_S}s",
            # Bodies come under the timeout as well, as far as one buffer reaches.
            "option http-buffer-request",
            *(_error(status, sentence, request_timeout_s) for status, sentence in _ERRORS.items()),
        ],
    )
    config.replace("frontend prometheus", "bind ", lambda line: [_swapped(line, "bind :", "bind 127.0.0.1:")])
    config.replace("listen stats", "bind ", lambda line: [_swapped(line, "bind *:", "bind 127.0.0.1:")])
    most = max(1, int(SHARE_OF_ONE_CLIENT * max_connections))

    def frontend(line: str) -> list[str]:
        port = line.rpartition(":")[2]
        if not port.isdigit():
            raise _changed("a line 'bind HOST:PORT'", repr(line.strip()))
        return [
            f"    bind {host}:{port}" if host else line,
            "    stick-table type ipv6 size 100k expire 1m store conn_cur",
            "    tcp-request connection track-sc0 src",
            f"    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}",
            # Serve repeats the first id whatever it holds, beside the one of the application.
            "    http-request del-header x-request-id if { req.hdr_cnt(x-request-id) gt 1 }",
            f"    http-request del-header x-request-id if !{{ req.hdr(x-request-id) -m reg {_REQUEST_ID} }}",
        ]

    config.replace("frontend http_frontend", "bind ", frontend)
    missing = """string '{"error": "no application has this path; those of /-/routes are served"}'"""
    config.replace(
        "backend default_backend",
        "http-request return status 404 content-type text/plain ",
        lambda _line: [f"    http-request return status 404 content-type application/json {missing}"],
    )
    return f"{MARK}: limits, loopback, JSON errors.\n{config.text()}"


class _Configuration:
    """Sections of a configuration in their order, each a list of lines below its title."""

    def __init__(self, text: str) -> None:
        self._sections: list[tuple[str, list[str]]] = [("", [])]
        for line in text.splitlines():
            if line and not line[0].isspace() and not line.startswith("#"):
                self._sections.append((line.strip(), []))
            else:
                self._sections[-1][1].append(line)

    def text(self) -> str:
        lines = [line for title, body in self._sections for line in ([title] if title else []) + body]
        return "\n".join(lines) + "\n"

    def check_listeners(self) -> None:
        """Raise ValueError if anything listens that Ray 2.60 does not have."""
        for title, body in self._sections:
            if title not in _LISTENERS and any(line.split()[:1] == ["bind"] for line in body):
                raise _changed(f"no listeners but {', '.join(_LISTENERS)}", f"{title!r} as well")

    def append(self, title: str, lines: list[str]) -> None:
        self._section(title).extend(f"    {line}" for line in lines)

    def replace(self, title: str, start: str, change: "Callable[[str], list[str]]") -> None:
        """Replace the one line of a section that begins with ``start``, leading blanks aside."""
        body = self._section(title)
        found = [number for number, line in enumerate(body) if line.lstrip().startswith(start)]
        if len(found) != 1:
            raise _changed(f"one line {start.strip()!r} in section {title!r}", f"{len(found)} of them")
        body[found[0] : found[0] + 1] = change(body[found[0]])

    def _section(self, title: str) -> list[str]:
        found = [body for name, body in self._sections if name == title]
        if len(found) != 1:
            raise _changed(f"one section {title!r}", f"{len(found)} of them")
        return found[0]


def _swapped(line: str, old: str, new: str) -> str:
    if line.count(old) != 1:
        raise _changed(f"{old.strip()!r} in its line", repr(line.strip()))
    return line.replace(old, new)


def _error(status: int, sentence: str, timeout_s: float) -> str:
    retry = " hdr Retry-After 1" if status == 503 else ""
    told = '{"error": "' + sentence.format(timeout_s=timeout_s) + '"}'
    return f"http-error status {status} content-type application/json string '{told}'{retry}"


def _changed(expected: str, got: str) -> ValueError:
    return ValueError(
        f"Ray's HAProxy configuration must have {expected}, got {got}; adapt serve/deployment/haproxy_wrapper.py "
        f"to this release of Ray, or set RAY_SERVE_HAPROXY_BINARY_PATH to HAProxy itself and do without its limits"
    )


def request_timeout_s() -> float:
    """Read the request timeout from the environment.

    Raises:
        ValueError: If it is not a number from 0.1 to 3600.
    """
    told = os.environ.get(REQUEST_TIMEOUT, str(DEFAULT_REQUEST_TIMEOUT_S))
    try:
        timeout_s = float(told)
    except ValueError:
        timeout_s = 0.0
    if not 0.1 <= timeout_s <= 3600:
        raise ValueError(f"{REQUEST_TIMEOUT} must be seconds in 0.1..3600, got {told!r}")
    return timeout_s


def rewrite_file(path: str) -> None:
    """Rewrite a configuration file in place, in one step."""
    host = None
    if named := os.environ.get(HOST_FILE):
        try:
            with open(named, encoding="utf-8") as file:
                host = file.read().strip()
        except FileNotFoundError:
            pass
    with open(path, encoding="utf-8") as file:
        text = file.read()
    rewritten = rewrite(text, request_timeout_s(), host)
    if rewritten != text:
        with open(f"{path}.rewritten", "w", encoding="utf-8") as file:
            file.write(rewritten)
        os.replace(f"{path}.rewritten", path)


def main(arguments: list[str]) -> None:
    """Rewrite the file after ``-f``, if there is one, and become HAProxy with the same arguments and process id."""
    try:
        binary = os.environ.get(BINARY)
        if not binary:
            raise ValueError(f"{BINARY} must be the path of HAProxy, got none; see serve/deployment/haproxy.py")
        for position, argument in enumerate(arguments[:-1]):
            if argument == "-f":
                rewrite_file(arguments[position + 1])
        os.execv(binary, [binary, *arguments])  # noqa: S606
    except (OSError, ValueError) as error:
        sys.exit(f"HAProxy was not started: {error}")  # Ray repeats it in its own error


if __name__ == "__main__":
    main(sys.argv[1:])
