"""Tabular data: numeric inputs and numeric targets."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.regression import PARTS, ArraySource, RegressionData, check_finite, digest_of
from tenfold.tasks import Slot


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Table, columns to predict and split."""

    name: str = "table"
    """Fixed; selects this data set."""
    file: str | None = None
    """CSV with a header and numbers; None: 442 diabetes patients, which scikit-learn ships (ten measurements, and the
    progression of the disease after a year)."""
    targets: tuple[str, ...] = ("progression",)
    """Names of the target columns; all others are inputs."""
    val_fraction: float = 0.15
    """Share of rows for validation, in (0, 1)."""
    test_fraction: float = 0.25
    """Share of rows for testing, in (0, 1)."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        if self.name != "table" or not self.targets or self.seed < 0:
            raise ValueError(
                f"name must be 'table', targets at least one and seed at least 0, "
                f"got {self.name!r}, {self.targets} and {self.seed}"
            )
        if min(self.val_fraction, self.test_fraction) <= 0 or self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction and test_fraction must be positive with a sum below 1, "
                f"got {self.val_fraction} and {self.test_fraction}"
            )


def load_table(config: TableConfig) -> RegressionData:
    """Load the table with a random split of its rows; inputs are standardised by the training rows.

    Raises:
        ValueError: The file is missing or malformed (with its line), a target is not a column, there are no input
            columns, or there are too few rows.
    """
    columns, values = _diabetes() if config.file is None else read_table(Path(config.file))
    if unknown := [name for name in config.targets if name not in columns]:
        raise ValueError(f"data.targets must be among the columns {', '.join(columns)}, got {unknown[0]!r}")
    inputs = [index for index, name in enumerate(columns) if name not in config.targets]
    if not inputs:
        raise ValueError(f"data.targets must leave some of the columns {', '.join(columns)} as inputs, got all")
    order = np.random.default_rng(config.seed).permutation(len(values))
    num_test, num_val = (int(len(values) * share) for share in (config.test_fraction, config.val_fraction))
    if min(num_test, num_val) < 1:
        raise ValueError(f"{len(values)} rows are too few for a validation and a test part")
    rows = {
        "test": order[:num_test],
        "val": order[num_test : num_test + num_val],
        "train": order[num_test + num_val :],
    }
    training = values[rows["train"]][:, inputs]
    mean, std = training.mean(axis=0), training.std(axis=0)
    std[std == 0] = 1.0
    predicted = [columns.index(name) for name in config.targets]
    sources = {
        part: ArraySource({"input": (values[rows[part]][:, inputs] - mean) / std}, values[rows[part]][:, predicted])
        for part in PARTS
    }
    return RegressionData(
        name=config.name,
        network="mlp",
        inputs=(Slot(name="input", dtype="float32", shape=(len(inputs),)),),
        targets=config.targets,
        train=sources["train"],
        val=sources["val"],
        test=sources["test"],
        fingerprint=digest_of(columns, values, config.targets, config.val_fraction, config.test_fraction, config.seed),
    )


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Read column names and numbers, float32 ``(N, columns)``, of a CSV file with a header.

    Raises:
        ValueError: It is missing, a column has no name or is repeated, a line has another length or a field that is not
            a finite number; with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    if len(lines) < 2:
        raise ValueError(f"{path} must have a header and at least one row")
    columns = [name.strip() for name in lines[0]]
    if "" in columns or len(set(columns)) < len(columns):
        raise ValueError(f"{path}: every column needs a name of its own, got {', '.join(columns)}")
    rows = [_numbers(path, number, line, len(columns)) for number, line in enumerate(lines[1:], 2) if line]
    values = np.array(rows, dtype=np.float32)
    check_finite(values, str(path))
    return columns, values


def _numbers(path: Path, number: int, line: Sequence[str], length: int) -> list[float]:
    if len(line) != length:
        raise ValueError(f"{path}, line {number}: expected {length} values as in the header, got {len(line)}")
    try:
        return [float(value) for value in line]
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


def _diabetes() -> tuple[list[str], np.ndarray]:
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    values = np.column_stack([table.data, table.target]).astype(np.float32)
    return [*table.feature_names, "progression"], values
