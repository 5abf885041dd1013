"""Record of the endpoint that runs on this machine, by which a second ``jobs/deploy.py`` finds it."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tenfold.files import write_atomically

_APP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ENVIRONMENT = ("RAY_AUTH_", "RAY_SERVE_", "TENFOLD_HAPROXY_")
_CONNECT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running endpoint and the process that holds its Ray."""

    pid: int
    started: str
    """Start time of the process, as the system tells it: a number of a process is used again."""
    machine: str
    address: str
    """Address of its Ray."""
    host: str
    port: int
    url: str
    models: dict[str, str]
    """Name of each model to its version."""
    environment: dict[str, str]
    """Variables that a process needs to join this Ray: its token, and how Serve was started."""

    def is_alive(self) -> bool:
        """Return whether the process runs on this machine and its Ray listens."""
        if self.machine != socket.gethostname() or start_time(self.pid) != self.started:
            return False
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
                return True
        except (OSError, ValueError):
            return False


def record_of(folder: Path | None, place: str, app_name: str) -> Path:
    """Path of the record of an application.

    Args:
        folder: Local folder of the runs; None if they are in an object store.
        place: URL of that store.
        app_name: Name of the application.

    Raises:
        ValueError: If the name can't be that of a file.
    """
    if not _APP_NAME.fullmatch(app_name):
        raise ValueError(f"serve.app_name must match {_APP_NAME.pattern}, got {app_name!r}")
    if folder is None:
        cache = Path(os.environ.get("TENFOLD_CACHE") or Path.home() / ".cache" / "tenfold").absolute()
        folder = cache / hashlib.sha256(place.encode()).hexdigest()[:16]
    return folder / "serve" / f"{app_name}.json"


@contextmanager
def locked(record: Path) -> Iterator[None]:
    """Let one process at a time start an endpoint or roll it over."""
    record.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(record.with_name(f".{record.stem}.lock"), mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting for another jobs/deploy.py, which is starting or rolling over this endpoint", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find(record: Path) -> Running | None:
    """Return the endpoint of a record; None, with a line that says why, if what it names no longer runs.

    Raises:
        ValueError: If the record belongs to somebody else: it says what to connect to.
    """
    try:
        with record.open("rb") as file:
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                raise ValueError(
                    f"{record} must belong to the user who deploys, got another owner; choose another storage or "
                    f"serve.app_name"
                )
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        told = Running(**json.loads(content))
    except (ValueError, TypeError):
        print(f"ignored {record}, which is no record of an endpoint", file=sys.stderr)
        return None
    if told.is_alive():
        return told
    print(f"ignored {record}: its process {told.pid} on {told.machine} no longer runs an endpoint", file=sys.stderr)
    return None


def write(record: Path, running: Running) -> None:
    """Write a record, which only its owner can read: it holds the token of the cluster."""
    content = json.dumps(asdict(running), indent=2, sort_keys=True).encode()

    def fill(path: Path) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)

    write_atomically(record, fill)


def remove(record: Path) -> None:
    """Remove the record of this process; another one's stays."""
    try:
        owner = json.loads(record.read_bytes()).get("pid")
    except (OSError, ValueError, AttributeError):
        return
    if owner == os.getpid():
        record.unlink(missing_ok=True)


def joining_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Select the variables that a process needs to join the Ray of this one."""
    return {name: value for name, value in environment.items() if name.startswith(_ENVIRONMENT)}


def adopt_environment(running: Running) -> None:
    """Take the variables of the process that holds Ray; call it before Ray is imported."""
    for name in joining_environment(os.environ):
        del os.environ[name]
    os.environ.update(joining_environment(running.environment))


def start_time(pid: int) -> str | None:
    """Return the start time of a process, as the system tells it; None if there is none."""
    if sys.platform.startswith("linux"):
        try:
            told = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        state, *numbers = told.rpartition(")")[2].split()
        return None if state == "Z" else numbers[18]  # field 22, counted after the name
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() or None
