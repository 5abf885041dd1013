"""Contract of ``Run``, kept by a plain process and by Ray Train workers."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.run import PlainRun, Run
from tenfold.engine.settings import ScaleConfig
from tenfold.engine.storage import Storage

NUM_ROWS = 11
TASKS = ["a", "b", "c", "d", "e"]
WORKERS = {"plain": 1, "ray": 2}


@dataclass(frozen=True)
class FileRecorder:
    """Recorder that notes calls in a file, readable by every process."""

    folder: str
    run_id: str = "run"

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._note([metrics, step])

    def log_figure(self, name: str, figure: Any) -> None:
        self._note([name, figure])

    def log_text(self, name: str, text: str) -> None:
        self._note([name, text])

    def log_file(self, path: Path, folder: str = "") -> None:
        self._note([path.name, folder])

    def _note(self, note: list[Any]) -> None:
        with (Path(self.folder) / "notes.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")


def contract(run: Run, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Exercise the whole interface on every worker; return the answers of all workers, by rank."""
    folder = Path(settings["folder"])
    questions = (placement, collectives, fan_out, stages, randomness, weights, checkpoints)
    mine: dict[str, Any] = {}
    for question in questions:
        mine.update(question(run, folder))
    return run.share_all(mine)


def placement(run: Run, folder: Path) -> dict[str, Any]:
    loader = run.loader(lambda rows: {"tens": torch.from_numpy(rows * 10)}, NUM_ROWS, 3, shuffle=True)
    batches = list(loader.epoch(1))
    index, tens = (torch.cat([run.to_device(batch)[name] for batch in batches]) for name in ("index", "tens"))
    return {
        "rank": run.rank,
        "world_size": run.world_size,
        "is_main": run.is_main,
        "rows": index.tolist(),
        "gathered": run.gather_rows(torch.stack((tens, tens + 1), 1), index, NUM_ROWS).tolist(),
    }


def collectives(run: Run, folder: Path) -> dict[str, Any]:
    run.barrier()
    value = torch.tensor([1.0, 10.0 + run.rank])
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(run.rank + 5)
    run.synchronise_buffers(norm)
    return {
        **{op: run.all_reduce(value, op).tolist() for op in ("sum", "max", "mean")},
        "untouched": value.tolist(),
        "all_gather": [part.tolist() for part in run.all_gather(value)],
        "share": run.share({"from": run.rank}),
        "share_all": run.share_all([run.rank, "x"]),
        "buffers": norm.running_mean.tolist(),
    }


def fan_out(run: Run, folder: Path) -> dict[str, Any]:
    done_here: list[str] = []

    def work(task: str) -> str:
        done_here.append(task)
        return task.upper()

    cache = folder / "cache"

    def make() -> bool:
        found = cache.exists()
        cache.touch()
        return found

    answers = run.map(work, TASKS)
    return {"map": answers, "done_here": done_here, "no_tasks": run.map(work, []), "found": run.once_per_node(make)}


def stages(run: Run, folder: Path) -> dict[str, Any]:
    calls: list[str] = []

    def work(into: Path) -> None:
        calls.append(into.name)
        (into / f"rank-{run.rank}.txt").write_text(str(run.rank))

    def listed(path: Path) -> list[str]:
        return sorted(each.name for each in path.iterdir() if each.suffix == ".txt")

    first = run.stage("draw", {"a": 1, "b": [1, 2]}, work)
    seen = listed(first)
    again = run.stage("draw", {"b": [1, 2], "a": 1}, work)
    other = run.stage("draw", {"a": 2, "b": [1, 2]}, work)
    another = run.stage("paint", {"a": 1, "b": [1, 2]}, work)
    return {
        "seen": seen,
        "same_folder": again == first,
        "num_folders": len({first, other, another}),
        "calls": [name == path.name for name, path in zip(calls, (first, other, another), strict=True)],
    }


def randomness(run: Run, folder: Path) -> dict[str, Any]:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    run.seed_all()
    first, second = draw(), draw()
    run.seed_all()
    return {"draws": first, "moves_on": first != second, "repeats": draw() == first}


def weights(run: Run, folder: Path) -> dict[str, Any]:
    model = nn.Linear(3, 2)  # every worker has drawn different weights
    prepared = run.prepare(model)
    drawn = model.weight.tolist()
    inputs = run.to_device({"x": torch.full((1, 3), run.rank + 1.0)})["x"]
    prepared(inputs).sum().backward()
    assert model.weight.grad is not None
    return {"weights": drawn, "gradient": model.weight.grad.tolist()}


