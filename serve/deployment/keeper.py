"""The process that holds a local Ray while an endpoint runs, without torch; a child process does the rest and ends."""

import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from serve.deployment import running
from serve.deployment.haproxy import prepare_environment
from tenfold.engine import cluster

_STOPPED = 130


class Keeper:
    """The child's way to the process that started it."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    def start_ray(self, num_cpus: int | None) -> str:
        """Have it start a local Ray, and return the address.

        Raises:
            ConnectionError: If that process ended.
        """
        try:
            self._link.send(_WantsRay(num_cpus))
            address: str = self._link.recv()
        except (EOFError, BrokenPipeError) as error:
            raise ConnectionError("the process that starts Ray has ended") from error
        return address

    def hand_over(self, app_name: str, record: Path | None) -> None:
        """Have it keep the application until Ctrl-C, and then remove the file ``record``."""
        self._link.send(_Kept(app_name, record))


def keep(work: Callable[[Keeper, Sequence[str]], int], words: Sequence[str]) -> int:
    """Call ``work`` in a child process, and keep what it hands over until Ctrl-C or SIGTERM.

    Args:
        work: Function of a module; takes a ``Keeper`` and ``words``, returns an exit code.
        words: Its arguments.

    Returns:
        The exit code.
    """
    prepare_environment()  # before Ray and before the child, which inherits it
    cluster.set_environment()
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    child = processes.Process(target=_work, args=(there, work, list(words)), daemon=True)
    kept: _Kept | None = None
    started = False
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        child.start()
        there.close()
        while (asked := _next(here)) is not None:
            if isinstance(asked, _Kept):
                kept = asked
                continue
            started = True
            cluster.start(num_cpus=asked.num_cpus)
            signal.signal(signal.SIGTERM, _interrupt)  # Ray has set its own
            here.send(cluster.own_address())
        child.join()
        if kept is not None:
            wait_for_stop()
    except (KeyboardInterrupt, SystemExit):  # the latter from Ray, on a SIGTERM while it starts
        if kept is None:
            print("\nstopped before the models were ready", file=sys.stderr)
            return _STOPPED
    else:
        if kept is None:
            return child.exitcode if child.exitcode in (0, 1, 2) else 1
    finally:
        if child.is_alive():
            child.kill()  # a driver that is asked by SIGTERM prints a trace
            child.join()
        try:
            if kept is not None:
                _stop(kept)
        finally:
            if started:
                cluster.stop()  # Serve ends with it
    return 0


@dataclass(frozen=True)
class _WantsRay:
    num_cpus: int | None


@dataclass(frozen=True)
class _Kept:
    app_name: str
    record: Path | None


def _next(link: Connection) -> _WantsRay | _Kept | None:
    """Return what the child asks for; None: it has ended."""
    try:
        asked: _WantsRay | _Kept = link.recv()
    except EOFError:
        return None
    return asked


def _stop(kept: _Kept) -> None:
    print("\nstopping: running requests finish first", file=sys.stderr, flush=True)
    if kept.record is not None:
        running.remove(kept.record)
    cluster.start()  # joins the cluster at RAY_ADDRESS; nothing to do where Ray was started here
    _drain(kept.app_name)


def wait_for_stop() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()


def _drain(app_name: str) -> None:
    from ray import serve  # imported late: the process that waits needs no Serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.delete(app_name)


def _work(link: Connection, work: Callable[[Keeper, Sequence[str]], int], words: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to both; the other process ends this one
    sys.exit(work(Keeper(link), words))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
