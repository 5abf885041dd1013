"""Concept data: what the types refuse, groups, and concepts chosen by balance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tenfold.data.catalog import load_concepts
from tenfold.data.concepts import ConceptData, ConceptSplit, balanced_binary_concepts, concept_group_matrix
from tenfold.data.files.mnist import MnistConfig
from tenfold.data.images import ArrayImages
from tenfold.types import Preprocessing

CONCEPTS = np.array([[1, 0, 1], [0, 1, 0]], dtype=np.int8)


def split(**changes) -> ConceptSplit:
    images = ArrayImages(np.zeros((2, 4, 4, 3), np.uint8))
    return ConceptSplit(**({"images": images, "concepts": CONCEPTS, "labels": np.array([0, 1])} | changes))


def data(**changes) -> ConceptData:
    settings = {
        "name": "toy",
        "concepts": ("red", "blue", "round"),
        "classes": ("a", "b"),
        "train": split(),
        "val": split(),
        "test": split(),
        "image_size": 4,
        "fingerprint": "0",
        "groups": {"colour": (0, 1), "shape": (2,)},
        "exclusive": ("colour",),
        "costs": {"shape": 2.0},
        "class_concepts": CONCEPTS,
    }
    return ConceptData(**(settings | changes))


# Splits -------------------------------------------------------------------------------------------------------------


def test_values_are_the_certainty_or_the_concepts():
    assert len(split()) == 2
    np.testing.assert_array_equal(split().values, CONCEPTS)
    assert split().values.dtype == np.float32
    certainty = np.array([[1, 0.5, 0.75], [0, 0.5, 0.25]], dtype=np.float32)
    assert split(certainty=certainty).values is certainty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": CONCEPTS.astype(np.int64)}, r"concepts must be int8 \(2, K\).*got int64 \(2, 3\)"),
        ({"concepts": CONCEPTS[:1]}, r"concepts must be int8 \(2, K\), one row for each image, got int8 \(1, 3\)"),
        ({"concepts": CONCEPTS[0]}, r"concepts must be int8 \(2, K\)"),
        ({"concepts": CONCEPTS * np.int8(2)}, r"concepts must be 0 or 1, got \[0, 2\]"),
        ({"labels": np.array([0.0, 1.0])}, r"labels must be int64 \(2,\), got float64 \(2,\)"),
        ({"labels": np.array([0])}, r"labels must be int64 \(2,\), got int64 \(1,\)"),
        ({"known": CONCEPTS}, r"known must be bool \(2, 3\), got int8 \(2, 3\)"),
        ({"known": np.ones((2, 2), bool)}, r"known must be bool \(2, 3\), got bool \(2, 2\)"),
        ({"certainty": CONCEPTS.astype(np.float64)}, r"certainty must be float32 \(2, 3\), got float64"),
        ({"certainty": CONCEPTS.astype(np.float32) * 1.5}, r"certainty must lie in \[0, 1\]"),
        ({"certainty": np.full((2, 3), np.nan, np.float32)}, r"certainty must lie in \[0, 1\]"),
    ],
)
def test_a_split_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        split(**changes)


# Data ---------------------------------------------------------------------------------------------------------------


def test_questions_are_groups_or_concepts():
    assert data().questions == ("colour", "shape")
    alone = data(groups=None, exclusive=(), costs={"blue": 3})
    assert alone.questions == alone.concepts
    assert list(alone.splits()) == ["train", "val", "test"]
    assert alone.facts == {}


EMPTY = split(
    images=ArrayImages(np.zeros((0, 4, 4, 3), np.uint8)), concepts=CONCEPTS[:0], labels=np.zeros(0, dtype=np.int64)
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": ()}, "each concept must have a name"),
        ({"classes": ("a", "")}, "each class must have a name"),
        ({"concepts": ("red", "red", "round")}, "toy names the concept 'red' twice"),
        ({"classes": ("a", "a")}, "toy names the class 'a' twice"),
        ({"groups": {"colour": (0, 1)}}, "groups must hold every concept; 1 are in none, the first is 2"),
        ({"exclusive": ("red",)}, r"must name groups \(colour, shape \.\.\.\), got 'red'"),
        ({"costs": {"size": 1.0}}, "must name groups .* got 'size'"),
        ({"costs": {"shape": 0.0}}, "costs must be positive"),
        ({"costs": {"shape": np.nan}}, "costs must be positive"),
        ({"val": split(concepts=CONCEPTS[:, :2].copy())}, "val must have 3 concepts, got 2"),
        ({"test": EMPTY}, "the test part holds no image"),
        ({"train": split(labels=np.array([0, 2]))}, r"toy: train labels must lie in 0\.\.1, got 0\.\.2"),
        ({"class_concepts": CONCEPTS[:1]}, r"class_concepts must be int8 \(2, 3\), got int8 \(1, 3\)"),
        ({"class_concepts": CONCEPTS.astype(float)}, r"class_concepts must be int8 \(2, 3\), got float64"),
    ],
)
def test_data_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        data(**changes)
    assert replace(data(), name="other").name == "other"


def test_a_data_set_without_concepts_is_named():
    with pytest.raises(ValueError, match=r"data must be one of .*cub_concepts.*, got 'mnist', which has no concepts"):
        load_concepts(MnistConfig(root="/nowhere"), Preprocessing(image_size=8))


# Groups -------------------------------------------------------------------------------------------------------------


def test_group_matrix_by_hand():
    matrix = concept_group_matrix({"b": [2, 0], "a": (1,)}, 3)
    assert matrix.dtype == torch.float32
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert concept_group_matrix(None, 2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "groups must hold at least one group, got none; leave them out"),
        ({"a": (0, 1, 2), "b": ()}, "group 'b' must hold at least one concept, got none"),
        ({"a": (0, 3)}, r"group 'a' must hold concepts in 0\.\.2, got 3"),
        ({"a": (0, -1)}, r"group 'a' must hold concepts in 0\.\.2, got -1"),
        ({"a": (0, 1), "b": (1, 2)}, "groups must not overlap; concept 1 is in 'a' and 'b'"),
        ({"a": (0, 0)}, "concept 0 is in 'a' and 'a'"),
        ({"a": (0,)}, "groups must hold every concept; 2 are in none, the first is 1"),
    ],
)
def test_group_matrix_refuses(groups, message):
    with pytest.raises(ValueError, match=message):
        concept_group_matrix(groups, 3)


# Balanced concepts --------------------------------------------------------------------------------------------------


def test_balanced_concepts_by_hand():
    # Frequencies 1, 1/2, 1/4, 3/4, 1/2: the two halves come first, then of the two next ones the first.
    attr = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 1], [1, 0, 0, 1, 1]])
    columns, labels, num_classes = balanced_binary_concepts(attr, 2)
    assert columns.tolist() == [1, 4]
    assert labels.tolist() == [1, 1, 0, 0]  # codes 10 and 01
    assert num_classes == 2
    columns, labels, num_classes = balanced_binary_concepts(attr, 3)
    assert columns.tolist() == [1, 2, 4]
    assert labels.tolist() == [1, 2, 0, 0]  # codes 100, 110 and 001, ranked
    assert (num_classes, labels.dtype) == (3, torch.int64)


@pytest.mark.parametrize(
    ("attr", "k", "message"),
    [
        (torch.zeros(3), 1, r"attr must be a binary matrix \(N, A\)"),
        (torch.zeros(0, 3), 1, "with at least one row"),
        (torch.full((2, 2), 0.5), 1, "binary matrix"),
        (torch.zeros(2, 3), 0, r"k must lie in 1\.\.3, got 0"),
        (torch.zeros(2, 3), 4, r"k must lie in 1\.\.3, got 4"),
    ],
)
def test_balanced_concepts_refuse(attr, k, message):
    with pytest.raises(ValueError, match=message):
        balanced_binary_concepts(attr, k)
