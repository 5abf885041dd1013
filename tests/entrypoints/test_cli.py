"""What every command line has in common: help, the composed settings, one message for a mistake, exit codes."""

import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli
from tenfold.config import job_from_dict
from tenfold.engine.run import Interrupted
from tenfold.engine.settings import JobConfig
from tenfold.training import TrainResult

ROOT = Path(__file__).parents[2]


class Jobs:
    """A main whose work only notes what it was asked for."""

    def __init__(self) -> None:
        self.done: list[JobConfig] = []

    def __call__(self, *words: str) -> int:
        return cli.main("Trains a thing.", "config", job_from_dict, self.done.append, words)


@pytest.fixture
def main() -> Jobs:
    return Jobs()


def test_a_job_is_composed_checked_and_done(main, capsys):
    assert main("run.seed=3", "scale=local") == 0
    (job,) = main.done
    assert (job.run.seed, job.scale.kind) == (3, "plain")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [("--cfg", "job", "run.seed=3"), ("run.seed=3", "--cfg", "job")])
def test_cfg_shows_the_whole_and_does_nothing(main, capsys, words):
    assert main(*words) == 0
    assert main.done == []
    shown = yaml.safe_load(capsys.readouterr().out)
    assert job_from_dict(shown).run.seed == 3
    assert set(shown) == {"method", "data", "model", "scale", "run"}


@pytest.mark.parametrize("words", [("--cfg", "run.seed=3"), ("--cfg",)])
def test_cfg_never_swallows_a_setting(main, capsys, words):
    assert main(*words) == 2
    assert "write --cfg job" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_the_way_and_the_defaults(main, capsys, flag):
    assert main(flag) == 0
    assert main.done == []
    said = capsys.readouterr().out
    assert said.startswith("Trains a thing.")
    assert "key=value" in said
    assert "delta_rel_percent: 1.5" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run.seed=first",), "run.seed: Input should be a valid integer"),
        (("method.zz=1",), "method.zz: there is no such setting; method has"),
        (("+run.zz=1",), "can only be changed, not added or removed"),
        (("--multirun", "run.seed=1,2"), "unknown option --multirun"),
        (("-c", "job"), "unknown option -c"),
        (("run.num_epochs=0", "--cfg", "job"), "num_epochs must be at least 1, got 0"),
        (("data=coco",), "data.root must be given"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(main, capsys, words, message):
    assert main(*words) == 2
    assert main.done == []
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert len(said.err.splitlines()) == 1


def test_all_mistakes_of_a_job_are_told_at_once(main, capsys):
    assert main("run.seed=x", "method.alpha=y", "scale.workers=z") == 2
    said = capsys.readouterr().err
    assert all(key in said for key in ("run.seed", "method.alpha", "scale.workers"))


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize("error", [Interrupted(), KeyboardInterrupt()])
def test_a_stop_by_the_user_says_how_to_go_on(capsys, monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "ignored"])
    words = ["scale=local", "run.seed=3", "data.cache=/my pictures/a&b"]
    assert cli.run(raising(error), words) == 130
    said = capsys.readouterr().err
    command = said.strip().rpartition("To resume: ")[2]
    assert shlex.split(command) == ["python", "jobs/train.py", *words]  # as a shell reads it


@pytest.mark.parametrize("error", [ValueError("no pictures in /data"), FloatingPointError("the loss became nan")])
def test_a_mistake_in_data_or_model_is_one_line(capsys, error):
    assert cli.run(raising(error), []) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_failed_workers_are_told_in_one_message(capsys):
    error = RuntimeError("training failed on the workers: out of memory")
    error.__cause__ = OSError("worker died")
    assert cli.run(raising(error), []) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ZeroDivisionError(), TypeError("x")])
def test_other_errors_stay_errors(error):
    with pytest.raises(type(error)):
        cli.run(raising(error), [])


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_work_may_choose_its_exit_code(answer, code):
    assert cli.run(lambda: answer, []) == code


def test_other_errors_of_a_check_stay_errors():
    def broken(container: dict[str, Any]) -> None:
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        cli.main("", "config", broken, lambda settings: None, [])


def test_a_mistyped_setting_of_the_real_command_starts_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "TENFOLD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/train.py"), "method.zz=1", "scale=local"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: method.zz: there is no such setting; method has ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_a_training_gives_the_commands_to_go_on():
    from jobs.train import report
    from tenfold.tracking.registry import Registered

    result = TrainResult(
        status="unchanged", run_id="r1", tracking_uri="sqlite:////o/mlflow.db", model_uri="models:/m-1",
        registered=Registered(name="large_loss", version="3", alias="champion", metric="val/mAP", value=50.0),
        metrics={"val/mAP": 50.0, "test/mAP": 48.25}, metric="val/mAP", folder="/o/x", bundle="/o/b", history=[],
    )  # fmt: skip
    said = report(job_from_dict({"method": {"name": "large_loss"}, "data": {"name": "handwriting"}}), result)
    assert "run.tag=NAME" in said
    assert "python jobs/evaluate.py model=models:/large_loss@champion" in said
    assert "python jobs/deploy.py model=models:/large_loss@champion" in said
    assert "48.25" in said
    assert "mlflow ui --backend-store-uri sqlite:////o/mlflow.db" in said


def test_the_evaluation_that_is_printed_is_of_the_same_data():
    from jobs.config import compose_container
    from jobs.evaluate import check
    from jobs.train import report
    from tenfold.tracking.registry import Registered

    result = TrainResult(
        status="finished", run_id="r1", tracking_uri="sqlite:////o/mlflow.db", model_uri="models:/m-1",
        registered=Registered(name="m", version="1", alias="champion", metric="val/nll", value=1.0),
        metrics={"val/nll": 1.0}, metric="val/nll", folder="/o/x", bundle="/o/b", history=[],
    )  # fmt: skip
    words = ("method=posterior_annealing", "data=pairs", r"data.root='/my data/it\'s'", "data.kind=pictures")
    for chosen in (words, ("method=large_loss",), ("method=large_loss", "data.num_test=30", "data.distinct=false")):
        job = job_from_dict(compose_container("config", chosen))
        said = report(job, result).splitlines()
        [line] = [line for line in said if line.startswith("python jobs/evaluate.py")]
        _, _, model, *more = shlex.split(line)
        assert model == "model=models:/m@champion"
        assert check(compose_container("evaluate", more)).data == job.data


def test_the_command_to_go_on_takes_the_model_that_it_names(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs/evaluate.py", "model=models:/large_loss@champion", "--cfg", "job"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs/evaluate.py"), run_name="__main__")
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["reference"] == "models:/large_loss@champion"
