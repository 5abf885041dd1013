"""Tables, reports and figures from records, and records that survive a kill."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tenfold.studies.records import StudyFolder, TrialRecord
from tenfold.studies.report import draw_figures, render_report, summary_table, write_report
from tenfold.studies.results import Spread, StudyResult, collect, format_spread
from tenfold.studies.study import Point, Study, StudyError, parse_study
from tenfold.studies.trial import Trial, TrialOutcome, Work

STUDY: dict[str, Any] = {
    "name": "schedule",
    "description": "How fast should labels be distrusted?",
    "space": {
        "method.scheme": {"grid": ["LL-R", "LL-Ct"]},
        "method.delta": {"grid": [0.5, 1.0, 2.0, 4.0]},
        "method.warmup": {"grid": [1, 2]},
    },
    "baselines": {"assume negative": {"method.scheme": "an"}},
    "seeds": [0, 1, 2],
    "search": "grid",
    "metric": "val/mAP",
    "also": ["test/mAP"],
    "figures": [
        {"kind": "line", "x": "method.delta", "hue": "method.scheme"},
        {"kind": "bar", "x": "method.scheme", "metric": "test/mAP"},
        {"kind": "bar", "name": "bars_by_hue", "x": "method.delta", "hue": "method.scheme"},
        {"kind": "heatmap", "x": "method.delta", "y": "method.scheme"},
        {"kind": "curves", "hue": "method.scheme"},
        {"kind": "curves", "name": "all_curves"},
    ],
}


def make_record(point: Point, seed: int, **changes: Any) -> TrialRecord:
    """A trial whose validation metric peaks at delta = 1.2 and falls with the warm-up."""
    delta = float(point.params.get("method.delta", 0.0))  # type: ignore[arg-type]
    noise = np.random.default_rng([seed, int(10 * delta)]).normal()
    best = 83.0 if point.baseline else 92.0 - 2 * abs(math.log(delta / 1.2)) - float(point.params["method.warmup"])  # type: ignore[arg-type]
    best += 1.0 if point.params["method.scheme"] == "LL-Ct" else 0.0
    history = [
        {"epoch": epoch, "val/mAP": best - 30 * math.exp(-epoch / 2) + 0.4 * noise, "loss": 1 / epoch}
        for epoch in range(1, 9)
    ]
    values: dict[str, Any] = {
        "params": point.params,
        "seed": seed,
        "status": "done",
        "metrics": {"val/mAP": best + 0.4 * noise, "test/mAP": best - 1 + 0.5 * noise},
        "history": history,
        "run_id": f"run{seed}",
        "seconds": 12.5,
    }
    return TrialRecord(**{**values, **changes})


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    study, folder = parse_study(STUDY), StudyFolder(tmp_path)
    points = [*study.baseline_points(), *study.planned_points()]
    for point in points:
        for seed in study.seeds:
            folder.write(make_record(point, seed))
    return StudyResult(study, tmp_path, collect(study, points, folder), seconds=75.0)


def test_mean_and_spread_are_those_of_the_sample():
    spread = Spread((90.0, 92.0, 94.0))
    assert (spread.mean, spread.std, spread.min, spread.max, spread.num_seeds) == (92.0, 2.0, 90.0, 94.0, 3)
    assert math.isnan(Spread((90.0,)).std)
    assert math.isnan(Spread(()).mean)
    diverged = Spread((90.0, math.nan))
    assert math.isnan(diverged.mean)
    assert math.isnan(diverged.std)
    assert math.isnan(diverged.max)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((91.234, 91.634), "91.43 ± 0.28"),
        ((80.0, 95.0), "88 ± 11"),
        ((0.00123, 0.00125), "0.001240 ± 0.000014"),
        ((5.0, 5.0), "5.000 ± 0.000"),
        ((91.234,), "91.23 (n = 1)"),
        ((), "-"),
    ],
)
def test_spread_is_shown_with_two_digits_that_mean_something(values, text):
    assert format_spread(Spread(values), 2) == text


def test_the_best_point_has_the_best_mean_and_every_seed(result):
    assert result.best.point.params == {"method.scheme": "LL-Ct", "method.delta": 1.0, "method.warmup": 1}
    study, folder = result.study, StudyFolder(result.folder)
    # A single lucky seed must not win: the best point loses a seed, and with it the title.
    (folder.trial_folder(result.best.point, 2) / "result.json").unlink()
    points = [point.point for point in result.points]
    again = StudyResult(study, result.folder, collect(study, points, folder))
    assert again.best.point.params == {"method.scheme": "LL-Ct", "method.delta": 2.0, "method.warmup": 1}
    # Neither must a point with a failed seed, nor one that diverged, nor a baseline.
    folder.write(make_record(again.best.point, 0, status="failed", metrics={}, history=[], error="ValueError: no"))
    (winner,) = (p for p in points if p.baseline)
    folder.write(make_record(winner, 0, metrics={"val/mAP": 1000.0}))
    third = StudyResult(study, result.folder, collect(study, points, folder)).best
    assert third is not None
    folder.write(make_record(third.point, 0, metrics={"val/mAP": math.nan}))
    last = StudyResult(study, result.folder, collect(study, points, folder)).best
    assert last is not None
    assert not last.point.baseline
    assert last.point not in (again.best.point, third.point)


def test_a_stopped_point_is_never_averaged_with_whole_runs(result):
    study = parse_study({**STUDY, "scheduler": {"asha": {"max_epochs": 8}}})
    folder, point = StudyFolder(result.folder), result.best.point
    folder.write(make_record(point, 0, status="stopped", metrics={"val/mAP": 99.0}))
    (stopped,) = collect(study, [point], folder)
    assert stopped.status == "stopped"
    (whole,) = collect(parse_study(STUDY), [point], folder)  # the scheduler was taken out: seed 0 has to run again
    assert whole.status == "missing"
    assert 99.0 not in whole.spread("val/mAP").values


def test_tables_have_a_row_for_each_point_and_each_trial(result):
    written = write_report(result, "python jobs/sweep.py study=schedule")
    summary, trials = pd.read_csv(result.folder / "summary.csv"), pd.read_csv(result.folder / "trials.csv")
    assert len(summary) == 17
    assert len(trials) == 51
    rows = trials[(trials["method.scheme"] == "LL-R") & (trials["method.delta"] == 2) & (trials["method.warmup"] == 2)]
    row = summary[
        (summary["method.scheme"] == "LL-R") & (summary["method.delta"] == 2) & (summary["method.warmup"] == 2)
    ]
    for metric in ("val/mAP", "test/mAP"):
        assert row[f"{metric} mean"].item() == pytest.approx(rows[metric].mean())
        assert row[f"{metric} std"].item() == pytest.approx(rows[metric].std())
        assert row[f"{metric} max"].item() == pytest.approx(rows[metric].max())
        assert row[f"{metric} n"].item() == 3
    assert written.figures.keys() == {figure.file_name for figure in result.study.figures}


def test_the_report_says_what_was_found_and_how_to_get_it_again(result):
    folder = StudyFolder(result.folder)
    bad = result.points[-1].point
    folder.write(make_record(bad, 1, status="failed", metrics={}, history=[], error="ValueError: out of luck"))
    points = collect(result.study, [point.point for point in result.points], folder)
    written = write_report(dataclasses.replace(result, points=points), "python jobs/sweep.py study=schedule")
    report = (result.folder / "report.md").read_text()
    assert "`python jobs/sweep.py study=schedule`" in report
    assert "50 done, 0 stopped early, 1 failed" in report
    assert "1 min 15 s of wall time" in report
    best = result.best.spread("val/mAP")
    assert f"**scheme=LL-Ct, delta=1, warmup=1**: val/mAP {format_spread(best)}" in report
    assert "`ValueError: out of luck`" in report
    table = [line for line in report.splitlines() if line.startswith("|")]
    assert table[0] == "|  | scheme | delta | warmup | val/mAP | test/mAP | state |"
    assert len(table) == 2 + 17
    assert table[2].startswith("| assume negative | an |  |  | 8")
    assert table[3].startswith("| **best** | LL-Ct | 1 | 1 |")
    assert table[-1].endswith("(n = 2) | failed |")  # last, although its mean is not
    for path in written.figures.values():
        assert f"({path.relative_to(result.folder).as_posix()})" in report
        assert np.asarray(Image.open(path)).std() > 10, "an empty image"
    assert "Interrupted" not in report
    assert "Interrupted" in render_report(dataclasses.replace(written, interrupted=True))


def test_figures_show_the_points_that_the_study_selects(result):
    figures = draw_figures(result)
    axes = figures["line_delta_scheme"].axes[0]
    containers = {container.get_label(): container for container in axes.containers}
    drawn = containers["scheme LL-Ct"].lines[0].get_xydata()
    by_delta = {
        point.point.params["method.delta"]: point.spread("val/mAP").mean
        for point in result.points
        if point.point.params.get("method.warmup") == 1 and point.point.params["method.scheme"] == "LL-Ct"
    }
    np.testing.assert_allclose(drawn, sorted(by_delta.items()))  # one warm-up epoch is the better of the two
    assert any("best over warmup" in text.get_text() for text in axes.texts)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["assume negative", "scheme LL-R", "scheme LL-Ct"]
    heat = figures["heatmap_delta_scheme"].axes[0]
    assert heat.images[0].get_array().shape == (2, 4)
    assert heat.images[0].get_array()[1, 1] == pytest.approx(result.best.spread("val/mAP").mean)


def test_a_bar_without_x_orders_the_best_point_and_the_baselines(result):
    raw = {**STUDY, "figures": [{"kind": "bar", "name": "rivals", "metric": "test/mAP"}]}
    study = parse_study(raw)
    axes = draw_figures(StudyResult(study, result.folder, result.points))["rivals"].axes[0]
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert names == ["assume negative", result.best.point.label]
    means = [container.lines[0].get_xdata()[0] for container in axes.containers]
    baseline = next(point for point in result.points if point.point.baseline)
    assert means == [baseline.spread("test/mAP").mean, result.best.spread("test/mAP").mean]
    assert means[0] < means[1]
    assert axes.get_xlabel() == "test/mAP"
    assert not any("best over" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize(("named", "labels"), [(None, 3), (["assume negative"], 3), ([], 2)])
def test_a_figure_draws_the_baselines_that_it_names(result, named, labels):
    raw = {**STUDY, "figures": [{"kind": "line", "x": "method.delta", "hue": "method.scheme", "baselines": named}]}
    axes = draw_figures(StudyResult(parse_study(raw), result.folder, result.points))["line_delta_scheme"].axes[0]
    assert len(axes.get_legend().get_texts()) == labels


def test_a_logarithmic_range_is_drawn_on_a_logarithmic_axis(tmp_path):
    raw = {**STUDY, "search": "random", "num_samples": 6, "baselines": {}, "seeds": [0, 1]}
    raw["space"] = {"method.delta": {"loguniform": [1.0e-3, 1.0]}}
    raw["figures"] = [{"kind": "line", "x": "method.delta"}]
    study, folder = parse_study(raw), StudyFolder(tmp_path)
    points = study.planned_points()
    for point in points:
        for seed in study.seeds:
            folder.write(TrialRecord(params=point.params, seed=seed, status="done", metrics={"val/mAP": 1.0 + seed}))
    canvas = draw_figures(StudyResult(study, tmp_path, collect(study, points, folder)))["line_delta"]
    assert canvas.axes[0].get_xscale() == "log"
    assert len(canvas.axes[0].containers[0].lines[0].get_xdata()) == 6  # a drawn point is never left out


def test_nothing_finished_gives_a_report_without_figures(tmp_path):
    study = parse_study(STUDY)
    result = StudyResult(study, tmp_path, collect(study, study.planned_points(), StudyFolder(tmp_path)))
    written = write_report(result)
    assert written.best is None
    assert written.figures == {}
    assert "No point has finished" in (tmp_path / "report.md").read_text()
    assert summary_table(result)["status"].unique().tolist() == ["missing"]


def test_a_record_comes_back_as_it_was_written(tmp_path):
    folder = StudyFolder(tmp_path)
    point = Point({"method.scheme": "LL-R", "method.delta": 1.0, "method.warmup": 1})
    record = make_record(point, 3, metrics={"val/mAP": math.inf, "lr": 1e-300})
    folder.write(record)
    assert folder.read(point, 3) == record
    assert folder.read(point, 4) is None
    assert [path.name for path in folder.trial_folder(point, 3).iterdir()] == ["result.json"]


def test_only_finished_trials_are_spared(tmp_path):
    folder = StudyFolder(tmp_path)
    point = Point({"method.scheme": "LL-R", "method.delta": 1.0, "method.warmup": 1})
    for status, spared, spared_by_a_scheduler in (("done", 1, 1), ("stopped", 0, 1), ("failed", 0, 0)):
        folder.write(make_record(point, 0, status=status))
        assert (folder.finished(point, 0, scheduled=False) is not None) == spared
        assert (folder.finished(point, 0, scheduled=True) is not None) == spared_by_a_scheduler


def test_a_damaged_record_is_named_with_the_way_out(tmp_path):
    folder, point = StudyFolder(tmp_path), Point({"x": 1})
    folder.trial_folder(point, 0).mkdir(parents=True)
    (folder.trial_folder(point, 0) / "result.json").write_text('{"params": {"x"')
    with pytest.raises(StudyError, match=r"result.json must be JSON, got .*; delete it to run its trial again"):
        folder.read(point, 0)


def test_a_process_killed_while_it_writes_leaves_the_old_record_or_the_new_one(tmp_path):
    """A child replaces one record over and over until it is killed; whatever is there then is whole."""
    program = f"""
