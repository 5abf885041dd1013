"""Stored concept predictions: what the file holds, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenfold.data.catalog import load_concepts
from tenfold.data.concepts import PredictedConcepts
from tenfold.data.files.concept_predictions import ConceptPredictionsConfig
from tenfold.hashing import bytes_sha256
from tenfold.types import Preprocessing

PARTS = ("train", "val", "test")


def content() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    stored: dict[str, Any] = {}
    for part, length in zip(PARTS, (6, 4, 5), strict=True):
        stored[f"{part}_concept_probs"] = draw.random((length, 3))
        stored[f"{part}_concepts"] = draw.integers(0, 2, (length, 3))
        stored[f"{part}_labels"] = np.arange(length) % 2
    return stored


def load(folder: Path, stored: dict[str, Any], **settings: Any) -> Any:
    np.savez(folder / "predictions.npz", **stored)
    config = ConceptPredictionsConfig(predictions=str(folder / "predictions.npz"), **settings)
    return load_concepts(config, Preprocessing(image_size=8))


def test_the_arrays_come_back_by_part(tmp_path: Path) -> None:
    stored = content()
    data = load(tmp_path, stored)
    assert data.predicted
    assert (data.concepts, data.classes) == (("concept 0", "concept 1", "concept 2"), ("class 0", "class 1"))
    for part, split in data.splits().items():
        np.testing.assert_array_equal(split.concepts, stored[f"{part}_concepts"])
        np.testing.assert_array_equal(split.labels, stored[f"{part}_labels"])
        rows = np.array([2, 0])
        np.testing.assert_allclose(split.images.read(rows), stored[f"{part}_concept_probs"][rows], rtol=1e-6)
        np.testing.assert_allclose(split.images.read_raw([1])[0], stored[f"{part}_concept_probs"][1], rtol=1e-6)
    other = stored | {"val_labels": 1 - stored["val_labels"]}
    assert load(tmp_path, other).fingerprint != data.fingerprint


def test_names_groups_costs_and_the_checksum(tmp_path: Path) -> None:
    stored = content()
    arrays = [
        stored[f"{part}_{name}"].astype(dtype).tobytes()
        for part in PARTS
        for name, dtype in (("concept_probs", float), ("concepts", np.int64), ("labels", np.int64))
    ]
    names = {
        "concept_names": ["fur", "red", "blue"],
        "class_names": ["cat", "car", "cow"],
        "group_of_concept": ["cover", "colour", "colour"],
    }
    data = load(tmp_path, stored | names | {"sha256": bytes_sha256(arrays)}, costs={"colour": 3.0})
    assert data.groups == {"cover": (0,), "colour": (1, 2)}
    assert (data.concepts, data.classes) == (("fur", "red", "blue"), ("cat", "car", "cow"))
    assert data.costs == {"colour": 3.0}
    moved = names | {"group_of_concept": ["cover", "cover", "colour"]}
    assert load(tmp_path, stored | moved).fingerprint != load(tmp_path, stored | names).fingerprint
    stored["test_labels"] = 1 - stored["test_labels"]
    with pytest.raises(ValueError, match=r"must have the sha256 .* was it changed"):
        load(tmp_path, stored | {"sha256": bytes_sha256(arrays)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "it lacks val_labels"),
        ({"val_labels": np.zeros(3, int)}, r"val_concept_probs must be \(3, 3\) .* got \(4, 3\)"),
        ({"test_concepts": np.zeros((5, 4), int)}, r"test_concepts must be \(5, 3\)"),
        ({"test_concepts": np.full((5, 3), 2)}, r"test: concepts must be 0 or 1, got \[2\]"),
        ({"train_labels": np.full(6, 0.5)}, "train_labels must hold whole numbers"),
        ({"train_concept_probs": np.full((6, 3), np.nan)}, "train_concept_probs must hold numbers, got float64 or NaN"),
        ({"train_concept_probs": np.full((6, 3), 1.5)}, r"must lie in \[0, 1\], got 18 .* not logits"),
        ({"concept_names": ["a"]}, "concept_names must hold 3 names, got 1"),
        ({"class_names": ["a"]}, "class_names must hold 2 names, got 1"),
        ({"val_labels": np.full(4, 10**9)}, "labels must be below 100000, got 1000000000"),
        ({"concept_names": ["a", "a", "b"]}, "names the concept 'a' twice"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    stored = {name: value for name, value in (content() | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load(tmp_path, stored)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a .npz file, got 'a.pkl'"):
        ConceptPredictionsConfig(predictions="a.pkl")
    config = ConceptPredictionsConfig(predictions=str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match="must be an existing file"):
        load_concepts(config, Preprocessing(image_size=8))
    (tmp_path / "none.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match=r"none.npz must be a .npz file of numbers and texts"):
        load_concepts(config, Preprocessing(image_size=8))
    with pytest.raises(ValueError, match="predictions must be float32"):
        PredictedConcepts(np.zeros((2, 2)))