def checkpoints(run: Run, folder: Path) -> dict[str, Any]:
    with run.restore("fit") as before:
        none_before = before is None
    for step, stage in ((1, "fit"), (2, "linear"), (3, "fit")):
        mine = folder / f"checkpoint-{step}-{run.rank}"
        mine.mkdir()
        if run.is_main:
            Storage(mine).write_json("about.json", {"stage": stage, "step": step})
        (mine / f"rank-{run.rank}.txt").write_text(f"{step}")
        metrics = {"loss": 0.5 / step, "broken": float("nan")} if step != 3 else {}
        run.report(stage, metrics, step=step, epoch=step, checkpoint=mine)
        run.log_metrics({"mine": float(run.rank)}, step)
    run.barrier()
    with run.restore("fit") as path:
        files = sorted(each.name for each in path.glob("rank-*")) if path is not None else None
        about = Storage(path).read_json("about.json") if path is not None else None
    with run.restore("never") as other:
        return {"none_before": none_before, "files": files, "about": about, "none_other": other is None}


@pytest.fixture(scope="module", params=["plain", pytest.param("ray", marks=pytest.mark.ray)])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Answers of all workers to one launch."""
    kind = request.param
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    folder = tmp_path_factory.mktemp(f"contract-{kind}")
    scale = ScaleConfig(kind=kind, workers=WORKERS[kind], storage=str(folder))
    options = LaunchOptions(
        name=f"contract-{kind}", folder=str(folder / f"contract-{kind}"), shared=str(folder), seed=5,
        recorder=FileRecorder(str(folder)), progress=False,
    )  # fmt: skip
    found = launch(contract, {"folder": str(folder)}, scale, options)
    assert len(found) == WORKERS[kind]
    notes = [json.loads(line) for line in (folder / "notes.jsonl").read_text().splitlines()]
    return [{**each, "notes": notes} for each in found]


def test_workers_know_who_they_are(answers):
    assert [each["rank"] for each in answers] == list(range(len(answers)))
    assert [each["is_main"] for each in answers] == [True, False][: len(answers)]
    assert {each["world_size"] for each in answers} == {len(answers)}


def test_shards_cover_the_data_and_gather_in_its_order(answers):
    assert {row for each in answers for row in each["rows"]} == set(range(NUM_ROWS))
    assert {len(each["rows"]) for each in answers} == {-(-NUM_ROWS // len(answers))}
    for each in answers:
        assert each["gathered"] == [[10 * row, 10 * row + 1] for row in range(NUM_ROWS)]


def test_collectives_give_every_worker_the_same(answers):
    world = len(answers)
    values = [[1.0, 10.0 + rank] for rank in range(world)]
    for each, own in zip(answers, values, strict=True):
        assert each["sum"] == [world, sum(value[1] for value in values)]
        assert each["max"] == [1.0, 9.0 + world]
        assert each["mean"] == [1.0, sum(value[1] for value in values) / world]
        assert each["untouched"] == own
        assert each["all_gather"] == values
        assert each["share"] == {"from": 0}
        assert each["share_all"] == [[rank, "x"] for rank in range(world)]
        assert each["buffers"] == [5.0, 5.0]


def test_tasks_are_dealt_out_and_answered_in_order(answers):
    for each in answers:
        assert each["map"] == [task.upper() for task in TASKS]
        assert each["no_tasks"] == []
    assert sorted(task for each in answers for task in each["done_here"]) == TASKS
    assert all(each["done_here"] for each in answers)


def test_one_worker_of_a_node_makes_what_the_others_find(answers):
    assert [each["found"] for each in answers] == [rank > 0 for rank in range(len(answers))]


def test_a_stage_runs_once_for_the_same_inputs_and_all_see_its_files(answers):
    for each in answers:
        assert each["seen"] == [f"rank-{rank}.txt" for rank in range(len(answers))]
        assert each["same_folder"]
        assert each["num_folders"] == 3
        assert each["calls"] == [True, True, True]


def test_random_streams_repeat_and_differ_by_rank(answers):
    assert all(each["moves_on"] and each["repeats"] for each in answers)
    drawn = [number for each in answers for number in each["draws"]]
    assert len(set(drawn)) == len(drawn)


def test_prepared_models_agree_and_average_their_gradients(answers):
    world = len(answers)
    mean_input = sum(rank + 1 for rank in range(world)) / world
    for each in answers:
        assert each["weights"] == answers[0]["weights"]
        assert each["gradient"] == [[mean_input] * 3] * 2


def test_a_checkpoint_comes_back_whole_to_the_loop_that_wrote_it(answers):
    for each in answers:
        assert each["none_before"]
        assert each["files"] == [f"rank-{rank}.txt" for rank in range(len(answers))]
        assert each["about"] == {"stage": "fit", "step": 3}
        assert each["none_other"]


def test_only_rank_0_records_and_a_second_loop_has_curves_of_its_own(answers):
    notes = answers[0]["notes"]
    assert [step for metrics, step in notes if "mine" in metrics] == [1, 2, 3]
    assert all(metrics["mine"] == 0 for metrics, _ in notes if "mine" in metrics)
    losses = [(metrics, step) for metrics, step in notes if "mine" not in metrics]
    assert [(sorted(metrics), step) for metrics, step in losses] == [
        (["broken", "loss"], 1),
        (["linear/broken", "linear/loss"], 2),
    ]


def test_the_same_seed_gives_the_same_numbers_in_another_run(tmp_path):
    draws = {seed: [] for seed in (1, 2)}
    for seed in (1, 2, 1):
        PlainRun(folder=tmp_path, seed=seed).close()
        draws[seed].append(float(torch.rand(())))
    assert draws[1][0] == draws[1][1] != draws[2][0]


def test_unknown_reduction_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"one of \['max', 'mean', 'sum'\], got 'median'"):
        PlainRun(folder=tmp_path).all_reduce(torch.ones(1), "median")


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_stage_that_failed_is_repeated_and_finds_what_it_had(tmp_path, place):
    shared = str(tmp_path) if place == "local" else f"memory://stage-{tmp_path.name}-{id(tmp_path)}"
    attempts: list[list[str]] = []

    def work(into: Path) -> None:
        attempts.append(sorted(path.name for path in into.iterdir()))
        (into / "half").write_text("done before the failure")
        if len(attempts) == 1:
            raise RuntimeError("out of memory")
        (into / "rest").write_text("done after it")

    def attempt() -> dict[str, str]:
        run = PlainRun(folder=tmp_path / "run", shared=shared, progress=False)
        try:
            folder = run.stage("two halves", {}, work)
            return {name: (folder / name).read_text() for name in ("half", "rest")}
        finally:
            run.close()

    with pytest.raises(RuntimeError, match="out of memory"):
        attempt()
    finished = attempt()
    assert finished == attempt()
    assert finished["rest"] == "done after it"
    assert attempts == [[], ["half"]]


def test_a_stage_leaves_the_random_stream_alike_whether_it_runs_or_not(tmp_path):
    """Otherwise a run killed right after a stage would resume with different numbers."""

    def draw_after_stage() -> float:
        run = PlainRun(folder=tmp_path, seed=1, progress=False)
        run.stage("random", {}, lambda into: torch.rand(7).sum().item() and None)
        return float(torch.rand(()))

    assert draw_after_stage() == draw_after_stage()


def test_scratch_goes_when_a_run_is_closed(tmp_path):
    run = PlainRun(folder=tmp_path)
    (run.scratch / "file").touch()
    run.close()
    assert not run.scratch.exists()


def test_a_plain_process_keeps_two_checkpoints(tmp_path):
    run = PlainRun(folder=tmp_path, progress=False)
    for step in (1, 2, 10, 11):
        folder = run.scratch / "checkpoint"
        folder.mkdir()
        run.report("fit", {}, step=step, epoch=1, checkpoint=folder)
    assert [int(name) for name in Storage(tmp_path / "checkpoints/fit").list()] == [10, 11]


def test_what_a_stage_fetched_is_not_sent_back_over_newer_files(tmp_path):
    """Another worker may have rewritten its files by then."""
    shared = f"memory://fetched-{tmp_path.name}-{id(tmp_path)}"
    places: list[str] = []

    def work(into: Path) -> None:
        places.append(into.name)
        if len(places) == 1:
            (into / "of-another-worker").write_text("first attempt")
            raise RuntimeError("killed")
        (Storage(shared) / f"stages/{into.name}").write_json("of-another-worker", "second attempt")
        (into / "mine").write_text("second attempt")

    def attempt() -> Path:
        return PlainRun(folder=tmp_path / "run", shared=shared, progress=False).stage("shared", {}, work)

    with pytest.raises(RuntimeError, match="killed"):
        attempt()
    folder = attempt()
    assert (folder / "mine").read_text() == "second attempt"
    assert (folder / "of-another-worker").read_text() == '"second attempt"'
