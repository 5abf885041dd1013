"""Studies of an analytic function on Ray Tune: searches, schedulers, failures, kills."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from tenfold.studies.run import StudyFailedError, run_study
from tenfold.studies.study import StudyError, parse_study
from tenfold.studies.tracking import StudyTracking
from tenfold.studies.trial import Trial, TrialOutcome
from tenfold.tracking.runs import start_run
from tests.tracking.store import child_runs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

BASE = {"method": {"x": 0.0, "scheme": "a"}, "run": {"seed": 7, "num_epochs": 9}}
ROOT = Path(__file__).parents[2]


def study(**changes: Any) -> Any:
    raw = {
        "name": "bump",
        "space": {"method.x": {"grid": [0.1, 0.3, 0.8]}},
        "seeds": [0, 1],
        "search": "grid",
        "metric": "val/score",
        "also": ["test/score"],
        "resources": {"cpu": 0.5},
        "max_concurrent_trials": 2,
        "figures": [{"kind": "line", "x": "method.x"}, {"kind": "curves"}],
    }
    return parse_study({**raw, **changes})


def make_train(log: Path, *, fail_at: float | None = None, seconds: float = 0.0) -> Any:
    """A train function with its optimum at x = 0.3; every call leaves a line ``x seed`` in ``log``."""

    def train(config: dict[str, Any], trial: Trial) -> TrialOutcome:
        import os
        import time

        x, seed = config["method"]["x"], config["run"]["seed"]
        with log.open("a") as file:
            file.write(f"{x} {seed} {os.getpid()}\n")
        if x == fail_at:
            raise ValueError(f"no score at {x}")
        score = 90 - 40 * abs(x - 0.3) + seed
        for epoch in range(1, 10):
            trial.on_epoch({"val/score": score * epoch / 9}, epoch)
            time.sleep(seconds / 9)
        return TrialOutcome({"val/score": score, "test/score": score - 1})

    return train


def calls(log: Path) -> Counter[tuple[float, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter((float(line.split()[0]), int(line.split()[1])) for line in lines)


def test_grid_finds_the_best_point_and_goes_on_where_it_was(tmp_path):
    log = tmp_path / "calls"
    result = run_study(study(), BASE, make_train(log), storage=tmp_path)
    assert result.best is not None
    assert result.best.point.params == {"method.x": 0.3}
    assert result.best.spread("val/score").values == (90.0, 91.0)
    assert calls(log) == {(x, seed): 1 for x in (0.1, 0.3, 0.8) for seed in (0, 1)}
    summary = pd.read_csv(result.folder / "summary.csv")
    assert summary["test/score mean"].tolist() == pytest.approx([81.5, 89.5, 69.5])
    assert all(path.exists() for path in result.figures.values())
    assert len(result.figures) == 2
    assert len(result.records[0].history) == 9

    grown = study(space={"method.x": {"grid": [0.1, 0.3, 0.5]}}, seeds=[0, 1, 2], max_concurrent_trials=2)
    again = run_study(grown, BASE, make_train(log), storage=tmp_path)
    assert again.folder == result.folder
    assert set(calls(log).values()) == {1}
    assert set(calls(log)) == {(x, seed) for x in (0.1, 0.3, 0.5) for seed in (0, 1, 2)} | {(0.8, 0), (0.8, 1)}
    assert again.best is not None
    assert again.best.spread("val/score").num_seeds == 3


def test_random_search_beside_a_baseline(tmp_path):
    log = tmp_path / "calls"
    space = {"method.x": {"uniform": [0.0, 1.0]}}
    drawn = study(search="random", num_samples=4, space=space, baselines={"at the edge": {"method.x": 1.0}})
    result = run_study(drawn, BASE, make_train(log), storage=tmp_path)
    xs = [point.params["method.x"] for point in drawn.planned_points()]
    assert calls(log) == {(x, seed): 1 for x in (1.0, *xs) for seed in (0, 1)}
    assert result.best is not None
    assert result.best.point.params["method.x"] == min(xs, key=lambda x: abs(x - 0.3))
    assert "at the edge" in (result.folder / "report.md").read_text()


def test_optuna_is_told_the_mean_over_seeds_and_repeats_nothing(tmp_path, capsys):
    log = tmp_path / "calls"
    space = {"method.x": {"uniform": [0.0, 1.0]}, "method.scheme": {"choice": ["a", "b"]}}
    few = study(search="optuna", num_samples=3, space=space, figures=[])
    first = run_study(few, BASE, make_train(log), storage=tmp_path)
    assert len(first.points) == 3
    assert all(point.status == "done" and point.spread("val/score").num_seeds == 2 for point in first.points)
    shown = capsys.readouterr().out  # the value that Tune passes on to the searcher
    for point in first.points:
        assert f"{point.point.label}: val/score {point.spread('val/score').mean:.4g}\n" in shown

    more = study(search="optuna", num_samples=6, space=space, figures=[], max_concurrent_trials=2)
    second = run_study(more, BASE, make_train(log), storage=tmp_path)
    assert [point.point for point in second.points[:3]] == [point.point for point in first.points]
    assert len(second.points) == 6
    assert set(calls(log).values()) == {1}
    assert len(calls(log)) == 12


def test_asha_stops_points_and_never_single_seeds(tmp_path):
    log = tmp_path / "calls"
    xs = [0.3, 0.35, 0.9, 1.5, 2.0, 1.8]
    stopping = study(
        space={"method.x": {"grid": xs}},
        scheduler={"asha": {"max_epochs": 9, "grace_epochs": 1, "reduction_factor": 3}},
        max_concurrent_trials=1,  # one after the other: the order, and so every decision, is known
    )
    first = run_study(stopping, BASE, make_train(log), storage=tmp_path)
    status = {point.params["method.x"]: point.status for point in first.points}
    assert status[0.3] == "done"
    assert status[2.0] == status[1.8] == status[1.5] == "stopped"
    for point in first.points:
        seeds = [record.seed for record in point.records]
        assert seeds == ([0, 1] if point.status == "done" else [0])
        assert len(point.records[0].history) == (9 if point.status == "done" else 1)
    assert first.best is not None
    assert first.best.point.params == {"method.x": 0.3}
    before = calls(log)
    second = run_study(stopping, BASE, make_train(log), storage=tmp_path)
    assert calls(log) == before
    assert {point.params["method.x"]: point.status for point in second.points} == status


def test_optuna_with_asha(tmp_path):
    log = tmp_path / "calls"
    both = study(
        search="optuna",
        num_samples=6,
        space={"method.x": {"uniform": [0.0, 2.0]}},
        scheduler={"asha": {"max_epochs": 9, "reduction_factor": 2}},
        figures=[],
    )
    result = run_study(both, BASE, make_train(log), storage=tmp_path)
    assert {point.status for point in result.points} <= {"done", "stopped"}
    assert len(result.points) == 6
    assert result.best is not None
    before = calls(log)
    assert run_study(both, BASE, make_train(log), storage=tmp_path).best == result.best
    assert calls(log) == before


def test_a_failing_trial_is_a_row_of_the_table_and_tried_again_next_time(tmp_path):
    log = tmp_path / "calls"
    result = run_study(study(seeds=[0]), BASE, make_train(log, fail_at=0.8), storage=tmp_path)
    assert [point.status for point in result.points] == ["done", "done", "failed"]
    assert "ValueError: no score at 0.8" in (result.folder / "report.md").read_text()
    failed = [record for record in result.records if record.status == "failed"]
    assert [record.error for record in failed] == ["ValueError: no score at 0.8"]
    traceback = (result.folder / "trials" / failed[0].id / "error.txt").read_text()
    assert "in train\n" in traceback
    assert "\x1b" not in traceback
    before = calls(log)
    mended = run_study(study(seeds=[0]), BASE, make_train(log), storage=tmp_path)
    assert [point.status for point in mended.points] == ["done"] * 3
    assert calls(log) - before == {(0.8, 0): 1}


def test_a_killed_worker_is_no_failed_trial(tmp_path):
    log, killed = tmp_path / "calls", tmp_path / "killed"
    fine = make_train(log)

    def train(config: dict[str, Any], trial: Trial) -> TrialOutcome:
        import os

        if config["method"]["x"] == 0.3 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), 9)
        return fine(config, trial)

    result = run_study(study(seeds=[0], max_concurrent_trials=1), BASE, train, storage=tmp_path)
    assert killed.exists()
    assert [point.status for point in result.points] == ["done"] * 3
    assert calls(log) == {(0.1, 0): 1, (0.3, 0): 1, (0.8, 0): 1}


def test_asha_without_a_metric_in_every_epoch_says_so(tmp_path):
    def train(config: dict[str, Any], trial: Trial) -> TrialOutcome:
        trial.on_epoch({"loss": 1.0}, 1)
        return TrialOutcome({"val/score": 1.0})

    stopping = study(space={"method.x": {"grid": [0.8]}}, seeds=[0], scheduler={"asha": {"max_epochs": 3}})
    with pytest.raises(
        StudyFailedError,
        match=r"all 1 trials failed, .* val/score must be reported at every epoch .*\['epoch', 'loss'\]",
    ):
        run_study(stopping, BASE, train, storage=tmp_path)


def test_more_gpus_than_there_are_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(StudyError, match=r"resources\.gpu must be at most .*, got 99"):
        run_study(study(resources={"gpu": 99}), BASE, make_train(tmp_path / "calls"), storage=tmp_path)


def test_trials_are_nested_under_one_tracked_run_for_all_starts(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def train(config: dict[str, Any], trial: Trial) -> TrialOutcome:
        tracker = start_run(uri, "sweeps", trial.name, parent=trial.parent_run_id)
        if config["run"]["seed"] == 0:
            tracker.finish()  # the others leave theirs open, as a killed trial does
        return TrialOutcome({"val/score": 80.0 + config["method"]["x"], "test/score": 1.0}, run_id=tracker.run_id)

    start_run(uri, "sweeps", "creates the database").finish()  # two trials at once would both migrate it
    tracking = StudyTracking(uri, "sweeps")
    small = study(space={"method.x": {"grid": [0.1, 0.3]}})
    first = run_study(small, BASE, train, storage=tmp_path, tracking=tracking, command="python jobs/sweep.py")
    again = run_study(small, BASE, train, storage=tmp_path, tracking=tracking, command="python jobs/sweep.py")
    assert first.run_id is not None
    assert again.run_id == first.run_id
    children = child_runs(uri, first.run_id)
    assert sorted(child.info.status for child in children) == ["FINISHED", "FINISHED", "KILLED", "KILLED"]
    assert {child.info.run_id for child in children} == {record.run_id for record in first.records}
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best/val/score"] == pytest.approx(80.3)
    assert run.data.metrics["trials/done"] == 4
    names = {item.path for item in client.list_artifacts(first.run_id)}
    assert {"summary.csv", "trials.csv", "report.md", "figures"} <= names


DRIVER = """
    import logging, sys, time
    from pathlib import Path
    sys.path[:0] = {path!r}
    logging.basicConfig(level="INFO", format="%(message)s")
    from tenfold.studies.study import parse_study
    from tenfold.studies.trial import TrialOutcome
    from tenfold.studies.run import run_study

    def train(config, trial):
        x, seed = config["method"]["x"], config["run"]["seed"]
        with open({log!r}, "a") as file:
            file.write(f"{{x}} {{seed}} 0\\n")
        time.sleep(0.7)
        with open({log!r} + ".ended", "a") as file:
            file.write(f"{{x}} {{seed}} 0\\n")
        return TrialOutcome({{"val/score": 90 - abs(x - 0.3)}})

    study = parse_study({study!r})
    run_study(study, {base!r}, train, storage={storage!r}, command="this command", max_concurrent_trials={concurrent})
    print("the study is complete")