from pathlib import Path
from tenfold.studies.study import Point
from tenfold.studies.records import StudyFolder, TrialRecord
folder, count = StudyFolder(Path({str(tmp_path)!r})), 0
while True:
    count += 1
    rows = [{{"epoch": epoch, "loss": float(count)}} for epoch in range(2000)]
    folder.write(TrialRecord(params={{"x": 1}}, seed=0, status="done", metrics={{"m": float(count)}}, history=rows))
    print(count, flush=True)
"""
    for stop_after in (1, 3, 5):
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None
        for _ in range(stop_after):
            child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        record = StudyFolder(tmp_path).read(Point({"x": 1}), 0)
        assert record is not None
        assert record.metrics["m"] >= stop_after
        assert {row["loss"] for row in record.history} == {record.metrics["m"]}


def test_points_asked_for_keep_their_order(tmp_path):
    folder = StudyFolder(tmp_path)
    for value in (0.3, 0.1, 0.2, 0.1):
        folder.add_point({"x": value})
    assert [point.params["x"] for point in folder.points()] == [0.3, 0.1, 0.2]


def test_one_process_at_a_time(tmp_path):
    folder = StudyFolder(tmp_path)
    with folder.locked(), pytest.raises(StudyError, match="another process is running this study"), folder.locked():
        pass
    with folder.locked():
        pass


def make_work(folder: Path, train: Any, **changes: Any) -> tuple[Work, Study, Point]:
    study = parse_study({**STUDY, **changes})
    point = study.planned_points()[0]
    return Work(study, {"method": {}, "run": {"seed": 9, "num_epochs": 2}}, folder, train, "parent"), study, point


def test_a_trial_is_the_job_with_its_keys_set_and_runs_once(tmp_path):
    calls: list[dict[str, Any]] = []

    def train(config: dict[str, Any], trial: Trial) -> TrialOutcome:
        calls.append(config)
        assert trial.parent_run_id == "parent"
        assert trial.folder.is_dir()
        for epoch in (1, 2):
            trial.on_epoch({"val/mAP": np.float32(80 + epoch)}, epoch)
        return TrialOutcome({"val/mAP": np.float64(82.0), "test/mAP": 81}, run_id="r7")

    work, _, point = make_work(tmp_path, train)
    record = work.run(point, 2, scheduled=False)
    assert calls == [
        {"method": {"scheme": "LL-R", "delta": 0.5, "warmup": 1}, "run": {"seed": 2, "num_epochs": 2}},
    ]
    assert record.metrics == {"val/mAP": 82.0, "test/mAP": 81.0}
    assert record.run_id == "r7"
    seen: list[dict[str, float]] = []
    assert work.run(point, 2, scheduled=True, on_epoch=seen.append) == record
    assert len(calls) == 1
    assert seen == [{"epoch": 1, "val/mAP": 81.0}, {"epoch": 2, "val/mAP": 82.0}]
    assert json.loads((tmp_path / "trials" / record.id / "result.json").read_text())["seed"] == 2


def test_a_job_that_was_trained_already_gives_its_history(tmp_path):
    def train(config: dict[str, Any], trial: Trial) -> TrialOutcome:
        return TrialOutcome({"val/mAP": 82.0}, history=[{"epoch": 1, "val/mAP": 70.0}, {"epoch": 2, "val/mAP": 82.0}])

    work, _, point = make_work(tmp_path, train)
    seen: list[dict[str, float]] = []
    assert work.run(point, 0, scheduled=True, on_epoch=seen.append).history == seen
    assert [row["val/mAP"] for row in seen] == [70.0, 82.0]


def test_a_job_without_the_metric_is_no_result(tmp_path):
    work, _, point = make_work(tmp_path, lambda config, trial: TrialOutcome({"loss": 1.0}))
    with pytest.raises(StudyError, match=r"must include the study's val/mAP, got \['loss'\]"):
        work.run(point, 0, scheduled=False)
    assert StudyFolder(tmp_path).read(point, 0) is None


def test_searchers_are_told_numbers_only(tmp_path):
    work, _, _ = make_work(tmp_path, None)
    assert work.objective(3.5) == 3.5
    assert work.objective(math.nan) < -1e20
    assert make_work(tmp_path, None, mode="min")[0].objective(math.nan) > 1e20
