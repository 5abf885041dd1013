"""The loop on workers of Ray Train: the same numbers, through a killed worker and a stop, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from tenfold.engine.fit import FitPlan
from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.run import Interrupted, Run
from tenfold.engine.settings import ScaleConfig
from tenfold.engine.storage import STOP_FILE, Storage
from tests.engine import toy

pytestmark = pytest.mark.ray
PLAN = FitPlan(num_epochs=4, monitor="val/mse", mode="min", checkpoint_every_steps=3)


def work(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    counting = toy.Counting()
    hooks: dict[str, Any] = {}
    if "die" in settings and run.rank == run.world_size - 1:
        hooks = {"after_step": toy.die_once(Path(settings["die"]), step=11)}
    if "stop" in settings and run.is_main:
        hooks = {"after_step": lambda batch, clock: run.storage.write_json(STOP_FILE, {}) if clock.step == 9 else None}
    result = toy.train(run, PLAN, counting.objective(**hooks))
    seen = [sum(counts) for counts in zip(*run.share_all(counting.seen.tolist()), strict=True)]
    return {"weights": toy.weights(result.model), "history": result.history, "seen": seen}


def run_on_ray(folder: Path, workers: int, **settings: Any) -> dict[str, Any]:
    scale = ScaleConfig(workers=workers, cpus_per_worker=1.0, storage=str(folder))
    name = f"toy-{folder.name}"
    options = LaunchOptions(name=name, folder=str(folder / name), shared=str(folder), seed=3, progress=False)
    return launch(work, settings, scale, options)


def test_a_worker_killed_in_mid_epoch_changes_no_bit(ray_cluster, tmp_path):
    whole = run_on_ray(tmp_path / "whole", 2)
    marker = tmp_path / "died"
    killed = run_on_ray(tmp_path / "killed", 2, die=str(marker))
    assert marker.exists()
    assert killed == whole
    assert all(count >= 4 for count in whole["seen"])


def test_a_stop_is_a_checkpoint_and_the_same_launch_goes_on(ray_cluster, tmp_path):
    whole = run_on_ray(tmp_path / "whole", 1)
    with pytest.raises(Interrupted):
        run_on_ray(tmp_path / "cut", 1, stop=True)
    assert not (Storage(tmp_path / "cut/toy-cut")).exists(STOP_FILE)
    assert run_on_ray(tmp_path / "cut", 1) == whole
