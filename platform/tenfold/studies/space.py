"""Axes of a study's search space: kinds, values or ranges, and sampling."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Scalar = bool | int | float | str | None
LISTED = ("grid", "choice")
RANGES = {"uniform": 2, "loguniform": 2, "quniform": 3, "randint": 2, "lograndint": 2}


@dataclass(frozen=True)
class Axis:
    """Values of one key.

    ``grid`` lists values that are all run, ``choice`` values to sample from. ``uniform`` and ``loguniform`` are ranges
    [low, high] of real numbers, ``quniform`` [low, high, step] is a range of multiples of the step, ``randint`` and
    ``lograndint`` are ranges [low, high) of integers, as in Ray Tune.
    """

    kind: str
    values: tuple[Any, ...]
    """The listed values, or the ends of the range (and the step)."""

    @classmethod
    def parse(cls, raw: Any, key: str) -> "Axis":
        """Parse an axis from ``{kind: [...]}``; ``key`` is used in messages.

        Raises:
            ValueError: If the kind is unknown or its arguments do not fit.
        """
        kinds = [*LISTED, *RANGES]
        if not isinstance(raw, Mapping) or len(raw) != 1:
            raise ValueError(f"{key} must be one of {', '.join(kinds)} with a list, got {raw!r}")
        ((kind, arguments),) = raw.items()
        if kind not in kinds:
            raise ValueError(f"the kind of {key} must be one of {', '.join(kinds)}, got {kind!r}")
        if not isinstance(arguments, list | tuple) or not arguments:
            raise ValueError(f"{kind} of {key} must be a list, got {arguments!r}")
        values = tuple(as_scalar(value, key) for value in arguments)
        if kind in LISTED:
            if len({(type(value), value) for value in values}) != len(values):
                raise ValueError(f"{kind} of {key} must list distinct values, got {list(values)}")
        else:
            _check_range(kind, values, key)
        return cls(kind, values)

    @property
    def is_listed(self) -> bool:
        """Whether the axis has a list of values, not a range."""
        return self.kind in LISTED

    @property
    def is_log(self) -> bool:
        """Whether the axis is sampled on a logarithmic scale."""
        return self.kind.startswith("log")

    @property
    def is_numeric(self) -> bool:
        """Whether every value is a number, so that the axis has a scale."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def corners(self) -> list[Scalar]:
        """Every listed value, or the first and last of the range."""
        if self.is_listed:
            return list(self.values)
        low, high = self.values[:2]
        return [low, high - 1 if self.kind.endswith("randint") else high]

    def holds(self, value: Scalar) -> bool:
        """Return True if a value lies on the axis; a step is ignored."""
        if self.is_listed:
            return any(type(value) is type(each) and value == each for each in self.values)
        low, high = self.corners
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # type: ignore[operator]

    def draw(self, generator: np.random.Generator) -> Scalar:
        """Sample one value; real numbers are rounded to six significant digits, so that tables show the exact value."""
        if self.is_listed:
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values[:2]
        if self.kind == "randint":
            return int(generator.integers(low, high))
        if self.kind == "quniform":
            step = self.values[2]
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            return _rounded(int(generator.integers(first, last + 1)) * step, low, high)
        if not self.is_log:
            return _rounded(generator.uniform(low, high), low, high)
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
        return min(int(value), high - 1) if self.kind == "lograndint" else _rounded(value, low, high)


def as_scalar(value: Any, key: str) -> Scalar:
    """Check that a value is allowed in a job's config.

    Raises:
        ValueError: If it is a list or mapping, not finite, or a string that looks like a number.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"values of {key} must be finite, got {value}")
        return value
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a number, a string, true, false or null, got {value!r}")  # noqa: TRY004
    try:
        number = float(value)
    except ValueError:
        return value
    # YAML 1.1 reads 1e-4 as a string, which would fail in the job, hours later.
    way_out = f"{number:.1e}" if "e" in value.lower() else value
    raise ValueError(f"{key} must be a number, got the string {value!r}; write {way_out} without quotes")


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.6g}"), low), high)


def _check_range(kind: str, values: tuple[Any, ...], key: str) -> None:
    count = RANGES[kind]
    form = "[low, high, step]" if count == 3 else "[low, high]"
    if len(values) != count or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{kind} of {key} must be {form}, got {list(values)}")
    low, high = values[:2]
    if low >= high:
        raise ValueError(f"low of {key} must be less than high, got {list(values)}")
    if kind.endswith("randint") and not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"{kind} of {key} must have integers, got {list(values)}")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"low of {key} must be above 0 for {kind}, got {list(values)}")
    if kind == "quniform" and (values[2] <= 0 or math.floor(high / values[2]) < math.ceil(low / values[2])):
        raise ValueError(f"the step of {key} must have a multiple in its range, got {list(values)}")
