"""Study files: parsing, refusals, and the trials that they expand to."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tenfold.studies.jobs import apply_values, check_study, study_folder_name
from tenfold.studies.space import Axis
from tenfold.studies.study import Point, Study, StudyError, load_study, parse_study, trial_id

STUDIES = Path(__file__).parents[2] / "tune_spaces"


def raw_study(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "rates",
        "space": {"method.scheme": {"grid": ["a", "b"]}, "method.delta": {"grid": [0.5, 1.0, 2.0]}},
        "seeds": [0, 1],
        "search": "grid",
        "metric": "val/mAP",
    }
    return {key: value for key, value in {**raw, **changes}.items() if value is not ...}


def test_grid_is_every_combination_in_order_of_the_file():
    points = parse_study(raw_study()).planned_points()
    assert [tuple(point.params.values()) for point in points] == [
        ("a", 0.5),
        ("a", 1.0),
        ("a", 2.0),
        ("b", 0.5),
        ("b", 1.0),
        ("b", 2.0),
    ]
    assert list(points[0].params) == ["method.scheme", "method.delta"]


def test_random_draws_stay_the_same_when_more_are_asked_for():
    space = {"method.rate": {"loguniform": [1.0e-5, 1.0e-2]}, "method.width": {"randint": [1, 9]}}
    few = parse_study(raw_study(space=space, search="random", num_samples=4)).planned_points()
    many = parse_study(raw_study(space=space, search="random", num_samples=12)).planned_points()
    assert many[:4] == few
    assert len({point.id for point in many}) == 12
    other = parse_study(raw_study(space=space, search="random", num_samples=4, search_seed=1)).planned_points()
    assert not {point.id for point in other} & {point.id for point in many}


def test_a_grid_inside_a_random_search_shares_the_draws():
    space = {"method.scheme": {"grid": ["a", "b"]}, "method.rate": {"uniform": [0.0, 1.0]}}
    points = parse_study(raw_study(space=space, search="random", num_samples=3)).planned_points()
    by_scheme = {s: [p.params["method.rate"] for p in points if p.params["method.scheme"] == s] for s in "ab"}
    assert len(points) == 6
    assert by_scheme["a"] == by_scheme["b"]


@given(seed=st.integers(0, 10_000))
def test_draws_lie_on_their_axis(seed):
    generator = np.random.default_rng(seed)
    for raw in (
        {"uniform": [-1.0, 2.5]},
        {"loguniform": [3.3333333e-5, 1.0e-2]},
        {"quniform": [0.1, 0.9, 0.25]},
        {"randint": [3, 5]},
        {"lograndint": [1, 100]},
        {"choice": [1, "x", None, True]},
    ):
        axis = Axis.parse(raw, "key")
        assert axis.holds(axis.draw(generator)), raw


def test_draws_have_the_distribution_of_their_kind():
    generator = np.random.default_rng(0)
    logs = [math.log10(Axis.parse({"loguniform": [1.0e-4, 1.0]}, "k").draw(generator)) for _ in range(4000)]
    # Uniform on [-4, 0]: mean -2, standard error 1.155 / sqrt(4000) = 0.018; five of them.
    assert abs(np.mean(logs) + 2) < 0.1
    steps = {Axis.parse({"quniform": [0.1, 0.9, 0.25]}, "k").draw(generator) for _ in range(200)}
    assert steps == {0.25, 0.5, 0.75}
    ints = {Axis.parse({"randint": [3, 5]}, "k").draw(generator) for _ in range(100)}
    assert ints == {3, 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"metric": ...}, "metric: missing"),
        ({"metric": ""}, "metric must be"),
        ({"name": "a/b"}, "name must be letters"),
        ({"space": {}}, "space must have at least one key"),
        ({"space": {"method.x": {"uniform": [0, 1]}}}, "method.x must be a grid in a grid search, got uniform"),
        (
            {"search": "optuna", "num_samples": 3},
            r"must not be a grid in an .*; write `choice: \['a', 'b'\]`",
        ),
        ({"search": "optuna", "space": {"method.x": {"choice": [1]}}}, "num_samples must be the number of points"),
        ({"search": "random", "num_samples": 3}, "must not be all grids"),
        ({"num_samples": 3}, "num_samples must be left out"),
        ({"search": "hyperband"}, "search: Input should be 'grid', 'random' or 'optuna', got 'hyperband'"),
        ({"seeds": [0, 0]}, "seeds must be distinct"),
        ({"seeds": []}, "seeds must be distinct"),
        ({"seeds": ["1"]}, "seeds.0: Input should be a valid integer"),
        ({"space": {"run.seed": {"grid": [1, 2]}}}, "run.seed must not be swept"),
        ({"space": {"method.x": {"grid": ["1e-4"]}}}, "got the string '1e-4'; write 1.0e-04"),
        ({"space": {"method.x": {"loguniform": [0, 1]}}}, "low of method.x must be above 0"),
        ({"space": {"method.x": {"uniform": [2, 1]}}}, "low of method.x must be less than high"),
        ({"space": {"method.x": {"quniform": [0.1, 0.2, 0.5]}}}, "must have a multiple in its range"),
        ({"space": {"method.x": {"randint": [0.5, 3]}}}, "must have integers"),
        ({"space": {"method.x": {"grid": [[1, 2]]}}}, "must be a number, a string"),
        ({"space": {"method.x": {"grid": [1, 1]}}}, "must list distinct values"),
        ({"space": {"method.x": {"os.system": ["ls"]}}}, "got 'os.system'"),
        ({"space": {"method.x": {"_target_": "ray.tune.uniform"}}}, "got '_target_'"),
        ({"space": {"method x": {"grid": [1]}}}, "keys must be dotted keys of a job"),
        ({"base": ["+method.x=1"]}, "base must hold overrides"),
        ({"scheduler": "pbt"}, "scheduler must be `none` or"),
        ({"scheduler": {"asha": {"max_epochs": 2, "grace_epochs": 3}}}, "must not exceed max_epochs = 2, got 3"),
        ({"figures": [{"kind": "line"}]}, "x of a line must be a swept key"),
        ({"figures": [{"kind": "line", "x": "method.zz"}]}, "keys of a line must be swept"),
        ({"figures": [{"kind": "bar", "hue": "method.delta"}]}, "hue of a bar without x must be left out"),
        ({"figures": [{"kind": "curves", "baselines": ["nobody"]}]}, r"must be in \[\], got \['nobody'\]"),
        ({"figures": [{"kind": "pie", "x": "method.delta"}]}, "figures.0.kind"),
        ({"figures": [{"kind": "curves"}, {"kind": "curves"}]}, "names of figures must be unique, got 'curves' twice"),
        ({"figures": [{"kind": "curves", "name": "../x"}]}, "the name of a figure must be letters"),
        ({"baselines": {"none": {"run.seed": 3}}}, "run.seed must not be swept"),
        ({"max_concurrent_trials": 0}, "max_concurrent_trials"),
    ],
)
def test_a_wrong_study_is_refused_with_its_path_and_the_way_out(tmp_path, changes, message):
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(raw_study(**changes), sort_keys=False))
    with pytest.raises(StudyError, match=message) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_mapping_is_refused(tmp_path):
    with pytest.raises(StudyError, match="must be a study, got no such file"):
        load_study(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(StudyError, match="must be a mapping with `name:`, got list"):
        load_study(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.system [ls]")
    with pytest.raises(StudyError, match="must be YAML"):
        load_study(tmp_path / "code.yaml")


def test_a_budget_changes_base_and_space_entry_by_entry():
    budgets = {
        "small": {"base": ["run.num_epochs=2"], "space": {"method.delta": {"grid": [1.0]}, "method.scheme": None}},
        "full": {"seeds": [0, 1, 2]},
    }
    raw = raw_study(budgets=budgets, base=["data=handwriting"])
    small, full = parse_study(raw, "small"), parse_study(raw, "full")
    assert small.base == ["data=handwriting", "run.num_epochs=2"]
    assert [point.params for point in small.planned_points()] == [{"method.delta": 1.0}]
    assert len(full.planned_points()) == 6
    assert full.seeds == [0, 1, 2]
    with pytest.raises(StudyError, match=r"budget must be one of \['full', 'small'\], got none"):
        parse_study(raw)
    with pytest.raises(StudyError, match="got 'huge'"):
        parse_study(raw, "huge")
    with pytest.raises(StudyError, match=r"must be in .*, got \['metric'\]"):
        parse_study(raw_study(budgets={"small": {"metric": "x"}}), "small")


def test_values_go_into_a_copy_of_the_job():
    base = {"method": {"name": "large_loss", "delta": 0.0}, "run": {"seed": 0}}
    job = apply_values(base, {"method.delta": 2.0, "run.seed": 3})
    assert job == {"method": {"name": "large_loss", "delta": 2.0}, "run": {"seed": 3}}
    assert base["method"]["delta"] == 0.0
    with pytest.raises(KeyError, match="the job has no data, only"):
        apply_values(base, {"data.name": "x"})


def test_every_point_is_a_valid_job_before_any_runs():
    def make_job(container: dict[str, Any]) -> None:
        if set(container["method"]) - {"scheme", "delta"}:
            raise ValueError(f"unknown setting {sorted(container['method'])}")
        if container["method"].get("delta", 0) > 1.5:
            raise ValueError("delta must be at most 1.5")

    base = {"method": {}, "run": {}}
    with pytest.raises(StudyError, match=r"scheme=a, delta=2 is not a job: delta must be at most 1.5"):
        check_study(parse_study(raw_study()), base, make_job)
    fine = raw_study(space={"method.delta": {"grid": [0.5, 1.0]}}, baselines={"plain": {"method.delta": 0.0}})
    assert check_study(parse_study(fine), base, make_job) == 3
    unknown = raw_study(space={"method.zz": {"grid": [1]}})
    with pytest.raises(StudyError, match="zz=1 is not a job: unknown setting"):
        check_study(parse_study(unknown), base, make_job)
    # An optuna search has no points yet: the end of a range must be a job too.
    wide = raw_study(search="optuna", num_samples=2, space={"method.delta": {"uniform": [0.0, 9.0]}})
    with pytest.raises(StudyError, match="delta=9 is not a job"):
        check_study(parse_study(wide), base, make_job)
    with pytest.raises(StudyError, match="the job has no model"):
        check_study(parse_study(raw_study(space={"model.width": {"grid": [1]}})), base, make_job)


def test_the_folder_depends_on_what_trials_share_and_on_nothing_else():
    base = {"method": {"delta": 0.0}, "run": {"seed": 0}}
    name = study_folder_name(parse_study(raw_study()), base)
    assert name.startswith("rates-")
    grown = raw_study(seeds=[0, 1, 2], space={"method.delta": {"grid": [9.0]}}, max_concurrent_trials=4)
    assert study_folder_name(parse_study(grown), base) == name
    assert study_folder_name(parse_study(raw_study()), {**base, "run": {"seed": 5}}) == name
    assert study_folder_name(parse_study(raw_study()), {**base, "method": {"delta": 1.0}}) != name
    assert study_folder_name(parse_study(raw_study()), base, identity="other") != name


def test_the_id_of_a_trial_is_that_of_its_values():
    point = Point({"method.scheme": "a", "method.delta": 1.0})
    assert trial_id(point, 0) == trial_id(Point({"method.delta": 1.0, "method.scheme": "a"}, "a baseline"), 0)
    assert len({trial_id(point, 0), trial_id(point, 1), trial_id(Point({"method.delta": 1.0}), 0)}) == 3


def test_no_number_never_beats_a_number():
    study = parse_study(raw_study())
    assert study.better(2.0, 1.0)
    assert study.better(1.0, math.nan)
    assert not study.better(math.nan, 1.0)
    assert parse_study(raw_study(mode="min")).better(1.0, 2.0)


def test_every_study_of_the_house_loads_with_each_of_its_budgets():
    files = sorted(STUDIES.glob("*.yaml"))
    assert files
    for file in files:
        budgets = yaml.safe_load(file.read_text()).get("budgets") or {None: {}}
        for budget in budgets:
            study = load_study(file, budget)
            assert isinstance(study, Study)
            assert study.name == file.stem
            assert study.figures, f"{file.name} draws nothing"
            assert study.metric.startswith("val/"), f"{file.name} selects by {study.metric}: never by test data"
