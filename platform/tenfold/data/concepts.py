"""Concept data: images with binary concepts, in groups that are asked together, and a class; the type of every loader.

Shapes: N images, K concepts, G groups, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.types import ImageSource, check_label_range

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


class PredictedConcepts:
    """Concepts that a model has predicted for N images, in the place of the images.

    Args:
        values: Probabilities, float32 ``(N, K)`` in [0, 1].

    Raises:
        ValueError: Another dtype or shape, or values that are NaN or out of range.
    """

    in_memory = True

    def __init__(self, values: np.ndarray) -> None:
        if values.dtype != np.float32 or values.ndim != 2:
            raise ValueError(f"predictions must be float32 (N, K), got {values.dtype} {values.shape}")
        outside = ~((values >= 0) & (values <= 1))
        if outside.any():
            row, column = map(int, np.argwhere(outside)[0])
            raise ValueError(
                f"predictions must lie in [0, 1], got {int(outside.sum())} that don't, the first is "
                f"{values[row, column]} in row {row}, column {column}; they are probabilities, not logits"
            )
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def read(self, indices: np.ndarray | Sequence[int]) -> Tensor:
        """Return float32 ``(B, K)`` for the requested rows, in their order."""
        return torch.from_numpy(self.values[np.asarray(indices)])

    def read_raw(self, indices: np.ndarray | Sequence[int]) -> list[np.ndarray]:
        """Return the same rows, one by one."""
        return list(self.values[np.asarray(indices)])


@dataclass(frozen=True, kw_only=True)
class ConceptSplit:
    """One part (train, val or test) of a data set.

    Raises:
        ValueError: Arrays of another dtype or shape, or values out of range.
    """

    images: ImageSource
    """N images; ``read`` returns them at the network's size, ``read_raw`` at their own. Or ``PredictedConcepts``."""
    concepts: np.ndarray
    """True concepts, int8 ``(N, K)`` in {0, 1}."""
    labels: np.ndarray
    """Class of each image, int64 ``(N,)``."""
    known: np.ndarray | None = None
    """Whether the image shows the concept, bool ``(N, K)``; None: all are shown."""
    certainty: np.ndarray | None = None
    """Annotator's probability that the concept is present, float32 ``(N, K)`` in [0, 1], which then is the target of
    training and the value of a correction; None: the annotator is sure of ``concepts``."""

    def __post_init__(self) -> None:
        num_images = len(self.images)
        if self.concepts.dtype != np.int8 or self.concepts.ndim != 2 or len(self.concepts) != num_images:
            raise ValueError(
                f"concepts must be int8 ({num_images}, K), one row for each image, "
                f"got {self.concepts.dtype} {self.concepts.shape}"
            )
        if not ((self.concepts == 0) | (self.concepts == 1)).all():
            raise ValueError(f"concepts must be 0 or 1, got {np.unique(self.concepts).tolist()[:6]}")
        if self.labels.dtype != np.int64 or self.labels.shape != (num_images,):
            raise ValueError(f"labels must be int64 ({num_images},), got {self.labels.dtype} {self.labels.shape}")
        for name, dtype in (("known", np.bool_), ("certainty", np.float32)):
            values = getattr(self, name)
            if values is not None and (values.dtype != dtype or values.shape != self.concepts.shape):
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} {self.concepts.shape}, got {values.dtype} {values.shape}"
                )
        if self.certainty is not None and not ((self.certainty >= 0) & (self.certainty <= 1)).all():
            raise ValueError("certainty must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def values(self) -> np.ndarray:
        """Values that a correction gives, float32 ``(N, K)``: ``certainty``, or the concepts if there is none."""
        return self.concepts.astype(np.float32) if self.certainty is None else self.certainty


@dataclass(frozen=True, kw_only=True)
class ConceptData:
    """A data set ready for a concept bottleneck: three parts, names, and a fingerprint of its content.

    Raises:
        ValueError: Names that are empty or repeated, groups that overlap or leave a concept out, a part with another
            number of concepts, or labels out of range.
    """

    name: str
    concepts: tuple[str, ...]
    """Names of the K concepts, in the order of the columns."""
    classes: tuple[str, ...]
    """Names of the C classes, in label order."""
    train: ConceptSplit
    val: ConceptSplit
    test: ConceptSplit
    image_size: int
    fingerprint: str
    """Hex digest of everything that determines images, concepts and labels."""
    groups: Mapping[str, tuple[int, ...]] | None = None
    """Columns of each group, whose concepts are corrected together; None: every concept is its own group."""
    exclusive: tuple[str, ...] = ()
    """Groups of which at most one concept is true."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """Cost of asking a group, or a concept where there are no groups; one that is left out costs 1."""
    class_concepts: np.ndarray | None = None
    """Concepts of each class, int8 ``(C, K)`` in {0, 1}, where they follow from the class; else None."""
    predicted: bool = False
    """Whether the parts hold ``PredictedConcepts`` instead of images."""
    mirrorable: bool = False
    """Whether horizontal flips preserve concepts and class (photographs; not handwriting)."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Figures about the data set, logged with the run."""

    def __post_init__(self) -> None:
        for what, names in (("concept", self.concepts), ("class", self.classes)):
            if not names or "" in names:
                raise ValueError(f"{self.name}: each {what} must have a name, got {list(names)[:6]}")
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{self.name} names the {what} {twice!r} twice")
        num_concepts = len(self.concepts)
        concept_group_matrix(self.groups, num_concepts)
        unknown = [name for name in (*self.exclusive, *self.costs) if name not in self.questions]
        if unknown:
            raise ValueError(
                f"{self.name}: exclusive and costs must name groups ({', '.join(self.questions[:8])} ...), "
                f"got {unknown[0]!r}"
            )
        if any(not 0 < cost < np.inf for cost in self.costs.values()):
            raise ValueError(f"{self.name}: costs must be positive, got {dict(self.costs)}")
        for part, split in self.splits().items():
            if split.concepts.shape[1] != num_concepts:
                raise ValueError(
                    f"{self.name}: {part} must have {num_concepts} concepts, got {split.concepts.shape[1]}"
                )
            if not len(split):
                raise ValueError(f"{self.name}: the {part} part holds no image")
            check_label_range(split.labels, len(self.classes), f"{self.name}: {part} labels")
        if self.class_concepts is not None:
            expected = (len(self.classes), num_concepts)
            if self.class_concepts.dtype != np.int8 or self.class_concepts.shape != expected:
                raise ValueError(
                    f"{self.name}: class_concepts must be int8 {expected}, "
                    f"got {self.class_concepts.dtype} {self.class_concepts.shape}"
                )

    @property
    def questions(self) -> tuple[str, ...]:
        """Names of the groups; of the concepts where there are no groups."""
        return self.concepts if self.groups is None else tuple(self.groups)

    def splits(self) -> Mapping[Part, ConceptSplit]:
        """Return the parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def concept_group_matrix(groups: Mapping[str, Sequence[int]] | None, n_concepts: int) -> Tensor:
    """Return which concepts belong to which group.

    Args:
        groups: Columns of each group; None: every concept is its own group.
        n_concepts: K.

    Returns:
        float32 ``(G, K)`` in {0, 1}, rows in the order of the mapping; the identity for None.

    Raises:
        ValueError: No group, an empty one, an index outside 0..K - 1, or a concept in two groups or in none.
    """
    if groups is None:
        return torch.eye(n_concepts)
    if not groups:
        raise ValueError("groups must hold at least one group, got none; leave them out to ask concepts one by one")
    matrix = torch.zeros(len(groups), n_concepts)
    owner: dict[int, str] = {}
    for row, (name, columns) in enumerate(groups.items()):
        if not len(columns):
            raise ValueError(f"group {name!r} must hold at least one concept, got none")
        for column in map(int, columns):
            if not 0 <= column < n_concepts:
                raise ValueError(f"group {name!r} must hold concepts in 0..{n_concepts - 1}, got {column}")
            if column in owner:
                raise ValueError(f"groups must not overlap; concept {column} is in {owner[column]!r} and {name!r}")
            owner[column] = name
            matrix[row, column] = 1
    missing = [column for column in range(n_concepts) if column not in owner]
    if missing:
        raise ValueError(f"groups must hold every concept; {len(missing)} are in none, the first is {missing[0]}")
    return matrix


def balanced_binary_concepts(attr: Tensor, k: int) -> tuple[Tensor, Tensor, int]:
    """Choose the attributes closest to even, and make a class of each combination of them that occurs.

    The concepts and classes of CelebA in concept embedding models (Espinosa Zarlenga et al., NeurIPS 2022).

    Args:
        attr: Binary attributes ``(N, A)``.
        k: Number of attributes to choose, 1..A (at most 62).

    Returns:
        Columns of the chosen attributes, ascending, int64 ``(k,)``; the class of each row, int64 ``(N,)``: the rank,
        among the combinations that occur, of the integer whose highest bit is the first chosen attribute; and the
        number of classes.

    Raises:
        ValueError: ``attr`` is not a binary matrix, or ``k`` is out of range.
    """
    if attr.ndim != 2 or not len(attr) or not ((attr == 0) | (attr == 1)).all():
        raise ValueError(f"attr must be a binary matrix (N, A) with at least one row, got {tuple(attr.shape)}")
    if not 1 <= k <= min(attr.shape[1], 62):
        raise ValueError(f"k must lie in 1..{min(attr.shape[1], 62)}, got {k}")
    imbalance = (attr.double().mean(0) - 0.5).abs()
    chosen = torch.argsort(imbalance, stable=True)[:k].sort().values
    weights = 2 ** torch.arange(k - 1, -1, -1)
    codes = (attr[:, chosen].long() * weights).sum(1)
    occurring, class_index = torch.unique(codes, return_inverse=True)
    return chosen, class_index, len(occurring)
