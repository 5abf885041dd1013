"""Embedded data built in other processes: concurrently, and in a daemon, which may start no child process."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from tenfold.data.embedded.handwriting.build import build
from tenfold.data.embedded.handwriting.config import HandwritingConfig


def _fingerprint(cache: str) -> str:
    return build("letters", HandwritingConfig(num_train=300, cache=cache)).fingerprint


def _send_fingerprint(cache: str, connection: Connection) -> None:
    connection.send(_fingerprint(cache))


def test_two_processes_building_at_once_agree(tmp_path):
    cache = str(tmp_path)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(_fingerprint, [cache, cache])
    assert first == second
    names = sorted(path.name.rsplit("-", 1)[0] for path in Path(cache).iterdir())
    assert names == ["handwriting-letters"]


def test_builds_inside_a_daemonic_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_fingerprint, args=(str(tmp_path), sender), daemon=True)
    process.start()
    assert receiver.poll(120)
    assert receiver.recv() == _fingerprint(str(tmp_path))  # read from the cache that the daemon built
    process.join()
