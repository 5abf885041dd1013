"""Jobs of a study: a trial is the study's base job with some keys set."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from tenfold.studies.space import Scalar
from tenfold.studies.study import Point, Study, StudyError, digest


def apply_values(container: Mapping[str, Any], values: Mapping[str, Scalar]) -> dict[str, Any]:
    """Copy a job's container with dotted keys set.

    Raises:
        KeyError: If a key's parent is not in the container; the last part may be new, as the job's schema checks it.
    """
    copy = deepcopy(dict(container))
    for key, value in values.items():
        *parents, last = key.split(".")
        node: Any = copy
        for depth, part in enumerate(parents):
            if not isinstance(node.get(part), dict):
                raise KeyError(f"{key}: the job has no {'.'.join(parents[: depth + 1])}, only {sorted(node)}")
            node = node[part]
        node[last] = value
    return copy


def check_study(study: Study, base: Mapping[str, Any], make_job: Callable[[dict[str, Any]], object]) -> int:
    """Build the jobs of a study before any of them runs, so that an invalid value costs seconds, not hours.

    For a grid or random search, every point is built; for an optuna search, the ends of every range and each listed
    value, one key at a time.

    Args:
        study: The study.
        base: The job's container with ``study.base`` applied.
        make_job: Validates a job; raises ValueError.

    Returns:
        Number of jobs built.

    Raises:
        StudyError: For the first point that is not a valid job.
    """
    points = [*study.baseline_points(), *(_corners(study) if study.search == "optuna" else study.planned_points())]
    for point in points:
        try:
            make_job(apply_values(base, {**point.params, study.seed_key: study.seeds[0]}))
        except (KeyError, ValueError) as error:
            reason = error.args[0] if isinstance(error, KeyError) else error
            raise StudyError(f"study {study.name}: {point.label} is not a job: {reason}") from error
    return len(points)


def _corners(study: Study) -> list[Point]:
    middle = study.draw(0)
    return [Point({**middle, key: value}) for key, axis in study.space.items() for value in axis.corners]


def study_folder_name(study: Study, base: Mapping[str, Any], identity: str = "") -> str:
    """Name and hash of the settings that all trials share: the same command finds and resumes the same folder.

    Settings that only select trials (space, seeds, samples) or affect their display are left out, so that a study that
    grows keeps its trials.

    Args:
        study: The study.
        base: The job's container with ``study.base`` applied.
        identity: Hash of the keys of ``base`` that affect results, for a caller that knows which do not (storage,
            tracking); empty: a hash of all of ``base`` but the seed.
    """
    shared = identity or apply_values(base, {study.seed_key: None})
    budget = f"-{study.budget}" if study.budget else ""
    return f"{study.name}{budget}-{digest(shared, 8)}"
