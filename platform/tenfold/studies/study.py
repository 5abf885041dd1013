"""A study as a person writes it: which of a job's keys vary, over what, judged how, drawn how.

A study is a YAML file in ``tune_spaces/``. Its space names dotted keys of the job, so that every trial is a plain
job and the job's own schema checks it. Kinds of values are words from a table, never the name of code. Nothing here
needs Ray: loading, checking and expanding a study is plain Python.
"""

import hashlib
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
    """A study that cannot run as written; the message names the file, the key and the way out."""


@dataclass(frozen=True)
class Point:
    """One setting of the swept keys; it is judged by the mean over the study's seeds."""

    params: dict[str, Scalar]
    """Job key to value."""
    baseline: str = ""
    """Name, for a setting that the study names beside its space to compare against."""

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend on the parameters alone."""
        return digest(self.params)

    @property
    def label(self) -> str:
        """For people: the name of a baseline, else ``scheme=LL-R, delta_rel_percent=1.5``."""
        if self.baseline:
            return self.baseline
        return ", ".join(f"{short_name(key)}={format_value(value)}" for key, value in self.params.items())


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Asha(_Model):
    """Asynchronous successive halving (Li et al., MLSys 2020): the weaker points stop early.

    A point is stopped, never one of its seeds: its first seed reports every epoch, and the other seeds run once that
    one has come through. Stopping single seeds would leave weak points with the mean of their luckiest seeds.
    """

    max_epochs: int = Field(ge=1)
    """Epochs of a whole trial."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs that every point gets."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """One in this many points goes on at each rung."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grace_epochs > self.max_epochs:
            raise ValueError(f"grace_epochs must not exceed max_epochs = {self.max_epochs}, got {self.grace_epochs}")
        return self


class Resources(_Model):
    """What one trial holds while it runs."""

    cpu: float = Field(default=1.0, gt=0, strict=False)
    gpu: float = Field(default=0.0, ge=0, strict=False)


class Figure(_Model):
    """One figure of the report.

    Points that agree in everything a figure shows are reduced to the best of them; the figure says so.
    """

    kind: Literal["line", "bar", "heatmap", "curves"]
    """line, bar: metric over ``x``; a bar without ``x``: the best point and the baselines, in the order of the metric;
    heatmap: metric over ``x`` and ``y``; curves: metric over epochs."""
    name: str = ""
    """File name without ending; made from the kind and the axes where empty."""
    x: str = ""
    """A swept key; curves have the epoch."""
    y: str = ""
    """heatmap: a swept key."""
    hue: str = ""
    """A swept key: one colour for each of its values."""
    metric: str = ""
    """What is drawn; the study's metric where empty."""
    title: str = ""
    baselines: list[str] | None = None
    """Names of the baselines that are drawn; null: all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs = {"line": ("x",), "bar": (), "heatmap": ("x", "y"), "curves": ()}[self.kind]
        for field in ("x", "y"):
            if field in needs and not getattr(self, field):
                raise ValueError(f"a {self.kind} needs {field}: the name of a swept key")
            if field not in needs and getattr(self, field) and (self.kind, field) != ("bar", "x"):
                raise ValueError(f"a {self.kind} takes no {field}; its metric is named by `metric`")
        if self.kind == "bar" and self.hue and not self.x:
            raise ValueError("a bar without x shows the best point beside the baselines and takes no hue")
        if self.kind == "heatmap" and self.hue:
            raise ValueError("a heatmap takes no hue: its colour is the metric")
        return self

    @property
    def file_name(self) -> str:
        parts = [self.kind, self.metric, *(short_name(key) for key in (self.x, self.y, self.hue))]
        return self.name or re.sub(r"[^A-Za-z0-9]+", "_", "_".join(part for part in parts if part))


class Study(_Model):
    """A study that exists is a consistent one; whether the job knows its keys is for ``studies.jobs.check_study``."""

    name: str
    """Letters, digits, ``_`` and ``-``: names the folder and the tracked run."""
    description: str = ""
    base: list[str] = Field(default_factory=list)
    """``key=value`` overrides of the job that every trial shares."""
    space: dict[str, Axis]
    """Job key to the values it takes, at least one key."""
    baselines: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    """Name to job keys and values: settings outside the space that the report compares with."""
    seeds: list[int] = Field(default_factory=lambda: [0])
    """Every point is run with each of them."""
    seed_key: str = "run.seed"
    """Key of the job that takes the seed."""
    search: Literal["grid", "random", "optuna"]
    """grid: every combination; random: independent draws; optuna: tree-structured Parzen estimator."""
    num_samples: int | None = Field(default=None, ge=1)
    """Points drawn by random and optuna; a grid has as many as it has."""
    search_seed: int = Field(default=0, ge=0)
    """Seed of the draws."""
    scheduler: Asha | None = None
    """Stops weak points early; needs the metric once every epoch."""
    metric: str
    """What selects the best point. Take a validation metric: ``also`` reports the test metric beside it."""
    mode: Literal["max", "min"] = "max"
    also: list[str] = Field(default_factory=list)
    """Further metrics in the table, not used to select."""
    resources: Resources = Resources()
    max_concurrent_trials: int = Field(default=1, ge=1)
    figures: list[Figure] = Field(default_factory=list)
    budget: str = ""
    """Which of the file's budgets this is; empty without one."""

    @field_validator("space", mode="before")
    @classmethod
    def _parse_space(cls, space: Any) -> Any:
        if not isinstance(space, Mapping):
            raise ValueError(f"space maps keys of the job to values, got {space!r}")  # noqa: TRY004, pydantic's way
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
        raise ValueError(f"scheduler is `none` or `{{asha: {{max_epochs: 10}}}}`, got {scheduler!r}")

    @field_validator("baselines", mode="before")
    @classmethod
    def _parse_baselines(cls, baselines: Any) -> Any:
        if not isinstance(baselines, Mapping) or not all(isinstance(values, Mapping) for values in baselines.values()):
            raise ValueError(f"baselines map a name to keys of the job and their values, got {baselines!r}")
        return {
            name: {key: as_scalar(value, f"{name}: {key}") for key, value in values.items()}
            for name, values in baselines.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, _ and -, at most 64, got {self.name!r}")
        if not self.space:
            raise ValueError("space is empty: name at least one key of the job and its values")
        for key in (*self.space, *(key for values in self.baselines.values() for key in values), self.seed_key):
            if not KEY.fullmatch(key):
                raise ValueError(f"{key!r} is not a key of a job such as method.learning_rate")
        if self.seed_key in self.space or any(self.seed_key in values for values in self.baselines.values()):
            raise ValueError(f"{self.seed_key} is set from `seeds`: list its values there, not in the space")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct whole numbers from 0 on, got {self.seeds}")
        for override in self.base:
            if "=" not in override or override.startswith("+"):
                raise ValueError(f"base holds overrides such as run.num_epochs=5, got {override!r}")
        if not self.metric:
            raise ValueError("metric is empty: name the metric of the job that selects the best point")
        self._check_search()
        self._check_figures()
        return self

    def _check_search(self) -> None:
        for key, axis in self.space.items():
            if self.search == "grid" and axis.kind != "grid":
                raise ValueError(
                    f"a grid search cannot enumerate {axis.kind} ({key}): write `grid: [...]`, or search: random"
                )
            if self.search == "optuna" and axis.kind == "grid":
                raise ValueError(f"optuna takes no grid ({key}): write `choice: {list(axis.values)}`")
        if self.search == "grid" and self.num_samples is not None:
            raise ValueError("a grid search runs every combination: leave num_samples out, or search: random")
        if self.search != "grid" and self.num_samples is None:
            raise ValueError(f"search: {self.search} needs num_samples: how many points to draw")
        if self.search == "random" and all(axis.kind == "grid" for axis in self.space.values()):
            raise ValueError("a random search over grids alone draws nothing: write search: grid, or `choice: [...]`")

    def _check_figures(self) -> None:
        for figure in self.figures:
            for key in (figure.x, figure.y, figure.hue):
                if key and key not in self.space:
                    raise ValueError(
                        f"a {figure.kind} names {key!r}, which the space does not sweep: {list(self.space)}"
                    )
            for field in ("y", "hue"):
                key = getattr(figure, field)
                if key and not self.space[key].is_listed:
                    raise ValueError(f"a {figure.kind} takes listed values as {field}, {key} is {self.space[key].kind}")
            unknown = sorted(set(figure.baselines or ()) - set(self.baselines))
            if unknown:
                raise ValueError(f"a {figure.kind} draws baselines that the study has not: {unknown}")
            if figure.kind in ("heatmap", "bar") and figure.x and not self.space[figure.x].is_listed:
                raise ValueError(f"a {figure.kind} takes listed values as x, {figure.x} is {self.space[figure.x].kind}")
        names = [figure.file_name for figure in self.figures]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"a figure's name becomes a file name: letters, digits, _ and -, got {name!r}")
            if names.count(name) > 1:
                raise ValueError(f"two figures are called {name!r}: give one of them another `name`")

    @property
    def metrics(self) -> list[str]:
        """The metric that selects, then those that are reported beside it."""
        return [self.metric, *(name for name in self.also if name != self.metric)]

    @property
    def num_points(self) -> int:
        """Points of the space, baselines not counted."""
        grids = [len(axis.values) for axis in self.space.values() if axis.kind == "grid"]
        return math.prod(grids) * (self.num_samples or 1)

    def better(self, first: float, second: float) -> bool:
        """Whether the first value of the metric beats the second; nothing beats a number less than no number."""
        if math.isnan(first) or math.isnan(second):
            return math.isnan(second) and not math.isnan(first)
        return first > second if self.mode == "max" else first < second

    def baseline_points(self) -> list[Point]:
        return [Point(dict(values), name) for name, values in self.baselines.items()]

    def planned_points(self) -> list[Point]:
        """The points of a grid or random search, in order; an optuna search makes its own as it goes.

        Draw number i depends on ``search_seed`` and i alone: more samples later keep the earlier points. The cells
        of a grid inside a random search share their draws, which makes their comparison a paired one.
        """
        if self.search == "optuna":
            raise ValueError("an optuna search has no points before it runs")
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
        """Values of the keys that are drawn, not gridded."""
        generator = np.random.default_rng([self.search_seed, sample])
        return {key: axis.draw(generator) for key, axis in self.space.items() if axis.kind != "grid"}


