"""Work cut into independent tasks: shared out over the workers, stoppable between two, done by one run at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tenfold.engine.run import Interrupted, PlainRun, Run

Task = TypeVar("Task")
POLL_S = 1.0


def each_task(run: Run, tasks: Sequence[Task], work: Callable[[Task], None], description: str) -> None:
    """Do every task once, task i on worker i mod W; every worker must call it with the same tasks.

    Unlike ``Run.map`` it stops between two rounds where the user asks to; what tasks wrote into an open stage is
    sent to its store after each of them.

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
    """Hold a name in the shared storage: of several runs at once that need the same thing, one makes it, others wait.

    Where the storage is no disk nothing is held; two runs then do the same work twice, with the same outcome.

    Args:
        run: The machine; every worker must come here.
        name: A plain file name.

    Raises:
        Interrupted: The user asked to stop while another run held it.
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
    """A plain run inside one task of a larger run: its own seed and checkpoints, the same device, no records.

    It stops in mid-task only where the larger run is one process: workers must leave a stage together.
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
