"""Settings of the embedded handwriting data."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ConceptTask = Literal["pairs", "scenes", "sums"]
MAX_DIGITS = 9
"""Largest number of digits that fit legibly on a 64x64 canvas (a 3x3 grid)."""
MAX_OPERANDS = 16
"""Largest number of digits whose sum is asked (a 4x4 grid)."""


@dataclass(frozen=True, kw_only=True)
class HandwritingConfig:
    """Settings of the embedded data, validated on construction.

    ``num_*``, ``seed`` and the settings of a task's content enter its cache key; the draw of observed labels
    (``num_pos``, ``num_neg``, ``label_seed``), ``concept_task``, ``costs`` and ``cache`` do not, since they do not
    affect the images.
    """

    name: str = "handwriting"
    """Fixed; selects this data set."""
    num_train: int = 4000
    """Training images to draw, at least 1 (``digits`` always holds every source digit)."""
    num_val: int = 1000
    """Validation images to draw, at least 1."""
    num_test: int = 2000
    """Test images to draw, at least 1."""
    seed: int = 0
    """Seed of all random draws and of the split of the source digits, at least 0."""
    max_digits: int = 4
    """Largest number K of digits in a scene, 1 to 9; the number is uniform in 1..K."""
    cooccurrence: float = 0.0
    """Strength in [0, 1] of the spurious correlation between partners (``vocabulary.PARTNERS``) in scenes: with this
    probability every second digit is the partner of the one before (if that is not in the scene yet), else a uniform
    draw from the remaining classes; 0 is independent."""
    cooccurrence_test: float | None = None
    """Strength in the test split, to break the correlation there; None: as in training."""
    distinct: bool = True
    """Whether the digits of a scene are distinct; False draws each uniformly (then ``cooccurrence`` must be 0)."""
    num_pos: int = 1
    """Positive labels observed in each scene; -1 = all."""
    num_neg: int = 0
    """Negative labels observed in each scene; -1 = all."""
    label_seed: int = 1200
    """Seed of the draw of observed labels, at least 0."""
    concept_task: ConceptTask = "pairs"
    """Pictures that a concept bottleneck learns from: ``pairs`` of digits, whose concepts follow from the class;
    ``scenes``, whose class is the number of objects and the background; ``sums`` of several digits. Other methods do
    not read it."""
    noise: float = 0.0
    """Standard deviation in [0, 1] of the Gaussian noise on the pixels of pairs and sums, as a share of full scale."""
    repeat: float = 0.0
    """Probability in [0, 1] that every second digit of a pair or sum repeats the one before, else it is a uniform draw:
    a pair's class in a picture of its own, a sum's operand with its picture; 0 is independent."""
    operands: tuple[int, ...] = (3, 3, 3, 3, 5, 5, 5, 5, 10, 10, 10, 10)
    """Number of classes, 2 to 10, of each of the 2 to 16 digits of a sum: n stands for 0..n - 1. The default is the
    published configuration, whose one-hot concepts are 72."""
    costs: dict[str, float] | None = None
    """Positive cost of asking each group of concepts; one that is left out costs 1. None: all cost 1."""
    cache: str | None = None
    """Cache folder; None: the environment's ``TENFOLD_CACHE``, else ``~/.cache/tenfold``."""

    def __post_init__(self) -> None:
        if self.name != "handwriting":
            raise ValueError(f"name must be 'handwriting', got {self.name!r}")
        for split in SPLITS:
            if self.num(split) < 1:
                raise ValueError(f"num_{split} must be at least 1, got {self.num(split)}")
        for field in ("seed", "label_seed"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if not 1 <= self.max_digits <= MAX_DIGITS:
            raise ValueError(f"max_digits must lie in 1..{MAX_DIGITS}, got {self.max_digits}")
        for split in ("train", "test"):
            self._check_strength(split)
        for field in ("num_pos", "num_neg"):
            if getattr(self, field) < -1:
                raise ValueError(f"{field} must be at least 0, or -1 for all, got {getattr(self, field)}")
        self._check_concepts()

    def _check_strength(self, split: Split) -> None:
        strength = self.strength(split)
        if not 0 <= strength <= 1:
            raise ValueError(f"cooccurrence must lie in [0, 1], got {strength}")
        if strength and self.max_digits < 2:
            raise ValueError(f"cooccurrence {strength} needs max_digits of at least 2, got {self.max_digits}")
        if strength and not self.distinct:
            raise ValueError(f"cooccurrence {strength} needs distinct digits; set distinct: true or cooccurrence: 0")

    def _check_concepts(self) -> None:
        if self.concept_task not in get_args(ConceptTask):
            raise ValueError(
                f"concept_task must be one of {', '.join(get_args(ConceptTask))}, got {self.concept_task!r}"
            )
        for field in ("noise", "repeat"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ValueError(f"{field} must lie in [0, 1], got {value}")
            if value and self.concept_task == "scenes":
                raise ValueError(f"{field} must be 0 for scenes, got {value}; set concept_task to pairs or sums")
        if not 2 <= len(self.operands) <= MAX_OPERANDS or not all(2 <= count <= 10 for count in self.operands):
            raise ValueError(f"operands must be 2 to {MAX_OPERANDS} numbers in 2..10, got {list(self.operands)}")
        if self.repeat and self.concept_task == "sums" and self.operands[:-1:2] != self.operands[1::2]:
            raise ValueError(
                f"operands must be equal in twos (first and second, third and fourth ...) where repeat is above 0, "
                f"got {list(self.operands)}; set repeat to 0"
            )
        for name, cost in (self.costs or {}).items():
            if not 0 < cost < math.inf:
                raise ValueError(f"costs must be positive, got {cost} for {name!r}; leave out what costs 1")

    def num(self, split: Split) -> int:
        """Return the number of images in a split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]

    def strength(self, split: Split) -> float:
        """Return the co-occurrence strength of a split."""
        if split == "test" and self.cooccurrence_test is not None:
            return self.cooccurrence_test
        return self.cooccurrence
