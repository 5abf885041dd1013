"""Run a study: many trainings, with tables and figures. The same command resumes after an interruption.

python jobs/sweep.py study=large_loss_schedule budget=small
"""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jobs.cli import main
from jobs.config import compose_container, store_settings
from tenfold.config import ConfigError, build, job_from_dict
from tenfold.engine.settings import JobConfig
from tenfold.studies.jobs import apply_values, check_study
from tenfold.studies.run import run_study
from tenfold.studies.study import Study, StudyError, load_study
from tenfold.studies.tracking import StudyTracking
from tenfold.studies.trial import Trial, TrialOutcome
from tenfold.training import job_tracking_uri, train

STUDIES = Path(__file__).parents[1] / "tune_spaces"


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Study, budget and storage of a sweep."""

    study: str = "large_loss_schedule"
    """A file of ``tune_spaces/`` without extension, or a path."""
    budget: str | None = "small"
    """One of the study's budgets; null for a study without budgets."""
    storage: str = "outputs"
    """Folder of trials and results."""
    tracking_uri: str | None = None
    max_concurrent_trials: int | None = None
    """Overrides the study's own."""


DEFAULTS = asdict(SweepSettings())


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A study, with every trial checked to be a valid job."""

    settings: SweepSettings
    study: Study
    base: dict[str, Any]
    job: JobConfig


def check(container: dict[str, Any]) -> Checked:
    settings = build(SweepSettings, container, "sweep")
    path = Path(settings.study) if settings.study.endswith((".yaml", ".yml")) else STUDIES / f"{settings.study}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in STUDIES.glob("*.yaml")))
        raise ConfigError(f"study must be one of {known} or the path of a YAML file, got {settings.study!r}")
    try:
        study = load_study(path, settings.budget)
        base = compose_container("config", study.base)
        base = apply_values(base, {"scale.storage": settings.storage, "run.tracking_uri": settings.tracking_uri})
        check_study(study, base, job_from_dict)
    except StudyError as error:
        raise ConfigError(str(error)) from error
    return Checked(settings=settings, study=study, base=base, job=job_from_dict(base))


def train_trial(container: dict[str, Any], trial: Trial) -> TrialOutcome:
    """Train one trial as a plain job, in its Tune process."""
    job = job_from_dict(container)

    parent, name = trial.parent_run_id, trial.name
    result = train(job, parent_run_id=parent, run_name=name, on_epoch=trial.on_epoch, progress=False)
    return TrialOutcome(metrics=result.metrics, run_id=result.run_id, history=result.history)


def work(checked: Checked) -> None:
    settings, study = checked.settings, checked.study
    uri = job_tracking_uri(checked.job)
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    words = [f"{key}={'null' if value is None else value}" for key, value in given.items() if value != DEFAULTS[key]]
    command = " ".join(["python jobs/sweep.py", *words])
    result = run_study(
        study,
        apply_values(checked.base, {"run.tracking_uri": uri}),
        train_trial,
        storage=settings.storage,
        identity=checked.job.digest(),
        tracking=StudyTracking(uri, checked.job.run.experiment),
        command=command,
        max_concurrent_trials=settings.max_concurrent_trials,
        trials_use_ray_train=checked.job.scale.kind == "ray",
    )
    print((result.folder / "report.md").read_text())
    print(f"{'folder':<12}{result.folder}\n{'mlflow':<12}mlflow ui --backend-store-uri {uri}")


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", store_settings("sweep", SweepSettings), check, work))
