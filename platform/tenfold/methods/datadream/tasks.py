"""Independent tasks, divided among the workers, interruptible between two, and done by one run at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tenfold.engine.run import Interrupted, PlainRun, Run

Task = TypeVar("Task")
POLL_S = 1.0
"""Seconds between two attempts to take a lock."""


def each_task(run: Run, tasks: Sequence[Task], work: Callable[[Task], None], description: str) -> None:
    """Do every task once, task i on worker i mod W; every worker must call it with the same tasks.

    Unlike ``Run.map`` it stops between two rounds when the user asks to; output of a task in an open stage is uploaded
    after each task.

    Raises:
        Interrupted: The user asked to stop and tasks are left.
    """
    rounds = range(0, len(tasks), run.world_size)
    bar = run.progress(len(rounds), description)
    for start in rounds:
        if run.share(run.stop_requested()):
            bar.close()
            raise Interrupted
        if start + run.rank < len(tasks):
            work(tasks[start + run.rank])
            run.synchronise_stages()
        bar.update()
    bar.close()
    run.barrier()


@contextmanager
def alone(run: Run, name: str) -> Iterator[None]:
    """Lock a name in the shared storage, so that one of several concurrent runs does the work and the others wait.

    Nothing is locked in an object store; two runs then do the same work twice, with the same result.

    Args:
        run: The machine; every worker must enter.
        name: A plain file name.

    Raises:
        Interrupted: The user asked to stop while another run held the lock.
    """
    if not run.shared.is_local:
        yield
        return
    folder = run.shared.local_path() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    while not run.share(_acquire(lock) if run.is_main else False):
        if run.share(run.stop_requested()):
            raise Interrupted
    try:
        yield
    finally:
        if run.is_main:
            lock.release()


class TaskRun(PlainRun):
    """A plain run inside a task of an outer run, with its own seed and checkpoints, the same device and no recorder.

    It stops within a task only if the outer run is one process, since workers must leave a stage together.
    """

    def __init__(self, outer: Run, name: str, **options: Any) -> None:
        super().__init__(folder=(outer.storage / name).url, device=outer.device, progress=False, **options)
        self._outer = outer

    def stop_requested(self) -> bool:
        return self._outer.world_size == 1 and self._outer.stop_requested()


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=POLL_S)
    except Timeout:
        return False
    return True
