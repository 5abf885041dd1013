"""Regression data: named inputs with real-valued targets, the type that every loader returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from tenfold.hashing import bytes_sha256
from tenfold.tasks import Slot
from tenfold.types import Batch

TARGETS = "targets"
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
Network = Literal["mlp", "cnn1d", "cnn2d_sr", "unet2d", "egnn"]


class RegressionSource(Protocol):
    """Examples of one part of a data set."""

    def __len__(self) -> int: ...

    def read(self, rows: "np.ndarray | Sequence[int]") -> Batch:
        """Return every input by its name, and ``targets`` float32 ``(B, ...)``."""
        ...


class ArraySource:
    """Examples in memory.

    Args:
        inputs: Arrays by name, first axis N.
        targets: float32 ``(N, ...)``, the channel axis first.

    Raises:
        ValueError: Arrays of different lengths, no example, or targets that are not float32 or not finite.
    """

    def __init__(self, inputs: Mapping[str, np.ndarray], targets: np.ndarray) -> None:
        lengths = {name: len(array) for name, array in {**inputs, TARGETS: targets}.items()}
        if len(set(lengths.values())) != 1 or not len(targets):
            raise ValueError(f"inputs and targets must have one row for each example, at least one, got {lengths}")
        check_finite(targets, TARGETS)
        self._arrays = {**inputs, TARGETS: targets}

    def __len__(self) -> int:
        return len(self._arrays[TARGETS])

    def read(self, rows: "np.ndarray | Sequence[int]") -> Batch:
        return {name: torch.from_numpy(np.ascontiguousarray(array[rows])) for name, array in self._arrays.items()}


class PairFiles:
    """Examples as pairs of ``.npy`` files, read lazily.

    Args:
        inputs: Input file of each example, float32 ``(C, ...)``, all of one shape.
        targets: Target file of each example.

    Raises:
        ValueError: No pair, or different numbers of inputs and targets; in ``read``, a file that is not ``.npy``, or
            with another shape, another dtype or values that are not finite, with its path.
    """

    def __init__(self, inputs: Sequence[Path], targets: Sequence[Path]) -> None:
        if not inputs or len(inputs) != len(targets):
            raise ValueError(
                f"there must be as many inputs as targets, at least one, got {len(inputs)} and {len(targets)}"
            )
        self._paths = {"input": list(inputs), TARGETS: list(targets)}
        self._shapes = {name: load_array(paths[0]).shape for name, paths in self._paths.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of ``input`` and ``targets`` without the example axis."""
        return self._shapes

    def __len__(self) -> int:
        return len(self._paths[TARGETS])

    def read(self, rows: "np.ndarray | Sequence[int]") -> Batch:
        return {name: torch.stack([self._one(name, paths[row]) for row in rows]) for name, paths in self._paths.items()}

    def _one(self, name: str, path: Path) -> Tensor:
        array = load_array(path)
        if array.shape != self._shapes[name]:
            raise ValueError(f"{path} must have the shape {self._shapes[name]} of the first one, got {array.shape}")
        return torch.from_numpy(array)


@dataclass(frozen=True, kw_only=True)
class RegressionData:
    """A data set ready for regression with uncertainty."""

    name: str
    network: Network
    """The architecture that the published experiments use for such data."""
    inputs: tuple[Slot, ...]
    targets: tuple[str, ...]
    """Names of the channels (first axis after the example's) of the targets, with units in brackets."""
    train: RegressionSource
    val: RegressionSource
    test: RegressionSource
    fingerprint: str
    """Hex digest of everything that determines the examples."""
    max_value: float | None = None
    """Largest possible pixel value; None where the targets are not images."""
    upscale: int = 1
    """Factor by which the targets are larger than the input along each spatial axis."""

    def __post_init__(self) -> None:
        if not self.targets or not self.inputs:
            raise ValueError(f"{self.name} needs at least one input and one target")

    def part(self, name: Part) -> RegressionSource:
        """Return one of the three parts."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


class GeneratedConfig:
    """Base of the settings of data sets that are generated: the counts of the parts, and the checks all of them share.

    It declares no dataclass fields: inherited ones would come first, and their order enters the fingerprint.

    Raises:
        ValueError: Another name than the data set's own, a count below 1, or a negative seed.
    """

    name: str
    num_train: int
    num_val: int
    num_test: int
    seed: int

    def __post_init__(self) -> None:
        if self.name != type(self).name:
            raise ValueError(f"name must be {type(self).name!r}, got {self.name!r}")
        for part, count in self.counts.items():
            if count < 1:
                raise ValueError(f"num_{part} must be at least 1, got {count}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    def counts(self) -> dict[Part, int]:
        """Number of examples of each part."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}


def load_array(path: Path) -> np.ndarray:
    """Load a ``.npy`` file as float32.

    Raises:
        ValueError: It is missing, not an array of numbers, or holds values that are not finite, with its path.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} must be a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold one array of numbers, got {getattr(array, 'dtype', type(array).__name__)}")
    array = array.astype(np.float32)
    check_finite(array, str(path))
    return array


def check_finite(values: np.ndarray, name: str) -> None:
    """Refuse values that are not finite float32.

    Raises:
        ValueError: Another dtype, or NaN or infinite values; says how many and where the first is.
    """
    if values.dtype != np.float32:
        raise ValueError(f"{name} must be float32, got {values.dtype}")
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name} must be finite, got {int(wrong.sum())} values that are not, the first at {first}; "
            f"drop these examples or impute them"
        )


def digest_of(*parts: object) -> str:
    """Return the hex digest of texts, numbers and arrays, in their order."""
    return bytes_sha256(
        (part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()) + b"/" for part in parts
    )


def digest_of_files(paths: Sequence[Path], *parts: object) -> str:
    """Return the hex digest of files by name, size and modification time, which is quick, and of further settings."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return digest_of(stats, *parts)
