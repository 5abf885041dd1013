"""Processes of a server under test: started, counted and ended together. Linux only."""

import ctypes
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOP_S, _TERMINATE_S, _KILL_S = 40.0, 5.0, 5.0
_POLL_S = 0.1
_LOG_TAIL = 3000

ROLES = {
    "ingress": r"ServeReplica:\S*:ingress",
    "replica": r"ServeReplica:",
    "proxy": r"haproxy|HAProxy|ProxyActor",
    "controller": r"ServeController",
    "core": r"gcs_server|/raylet/raylet",
    "agents": r"/_private/|[Dd]ashboard|RuntimeEnvAgent|ray::IDLE",
}
"""Role of a process to the pattern of its command line; the first match counts, "server" is the rest."""

Ticks = Mapping[tuple[int, int], tuple[str, int]]
"""Process id and start to role and processor time in ticks."""


class ServerError(RuntimeError):
    """A server that did not start, or replied something else than the others."""


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    started: int
    ticks: int
    is_zombie: bool


def adopt_orphans() -> None:
    """Let this process inherit the descendants whose parents end, so that none is lost to init."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def wait_for_stop() -> None:
    """Wait for SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        signal.pause()


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, is_ready: Callable[[], bool], timeout_s: float
) -> Iterator[float]:
    """Start a server, wait until it is ready, and end it with all of its processes.

    Args:
        command: The server.
        environment: Its whole environment.
        log: File for its output.
        is_ready: Whether it replies; OSError counts as no.
        timeout_s: Time that it has for that.

    Yields:
        Seconds from the command to the first reply.

    Raises:
        ServerError: If it ended or was not ready in time, with the end of its log.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal reaches the benchmark alone, which then ends the server.
        server = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while not _replies(is_ready):
            is_late = time.monotonic() - started > timeout_s
            if is_late or server.poll() is not None:
                what = f"was not ready after {timeout_s:g} s" if is_late else f"ended with code {server.returncode}"
                raise ServerError(f"{' '.join(command)} {what}:\n{log.read_text(errors='replace')[-_LOG_TAIL:]}")
            time.sleep(_POLL_S)
        yield time.monotonic() - started
    finally:
        _stop(server)


def _replies(is_ready: Callable[[], bool]) -> bool:
    try:
        return is_ready()
    except OSError:
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end whatever is left; another Ctrl-C does not interrupt it."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_S)
        for number, limit_s in ((signal.SIGTERM, _TERMINATE_S), (signal.SIGKILL, _KILL_S)):
            deadline = time.monotonic() + limit_s
            for process in _descendants():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            while _descendants() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        server.poll()
    finally:
        signal.signal(signal.SIGINT, earlier)


def processor_ticks() -> Ticks:
    """Processor time so far of every living process that was started from here, user and system."""
    return {(one.pid, one.started): (_role(one.pid), one.ticks) for one in _descendants()}


def processor_s(before: Ticks, after: Ticks) -> dict[str, float]:
    """Processor seconds between two readings by role."""
    spent: dict[str, float] = {}
    for key, (role, ticks) in after.items():
        earlier = before[key][1] if key in before else 0
        spent[role] = spent.get(role, 0.0) + (ticks - earlier) / _TICKS_PER_S
    return spent


def machine_s() -> float:
    """Processor seconds of the whole machine since it started, those that its host took away included."""
    numbers = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    idle, waiting = 3, 4
    return sum(int(number) for index, number in enumerate(numbers) if index not in (idle, waiting)) / _TICKS_PER_S


def ended_s() -> float:
    """Processor seconds of the ended and waited-for children of this process, such as load generators."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_mib() -> dict[str, float]:
    """Resident memory by role: proportional set sizes, which count a shared page once over all processes."""
    sizes: dict[str, float] = {}
    for process in _descendants():
        with suppress(OSError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            role = _role(process.pid)
            sizes[role] = sizes.get(role, 0.0) + (int(match[1]) / 1024 if match else 0.0)
    return sizes


def _descendants() -> list[_Process]:
    """Living descendants of this process; dead ones that it inherited are reaped."""
    everyone = [process for entry in Path("/proc").iterdir() if entry.name.isdigit() for process in _read(entry)]
    children: dict[int, list[_Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    found: list[_Process] = []
    waiting = list(children.get(os.getpid(), []))
    while waiting:
        process = waiting.pop()
        if process.is_zombie:
            if process.parent == os.getpid():
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
            continue
        found.append(process)
        waiting += children.get(process.pid, [])
    return found


def _read(entry: Path) -> list[_Process]:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended in between
        return []
    state, parent, ticks, started = fields[0], int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19])
    return [_Process(int(entry.name), parent, started, ticks, state in "ZX")]


def _role(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "server"
    return next((role for role, pattern in ROLES.items() if re.search(pattern, line)), "server")