"""


def start_driver(folder: Path, raw: dict[str, Any], concurrent: int) -> "subprocess.Popen[str]":
    program = DRIVER.format(
        path=[str(ROOT / "platform")],
        log=str(folder / "calls"),
        study=raw,
        base=BASE,
        storage=str(folder),
        concurrent=concurrent,
    )
    (folder / "driver.py").write_text(textwrap.dedent(program))
    return subprocess.Popen(
        [sys.executable, str(folder / "driver.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        start_new_session=True,
    )


@pytest.fixture
def driver(tmp_path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(raw: dict[str, Any], concurrent: int) -> "subprocess.Popen[str]":
        started.append(start_driver(tmp_path, raw, concurrent))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_results(process: "subprocess.Popen[str]", folder: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("bump-*/trials/*/result.json"))) < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{number} trials did not finish"
        time.sleep(0.05)


GRID = {"search": "grid", "space": {"method.x": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}}}
OPTUNA = {"search": "optuna", "num_samples": 6, "space": {"method.x": {"uniform": [0.0, 1.0]}}}


@pytest.mark.e2e
@pytest.mark.parametrize("search", [GRID, OPTUNA], ids=["grid", "optuna"])
def test_a_driver_killed_in_the_middle_costs_no_finished_trial(tmp_path, driver, search):
    raw = {"name": "bump", "seeds": [0, 1], "metric": "val/score", "resources": {"cpu": 0.5}, **search}
    first = driver(raw, 2)
    wait_for_results(first, tmp_path, 4)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path: path.read_bytes() for path in tmp_path.glob("bump-*/trials/*/result.json")}
    assert 4 <= len(kept) < 12, "the kill came too late to prove anything"
    second = driver(raw, 3)  # another concurrency than before
    output = second.communicate(timeout=240)[0]
    assert "the study is complete" in output, output
    assert all(path.read_bytes() == content for path, content in kept.items())
    (folder,) = tmp_path.glob("bump-*")
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 12
    assert set(trials["status"]) == {"done"}
    begun = calls(tmp_path / "calls")
    assert len(begun) == 12
    finished = {(row["method.x"], row["seed"]) for _, row in trials.iterrows()}
    assert set(begun) == finished
    # Only what was in flight at the kill was begun twice.
    assert 12 <= sum(begun.values()) <= 12 + 2
    assert sum(begun[trial] == 1 for trial in begun) >= len(kept)


@pytest.mark.e2e
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path, driver):
    raw = {"name": "bump", "seeds": [0, 1], "metric": "val/score", "resources": {"cpu": 0.5}, **GRID}
    process = driver(raw, 2)
    wait_for_results(process, tmp_path, 2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output
    assert "the same command resumes: this command" in output
    assert "Tuner.restore" not in output
    (folder,) = tmp_path.glob("bump-*")
    assert "Interrupted" in (folder / "report.md").read_text()
    assert len(pd.read_csv(folder / "trials.csv")) >= 2
