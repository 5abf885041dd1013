"""Launch of a function of a ``Run``: in this process, or on Ray Train workers.

Ctrl-C (and SIGTERM) requests a checkpoint and a clean stop; a second one stops at once.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from tenfold.engine.progress import PROGRESS_FILE, FollowedProgress
from tenfold.engine.run import Interrupted, PlainRun, Recorder, Run, best_device
from tenfold.engine.settings import ScaleConfig
from tenfold.engine.storage import STOP_FILE, Storage, ray_storage

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options from which every worker builds its ``Run``; fields as there."""

    name: str
    """Name of the run, unique for its settings: launching it again resumes from its last checkpoint."""
    folder: str
    shared: str
    seed: int = 0
    deterministic: bool = True
    recorder: Recorder | None = None
    progress: bool = True


def launch(
    work: Callable[[Run, Any], Answer],
    settings: Any,
    scale: ScaleConfig,
    options: LaunchOptions,
    *,
    on_epoch: Callable[[dict[str, float], int], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> Answer:
    """Run ``work(run, settings)`` on every worker and return rank 0's answer.

    Args:
        work: Importable function, run on every worker.
        settings: Its second argument; plain values or dataclasses, since it is sent to the workers.
        scale: Placement and resources.
        options: Options of each worker's ``Run``.
        on_epoch: Called after each epoch with its metrics and number; in a plain process only (Ray workers are other
            processes, use ``callbacks`` there).
        callbacks: ``ray.train.UserCallback`` objects; on Ray only.

    Raises:
        Interrupted: The user asked to stop; a checkpoint was written.
        RuntimeError: The workers failed more often than ``scale.max_failures``.
    """
    if scale.kind == "plain":
        return _launch_plain(work, settings, scale, options, on_epoch)
    return _launch_ray(work, settings, scale, options, callbacks)


def _launch_plain(
    work: Callable[[Run, Any], Answer],
    settings: Any,
    scale: ScaleConfig,
    options: LaunchOptions,
    on_epoch: Callable[[dict[str, float], int], None] | None,
) -> Answer:
    stop = threading.Event()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(scale.cpus_per_worker)))
    run = PlainRun(stop=stop, device=best_device(), on_epoch=on_epoch, **_run_options(options))
    with _asked_to_stop(stop.set):
        try:
            return work(run, settings)
        finally:
            run.close()
            torch.set_num_threads(threads)


def _launch_ray(
    work: Callable[[Run, Any], Answer],
    settings: Any,
    scale: ScaleConfig,
    options: LaunchOptions,
    callbacks: Sequence[Any],
) -> Answer:
    import ray.train
    from ray.train.torch import TorchTrainer

    folder = Storage(options.folder)
    folder.remove(STOP_FILE)
    storage_path, filesystem = ray_storage(options.folder)
    resources = {"CPU": scale.cpus_per_worker}
    if scale.gpus_per_worker:
        resources["GPU"] = scale.gpus_per_worker
    trainer = TorchTrainer(
        _ray_worker,  # type: ignore[arg-type]  # a worker may return a value
        train_loop_config={"work": work, "settings": settings, "options": options, "cpus": scale.cpus_per_worker},
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers, use_gpu=scale.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=options.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    folder.remove(PROGRESS_FILE)
    progress = FollowedProgress(folder, shown=options.progress)
    with _asked_to_stop(lambda: folder.write_json(STOP_FILE, {})):
        try:
            # Ray installs its own Ctrl-C handler, which discards the work, only if fit runs in the main thread.
            result = _in_thread(trainer.fit, progress.look)
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"training failed on the workers: {error}") from error
        finally:
            progress.close()
            folder.remove(STOP_FILE)
    status, answer = result.return_value
    if status == "interrupted":
        raise Interrupted
    return answer


def _ray_worker(config: dict[str, Any]) -> tuple[str, Any]:
    """Entry point of every Ray worker."""
    from tenfold.engine.ray_run import RayRun

    torch.set_num_threads(max(1, int(config["cpus"])))
    run = RayRun(**_run_options(config["options"]))
    try:
        return "finished", config["work"](run, config["settings"])
    except Interrupted:
        return "interrupted", None
    finally:
        run.close()


def _run_options(options: LaunchOptions) -> dict[str, Any]:
    names = ("folder", "shared", "seed", "deterministic", "recorder", "progress")
    return {name: getattr(options, name) for name in names}


def _in_thread(call: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
    """Call in another thread and wait so that signals still reach this one; runs ``meanwhile`` twice a second.

    The thread is a daemon, so that a second Ctrl-C does not wait for it.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - re-raised in the waiting thread
            future.set_exception(error)

    threading.Thread(target=work, name="trainer", daemon=True).start()
    while not future.done():
        wait([future], timeout=0.5)
        meanwhile()
    return future.result()


@contextmanager
def _asked_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a stop request; the second has its usual effect.

    Signals reach only the main thread; in other threads (a Tune trial) nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, _frame: object) -> None:
        print("\nstopping: writing a checkpoint (once more to stop at once)", file=sys.stderr, flush=True)
        for each in numbers:
            signal.signal(each, before[each])
        ask()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
