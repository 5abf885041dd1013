"""Definition of a study: swept keys, search, metric and figures.

A study is a YAML file in ``tune_spaces/``. Its space names dotted keys of the job, so that every trial is a plain job,
checked by the job's own schema. Kinds of axes are words from a table, never names of code. Loading, checking and
expanding a study does not need Ray.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tenfold.hashing import text_sha256
from tenfold.studies.space import Axis, Scalar, as_scalar

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
PARTS_OF_A_BUDGET = (
    "base",
    "space",
    "baselines",
    "seeds",
    "num_samples",
    "search",
    "scheduler",
    "resources",
    "max_concurrent_trials",
    "figures",
)


class StudyError(ValueError):
    """An invalid study; the message names the file, the key and the way out."""


@dataclass(frozen=True)
class Point:
    """One setting of the swept keys, judged by the mean over the study's seeds."""

    params: dict[str, Scalar]
    """Job key to value."""
    baseline: str = ""
    """Name of a baseline; empty for a point of the space."""

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend only on the parameters."""
        return digest(self.params)

    @property
    def label(self) -> str:
        """Readable name: that of a baseline, else ``scheme=LL-R, delta_rel_percent=1.5``."""
        if self.baseline:
            return self.baseline
        return ", ".join(f"{short_name(key)}={format_value(value)}" for key, value in self.params.items())


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Asha(_Model):
    """Asynchronous successive halving (Li et al., MLSys 2020): weaker points stop early.

    Points are stopped, never single seeds: the first seed reports every epoch, and the other seeds run once it has
    survived. Stopping single seeds would leave weak points with the mean of their luckiest seeds.
    """

    max_epochs: int = Field(ge=1)
    """Epochs of a full trial."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs before a point may be stopped."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """One in this many points continues at each rung."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grace_epochs > self.max_epochs:
            raise ValueError(f"grace_epochs must not exceed max_epochs = {self.max_epochs}, got {self.grace_epochs}")
        return self


class Resources(_Model):
    """Resources of one trial."""

    cpu: float = Field(default=1.0, gt=0, strict=False)
    gpu: float = Field(default=0.0, ge=0, strict=False)


class Figure(_Model):
    """One figure of the report.

    Points that agree in everything a figure shows are reduced to the best of them, as the subtitle says.
    """

    kind: Literal["line", "bar", "heatmap", "curves"]
    """line, bar: metric over ``x``; a bar without ``x``: the best point and the baselines, in the order of the metric;
    heatmap: metric over ``x`` and ``y``; curves: metric over epochs."""
    name: str = ""
    """File name without extension; empty: built from the kind and the axes."""
    x: str = ""
    """A swept key; curves use the epoch."""
    y: str = ""
    """A swept key, for a heatmap."""
    hue: str = ""
    """A swept key: one colour for each of its values."""
    metric: str = ""
    """Metric to draw; empty: the study's metric."""
    title: str = ""
    baselines: list[str] | None = None
    """Names of the baselines to draw; null: all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs = {"line": ("x",), "bar": (), "heatmap": ("x", "y"), "curves": ()}[self.kind]
        for field in ("x", "y"):
            if field in needs and not getattr(self, field):
                raise ValueError(f"{field} of a {self.kind} must be a swept key, got none")
            if field not in needs and getattr(self, field) and (self.kind, field) != ("bar", "x"):
                raise ValueError(f"{field} of a {self.kind} must be left out; its metric is set by `metric`")
        if self.kind == "bar" and self.hue and not self.x:
            raise ValueError("hue of a bar without x must be left out: it shows the best point and the baselines")
        if self.kind == "heatmap" and self.hue:
            raise ValueError("hue of a heatmap must be left out: its colour is the metric")
        return self

    @property
    def file_name(self) -> str:
        parts = [self.kind, self.metric, *(short_name(key) for key in (self.x, self.y, self.hue))]
        return self.name or re.sub(r"[^A-Za-z0-9]+", "_", "_".join(part for part in parts if part))


class Study(_Model):
    """A consistent study; ``studies.jobs.check_study`` checks its keys against the job."""

    name: str
    """Name of the folder and of the tracked run: letters, digits, ``_`` and ``-``."""
    description: str = ""
    base: list[str] = Field(default_factory=list)
    """``key=value`` overrides of the job that every trial shares."""
    space: dict[str, Axis]
    """Job key to the values it takes, at least one key."""
    baselines: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    """Name to job keys and values: settings outside the space to compare with."""
    seeds: list[int] = Field(default_factory=lambda: [0])
    """Seeds of every point."""
    seed_key: str = "run.seed"
    """Job key of the seed."""
    search: Literal["grid", "random", "optuna"]
    """grid: all combinations; random: independent samples; optuna: tree-structured Parzen estimator."""
    num_samples: int | None = Field(default=None, ge=1)
    """Number of points for random and optuna; null for a grid."""
    search_seed: int = Field(default=0, ge=0)
    """Seed of the search."""
    scheduler: Asha | None = None
    """Early stopping of weak points; needs the metric at every epoch."""
    metric: str
    """Metric that selects the best point. Use a validation metric, and report the test metric by ``also``."""
    mode: Literal["max", "min"] = "max"
    also: list[str] = Field(default_factory=list)
    """Further metrics of the table, not used for selection."""
    resources: Resources = Resources()
    max_concurrent_trials: int = Field(default=1, ge=1)
    figures: list[Figure] = Field(default_factory=list)
    budget: str = ""
    """Name of the chosen budget; empty if the file has none."""

    @field_validator("space", mode="before")
    @classmethod
    def _parse_space(cls, space: Any) -> Any:
        if not isinstance(space, Mapping):
            raise ValueError(f"space must map keys of the job to values, got {space!r}")  # noqa: TRY004, pydantic's way
        return {key: axis if isinstance(axis, Axis) else Axis.parse(axis, key) for key, axis in space.items()}

    @field_validator("scheduler", mode="before")
    @classmethod
    def _parse_scheduler(cls, scheduler: Any) -> Any:
        if scheduler in (None, "none"):
            return None
        if isinstance(scheduler, Mapping) and set(scheduler) == {"asha"}:
            return scheduler["asha"]
        if isinstance(scheduler, Asha):
            return scheduler
        raise ValueError(f"scheduler must be `none` or `{{asha: {{max_epochs: 10}}}}`, got {scheduler!r}")

    @field_validator("baselines", mode="before")
    @classmethod
    def _parse_baselines(cls, baselines: Any) -> Any:
        if not isinstance(baselines, Mapping) or not all(isinstance(values, Mapping) for values in baselines.values()):
            raise ValueError(f"baselines must map a name to keys of the job and their values, got {baselines!r}")
        return {
            name: {key: as_scalar(value, f"{name}: {key}") for key, value in values.items()}
            for name, values in baselines.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, _ and -, at most 64, got {self.name!r}")
        if not self.space:
            raise ValueError("space must have at least one key of the job with its values, got none")
        for key in (*self.space, *(key for values in self.baselines.values() for key in values), self.seed_key):
            if not KEY.fullmatch(key):
                raise ValueError(f"keys must be dotted keys of a job such as method.learning_rate, got {key!r}")
        if self.seed_key in self.space or any(self.seed_key in values for values in self.baselines.values()):
            raise ValueError(f"{self.seed_key} must not be swept, as it is set from `seeds`; list its values there")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct integers of at least 0, got {self.seeds}")
        for override in self.base:
            if "=" not in override or override.startswith("+"):
                raise ValueError(f"base must hold overrides such as run.num_epochs=5, got {override!r}")
        if not self.metric:
            raise ValueError("metric must be the metric of the job that selects the best point, got an empty string")
        self._check_search()
        self._check_figures()
        return self

    def _check_search(self) -> None:
        for key, axis in self.space.items():
            if self.search == "grid" and axis.kind != "grid":
                raise ValueError(
                    f"{key} must be a grid in a grid search, got {axis.kind}; write `grid: [...]`, or search: random"
                )
            if self.search == "optuna" and axis.kind == "grid":
                raise ValueError(f"{key} must not be a grid in an optuna search; write `choice: {list(axis.values)}`")
        if self.search == "grid" and self.num_samples is not None:
            raise ValueError(
                f"num_samples must be left out in a grid search, got {self.num_samples}; or search: random"
            )
        if self.search != "grid" and self.num_samples is None:
            raise ValueError(f"num_samples must be the number of points for search: {self.search}, got none")
        if self.search == "random" and all(axis.kind == "grid" for axis in self.space.values()):
            raise ValueError("space must not be all grids in a random search; write search: grid, or `choice: [...]`")

    def _check_figures(self) -> None:
        for figure in self.figures:
            for key in (figure.x, figure.y, figure.hue):
                if key and key not in self.space:
                    raise ValueError(
                        f"the keys of a {figure.kind} must be swept ({', '.join(self.space)}), got {key!r}"
                    )
            for field in ("y", "hue"):
                key = getattr(figure, field)
                if key and not self.space[key].is_listed:
                    raise ValueError(
                        f"{field} of a {figure.kind} must be a listed axis, got {key}: {self.space[key].kind}"
                    )
            unknown = sorted(set(figure.baselines or ()) - set(self.baselines))
            if unknown:
                raise ValueError(f"baselines of a {figure.kind} must be in {sorted(self.baselines)}, got {unknown}")
            if figure.kind in ("heatmap", "bar") and figure.x and not self.space[figure.x].is_listed:
                raise ValueError(
                    f"x of a {figure.kind} must be a listed axis, got {figure.x}: {self.space[figure.x].kind}"
                )
        names = [figure.file_name for figure in self.figures]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"the name of a figure must be letters, digits, _ and -, got {name!r}")
            if names.count(name) > 1:
                raise ValueError(f"names of figures must be unique, got {name!r} twice; give one another `name`")

    @property
    def metrics(self) -> list[str]:
        """The metric used for selection, followed by those of ``also``."""
        return [self.metric, *(name for name in self.also if name != self.metric)]

    @property
    def num_points(self) -> int:
        """Number of points of the space, without baselines."""
        grids = [len(axis.values) for axis in self.space.values() if axis.kind == "grid"]
        return math.prod(grids) * (self.num_samples or 1)

    def better(self, first: float, second: float) -> bool:
        """Return True if the first value of the metric beats the second; every number beats NaN."""
        if math.isnan(first) or math.isnan(second):
            return math.isnan(second) and not math.isnan(first)
        return first > second if self.mode == "max" else first < second

    def baseline_points(self) -> list[Point]:
        return [Point(dict(values), name) for name, values in self.baselines.items()]

    def planned_points(self) -> list[Point]:
        """Points of a grid or random search, in order; an optuna search suggests its points while it runs.

        Sample i depends only on ``search_seed`` and i: adding samples keeps the earlier points. The cells of a grid
        inside a random search share their samples, so that their comparison is paired.
        """
        if self.search == "optuna":
            raise ValueError("search must be grid or random to plan points, got optuna")
        grids = {key: axis.values for key, axis in self.space.items() if axis.kind == "grid"}
        points: dict[str, Point] = {}
        for sample in range(self.num_samples or 1):
            drawn = self.draw(sample)
            for cell in itertools.product(*grids.values()):
                values = {**drawn, **dict(zip(grids, cell, strict=True))}
                point = Point({key: values[key] for key in self.space})
                points.setdefault(point.id, point)
        return list(points.values())

    def draw(self, sample: int) -> dict[str, Scalar]:
        """Sample the keys that are not grids."""
        generator = np.random.default_rng([self.search_seed, sample])
        return {key: axis.draw(generator) for key, axis in self.space.items() if axis.kind != "grid"}


def load_study(path: Path | str, budget: str | None = None) -> Study:
    """Read and check a study.

    Args:
        path: YAML file.
        budget: One of the file's ``budgets``, whose entries override the study's own: ``base`` and ``space`` entry by
            entry (``null`` removes a key from the space), the rest as a whole. Required if the file has budgets.

    Raises:
        StudyError: If the study is invalid; the message has the path, the key and the way out.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(f"{path} must be a study, got no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} must be YAML, got {error}") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path} must be a mapping with `name:`, got {type(raw).__name__}")
    return parse_study(raw, budget, where=str(path))


