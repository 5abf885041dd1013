"""Concept predictions of any model, stored in one NumPy file: data for realigning a model that we did not train.

The file (``.npz``, without pickles) holds for each part ``train``, ``val`` and ``test``: ``PART_concept_probs``, the
predicted probabilities, float ``(N, K)``; ``PART_concepts``, the true concepts in {0, 1}, ``(N, K)``; and
``PART_labels``, the class of each example, ``(N,)``. It may also hold ``concept_names`` and ``class_names``, texts;
``group_of_concept``, the name of each concept's group, texts ``(K,)``; and ``sha256``, the hex digest of the bytes of
the nine arrays as float64, int64 and int64, in C order, part by part as listed here.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.data.concepts import PARTS, ConceptData, ConceptSplit, PredictedConcepts
from tenfold.hashing import bytes_sha256
from tenfold.types import Preprocessing

_MOST_CLASSES = 100_000
_ARRAYS = (("concept_probs", np.float64), ("concepts", np.int64), ("labels", np.int64))


@dataclass(frozen=True, kw_only=True)
class ConceptPredictionsConfig:
    """Place of the file."""

    name: str = "concept_predictions"
    """Fixed; selects this data set."""
    predictions: str
    """File of predictions (``.npz``)."""
    costs: dict[str, float] | None = None
    """Cost of asking a group, or a concept where there are no groups; None: each costs 1."""

    def __post_init__(self) -> None:
        if self.name != "concept_predictions":
            raise ValueError(f"name must be 'concept_predictions', got {self.name!r}")
        if not self.predictions.endswith(".npz"):
            raise ValueError(f"predictions must be a .npz file, got {self.predictions!r}")


def load_concept_predictions(
    config: ConceptPredictionsConfig, preprocessing: Preprocessing, train_size: int | None = None
) -> ConceptData:
    """Load stored predictions; the other arguments, which are about images, have no effect.

    Raises:
        ValueError: The file is missing, holds other arrays or values, or was changed.
    """
    path = Path(config.predictions)
    stored = _read(path)
    digest = bytes_sha256(stored[f"{part}_{name}"].tobytes() for part in PARTS for name, _ in _ARRAYS)
    if "sha256" in stored and str(stored["sha256"]) != digest:
        raise ValueError(f"{path} must have the sha256 {stored['sha256']} that it names, got {digest}; was it changed?")
    num_concepts = stored["train_concepts"].shape[1]
    names = _names(path, stored, "concept_names", num_concepts, "concept")
    num_classes = 1 + max(int(stored[f"{part}_labels"].max()) for part in PARTS)
    if num_classes > _MOST_CLASSES:
        raise ValueError(
            f"{path}: labels must be below {_MOST_CLASSES}, got {num_classes - 1}; number the classes from 0"
        )
    classes = _names(path, stored, "class_names", num_classes, "class")
    groups: dict[str, list[int]] = {}
    if "group_of_concept" in stored:
        for column, group in enumerate(_names(path, stored, "group_of_concept", num_concepts, "")):
            groups.setdefault(group, []).append(column)
    return ConceptData(
        name=config.name,
        concepts=names,
        classes=classes,
        train=_split(path, stored, "train"),
        val=_split(path, stored, "val"),
        test=_split(path, stored, "test"),
        image_size=preprocessing.image_size,
        fingerprint=bytes_sha256([json.dumps([names, classes, groups]).encode(), digest.encode()]),
        groups={name: tuple(columns) for name, columns in groups.items()} or None,
        costs=config.costs or {},
        predicted=True,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays, each checked for its shape and converted to its type."""
    if not path.is_file():
        raise ValueError(f"predictions must be an existing file, got {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be a .npz file of numbers and texts: {error}") from error
    wanted = [f"{part}_{name}" for part in PARTS for name, _ in _ARRAYS]
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ValueError(f"{path} must hold {', '.join(wanted)}; it lacks {', '.join(missing)}")
    num_concepts = stored["train_concept_probs"].shape[-1]
    for part in PARTS:
        length = len(stored[f"{part}_labels"]) if stored[f"{part}_labels"].ndim else 0
        for name, dtype in _ARRAYS:
            array = stored[f"{part}_{name}"]
            shape = (length,) if name == "labels" else (length, num_concepts)
            if array.shape != shape or not length:
                raise ValueError(f"{path}: {part}_{name} must be {shape} with at least one row, got {array.shape}")
            if array.dtype.kind not in "fiub" or not (array == array.astype(dtype)).all():
                kind = "numbers" if dtype == np.float64 else "whole numbers"
                raise ValueError(f"{path}: {part}_{name} must hold {kind}, got {array.dtype} or NaN")
            stored[f"{part}_{name}"] = np.ascontiguousarray(array.astype(dtype))
    return stored


def _names(path: Path, stored: Mapping[str, np.ndarray], key: str, number: int, what: str) -> tuple[str, ...]:
    if key not in stored:
        return tuple(f"{what} {index}" for index in range(number))
    names = tuple(map(str, stored[key].ravel().tolist()))
    if len(names) < number or (what != "class" and len(names) != number):
        raise ValueError(f"{path}: {key} must hold {number} names, got {len(names)}")
    return names


def _split(path: Path, stored: Mapping[str, np.ndarray], part: str) -> ConceptSplit:
    try:
        return ConceptSplit(
            images=PredictedConcepts(stored[f"{part}_concept_probs"].astype(np.float32)),
            concepts=_as_binary(stored[f"{part}_concepts"]),
            labels=stored[f"{part}_labels"],
        )
    except ValueError as error:
        raise ValueError(f"{path}: {part}: {error}") from error


def _as_binary(concepts: np.ndarray) -> np.ndarray:
    if not ((concepts == 0) | (concepts == 1)).all():
        raise ValueError(f"concepts must be 0 or 1, got {np.unique(concepts).tolist()[:6]}")
    return concepts.astype(np.int8)