def load_study(path: Path | str, budget: str | None = None) -> Study:
    """Read and check a study.

    Args:
        path: YAML file.
        budget: One of the file's ``budgets``, whose entries go over the study's own: ``base`` and ``space`` entry by
            entry (``null`` takes a key out of the space), the rest as a whole. A file with budgets needs one.

    Raises:
        StudyError: With the path, what is wrong and the way out.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such study") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path}: a study is a mapping that starts with `name:`, got {type(raw).__name__}")
    return parse_study(raw, budget, where=str(path))


def parse_study(raw: Mapping[str, Any], budget: str | None = None, where: str = "study") -> Study:
    """A study from the content of its file; see ``load_study``."""
    content = deepcopy(dict(raw))
    budgets = content.pop("budgets", None) or {}
    try:
        if "budget" in content:
            raise ValueError("budget is chosen when the study is run; `budgets:` lists them")
        content = _apply_budget(content, budgets, budget)
        return Study.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"{where}: {_one_line(error)}") from error
    except ValueError as error:
        raise StudyError(f"{where}: {error}") from error


def _apply_budget(content: dict[str, Any], budgets: Any, budget: str | None) -> dict[str, Any]:
    if not isinstance(budgets, Mapping) or not all(isinstance(entry, Mapping) for entry in budgets.values()):
        raise ValueError("budgets map a name such as small to the entries that it changes")
    if budget is None and budgets:
        raise ValueError(f"choose one of the budgets {sorted(budgets)}")
    if budget is None:
        return content
    if budget not in budgets:
        raise ValueError(f"there is no budget {budget!r}, only {sorted(budgets)}")
    changes = deepcopy(dict(budgets[budget]))
    if unknown := changes.keys() - set(PARTS_OF_A_BUDGET):
        raise ValueError(f"budget {budget} cannot change {sorted(unknown)}, only {', '.join(PARTS_OF_A_BUDGET)}")
    base, space = changes.pop("base", []), changes.pop("space", {})
    if not isinstance(base, list) or not isinstance(space, Mapping):
        raise ValueError(f"budget {budget}: base is a list of key=value, space a mapping")  # noqa: TRY004
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
    """Name of the folder of one trial: a point run with one seed."""
    return digest({"params": point.params, "seed": seed})


def digest(content: Any, length: int = 12) -> str:
    """Hexadecimal digits of a hash of JSON-like content; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def short_name(key: str) -> str:
    """Last part of a dotted key."""
    return key.rsplit(".", 1)[-1]


def format_value(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
