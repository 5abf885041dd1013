"""Training loop on Ray Train workers: bit-identical results after a killed worker and a stop."""

import time
from pathlib import Path
from typing import Any

import pytest

from tenfold.engine.fit import Clock, FitPlan
from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.ray_run import STOP_POLL_S
from tenfold.engine.run import Interrupted, Run
from tenfold.engine.settings import ScaleConfig
from tenfold.engine.storage import STOP_FILE, Storage
from tenfold.types import Batch
from tests.engine import toy

pytestmark = [pytest.mark.ray, pytest.mark.e2e]
PLAN = FitPlan(num_epochs=4, monitor="val/mse", mode="min", checkpoint_every_steps=3)


def work(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    counting = toy.Counting()
    hooks: dict[str, Any] = {}
    if "die" in settings and run.rank == run.world_size - 1:
        hooks = {"after_step": toy.die_once(Path(settings["die"]), step=5)}
    if "stop" in settings and run.is_main:
        hooks = {"after_step": ask_to_stop(run, step=11)}
    result = toy.train(run, PLAN, counting.objective(**hooks))
    seen = [sum(counts) for counts in zip(*run.share_all(counting.seen.tolist()), strict=True)]
    return {"weights": toy.weights(result.model), "history": result.history, "seen": seen}


def ask_to_stop(run: Run, step: int) -> Any:
    """Return an ``after_step`` that writes the driver's stop file and waits until the loop polls it again."""

    def after_step(batch: Batch, clock: Clock) -> None:
        if clock.step == step:
            run.storage.write_json(STOP_FILE, {})
            time.sleep(STOP_POLL_S)

    return after_step


def run_on_ray(folder: Path, workers: int, **settings: Any) -> dict[str, Any]:
    scale = ScaleConfig(workers=workers, cpus_per_worker=1.0, storage=str(folder))
    name = f"toy-{folder.name}"
    options = LaunchOptions(name=name, folder=str(folder / name), shared=str(folder), seed=3, progress=False)
    return launch(work, settings, scale, options)


def test_a_killed_worker_and_a_stop_change_no_bit(ray_cluster, tmp_path):
    whole = run_on_ray(tmp_path / "whole", 2)
    assert all(count >= 4 for count in whole["seen"])

    marker = tmp_path / "died"
    with pytest.raises(Interrupted):  # killed at step 5, stopped at step 11
        run_on_ray(tmp_path / "cut", 2, die=str(marker), stop=True)
    assert marker.exists()
    assert not (Storage(tmp_path / "cut/toy-cut")).exists(STOP_FILE)
    assert run_on_ray(tmp_path / "cut", 2) == whole