def parse_study(raw: Mapping[str, Any], budget: str | None = None, where: str = "study") -> Study:
    """Parse the content of a study file; see ``load_study``."""
    content = deepcopy(dict(raw))
    budgets = content.pop("budgets", None) or {}
    try:
        if "budget" in content:
            raise ValueError("budget must be chosen when the study is run, not in its file; `budgets:` lists them")
        content = _apply_budget(content, budgets, budget)
        return Study.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"{where}: {_one_line(error)}") from error
    except ValueError as error:
        raise StudyError(f"{where}: {error}") from error


def _apply_budget(content: dict[str, Any], budgets: Any, budget: str | None) -> dict[str, Any]:
    if not isinstance(budgets, Mapping) or not all(isinstance(entry, Mapping) for entry in budgets.values()):
        raise ValueError(f"budgets must map a name such as small to the entries that it changes, got {budgets!r}")
    if budget is None and budgets:
        raise ValueError(f"budget must be one of {sorted(budgets)}, got none")
    if budget is None:
        return content
    if budget not in budgets:
        raise ValueError(f"budget must be one of {sorted(budgets)}, got {budget!r}")
    changes = deepcopy(dict(budgets[budget]))
    if unknown := changes.keys() - set(PARTS_OF_A_BUDGET):
        raise ValueError(f"entries of budget {budget} must be in {', '.join(PARTS_OF_A_BUDGET)}, got {sorted(unknown)}")
    base, space = changes.pop("base", []), changes.pop("space", {})
    if not isinstance(base, list) or not isinstance(space, Mapping):
        raise ValueError(  # noqa: TRY004
            f"base and space of budget {budget} must be a list of key=value and a mapping, got {base!r} and {space!r}"
        )
    merged = {**content, **changes, "budget": budget, "base": [*content.get("base", []), *base]}
    space = {**content.get("space", {}), **space}
    return {**merged, "space": {key: axis for key, axis in space.items() if axis is not None}}


def _one_line(error: ValidationError) -> str:
    messages = []
    for detail in error.errors(include_url=False):
        place = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "unknown key"
        elif detail["type"] == "missing":
            message = "missing"
        elif detail["type"] != "value_error":
            message = f"{message}, got {detail['input']!r}"
        messages.append(f"{place}: {message}" if place else message)
    return "; ".join(messages)


def trial_id(point: Point, seed: int) -> str:
    """Folder name of one trial: a point run with one seed."""
    return digest({"params": point.params, "seed": seed})


def digest(content: Any, length: int = 12) -> str:
    """Hash JSON-like content to hexadecimal digits, ignoring the order of keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return text_sha256(text)[:length]


def short_name(key: str) -> str:
    """Last part of a dotted key."""
    return key.rsplit(".", 1)[-1]


def format_value(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
