"""Requests to regression models: named inputs and the level of the interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.limits import invalid
from serve.settings import ServeSettings
from tenfold.types import TensorSchema

LEVEL = "level"
LOWER, UPPER = "lower", "upper"
"""Outputs, shaped like ``mean``: bounds of the central interval that contains the target with probability ``level``."""
BYTES_PER_NUMBER, BYTES_PER_NUMBER_IN_JSON = 4, 25  # at most, with sign, comma and space
_KINDS = {"float32": "iuf", "int64": "iu", "uint8": "iu"}


@dataclass(frozen=True)
class Regression:
    """One regression request."""

    inputs: Mapping[str, np.ndarray]
    """Input name to values, first axis N."""
    level: float | None = None
    """Level of the interval in (0, 1); None: no interval."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def num_values(self) -> int:
        """Number of values in all inputs."""
        return sum(values.size for values in self.inputs.values())


def read_level(value: Any) -> float | None:
    """Read a level from JSON or a query; None if there is none.

    Raises:
        RefusedError: 422 for anything but a number in (0, 1).
    """
    if value is None:
        return None
    try:
        level = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        level = math.nan
    if not 0 < level < 1:
        raise invalid(f"{LEVEL!r} must be a number between 0 and 1, such as 0.9, got {repr(value)[:80]}", LEVEL)
    return level


def numbers(name: str, data: Any, dtype: str) -> np.ndarray:
    """Convert nested JSON lists to an array.

    Raises:
        RefusedError: 422 for ragged lists, for values that are not numbers, and for numbers out of the type's range.
    """
    try:
        values = np.asarray(data)
    except ValueError as error:  # nested lists of different lengths
        raise invalid(f"{name!r} must be nested lists of one length in each axis: {error}") from error
    if values.dtype.kind not in _KINDS[dtype] and values.size:
        kind = "numbers" if dtype == "float32" else "whole numbers"
        raise invalid(f"{name!r} must hold {kind} that {dtype} can hold, got {values.dtype}")
    if dtype != "float32" and values.size:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise invalid(f"{name!r} must hold {dtype}, got {values.min()} to {values.max()}")
    with np.errstate(over="ignore"):  # overflow becomes infinite, which is refused later
        return values.astype(dtype)


def misfit(inputs: Mapping[str, np.ndarray], schemas: Sequence[TensorSchema]) -> str | None:
    """Reason why inputs (first axis N) do not match the schemas; None if they do."""
    names = [schema.name for schema in schemas]
    if sorted(inputs) != sorted(names):
        return f"the inputs must be {', '.join(names)}, got {', '.join(sorted(inputs)) or 'none'}"
    for schema in schemas:
        values = inputs[schema.name]
        shape = ",".join(["N", *("any" if length < 0 else str(length) for length in schema.shape)])
        fits = values.ndim == len(schema.shape) + 1 and all(
            wanted in (-1, length) for wanted, length in zip(schema.shape, values.shape[1:], strict=True)
        )
        if not fits or 0 in values.shape or values.dtype != schema.dtype:
            got = f"{values.dtype} {list(values.shape)}"
            return f"{schema.name!r} must be {schema.dtype} [{shape}], each length at least 1, got {got}"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"{schema.name!r} must hold finite float32 numbers, got NaN or infinite ones"
    counts = {name: len(values) for name, values in inputs.items()}
    return f"all inputs must have one row for each example, got {counts}" if len(set(counts.values())) > 1 else None


def check_request(asked: Regression, schemas: Sequence[TensorSchema], settings: ServeSettings) -> Regression:
    """Return the request if it matches the schemas and is within the limits.

    Raises:
        RefusedError: 422, naming what was expected.
    """
    if message := misfit(asked.inputs, schemas):
        raise invalid(message)
    if len(asked) > settings.max_images:
        raise invalid(f"a request may have at most {settings.max_images} examples, got {len(asked)}", "batch_size")
    if asked.num_values > settings.max_values:
        raise invalid(
            f"the inputs of a request may hold at most {settings.max_values} numbers, got {asked.num_values}", "size"
        )
    return asked


def check_reply(num_values: int, in_json: bool, settings: ServeSettings) -> None:
    """Raise ``RefusedError`` (422) if a reply would be too large."""
    size = num_values * (BYTES_PER_NUMBER_IN_JSON if in_json else BYTES_PER_NUMBER)
    if size > settings.max_reply_bytes:
        way_out = "ask for fewer examples or outputs" + (", or for raw bytes over v2" if in_json else "")
        raise invalid(
            f"the reply would take up to {size} bytes, and may take {settings.max_reply_bytes}; {way_out}", "size"
        )
