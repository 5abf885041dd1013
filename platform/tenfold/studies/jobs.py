"""Where a study meets the job: a trial is the study's job with some keys set."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from tenfold.studies.space import Scalar
from tenfold.studies.study import Point, Study, StudyError, digest


def apply_values(container: Mapping[str, Any], values: Mapping[str, Scalar]) -> dict[str, Any]:
    """A copy of a job's container with dotted keys set.

    Raises:
        KeyError: If a key's parent is not in the container; the last part may be new, the job's schema judges it.
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
    """Build the jobs of a study before any of them runs, so that a bad value costs seconds and not hours.

    A grid or random search is built point by point; of an optuna search, the ends of every range and each listed
    value, one key at a time.

    Args:
        study: The study.
        base: The job's container with ``study.base`` applied.
        make_job: The job's own validation; raises ValueError.

    Returns:
        Number of jobs built.

    Raises:
        StudyError: On the first point that is no valid job.
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
    """Name and hash of what all trials share: the same command finds the same folder and goes on there.

    What only decides *which* trials there are (space, seeds, samples) or how they are shown is left out, so that a
    study that grows keeps the trials it has.

    Args:
        study: The study.
        base: The job's container with ``study.base`` applied.
        identity: Hash of what ``base`` computes, for a caller that knows which of its keys (where to keep files, where
            to track) change nothing; empty for a hash of all of ``base`` but the seed.
    """
    shared = identity or apply_values(base, {study.seed_key: None})
    budget = f"-{study.budget}" if study.budget else ""
    return f"{study.name}{budget}-{digest(shared, 8)}"
