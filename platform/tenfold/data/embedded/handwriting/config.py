"""What determines the embedded data."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MAX_DIGITS = 9
"""Most digits that fit legibly on a 64x64 canvas (a 3x3 grid)."""


@dataclass(frozen=True, kw_only=True)
class HandwritingConfig:
    """Settings of the embedded data; a config that exists is a valid one.

    ``num_*``, ``seed`` and what concerns the content enter the cache key; the draw of observed labels
    (``num_pos``, ``num_neg``, ``label_seed``) and ``cache`` do not: they leave the images alone.
    """

    name: str = "handwriting"
    """Fixed; what selects this data set among the others."""
    num_train: int = 4000
    """Images to draw for the training split, at least 1 (``digits`` always holds every source digit)."""
    num_val: int = 1000
    """Images to draw for validation, at least 1."""
    num_test: int = 2000
    """Images to draw for the test split, at least 1."""
    seed: int = 0
    """Of all random draws and of the division of the source digits, at least 0."""
    max_digits: int = 4
    """Most digits K in one scene, 1 to 9; the number is uniform in 1..K."""
    cooccurrence: float = 0.0
    """Strength in [0, 1] of the spurious correlation between partners (``vocabulary.PARTNERS``) in scenes: the second
    and the fourth (...) digit is the partner of the one before with this probability (if that is not there already),
    else a uniform draw from what is left; 0 is independent."""
    cooccurrence_test: float | None = None
    """The same for the test split, to break the correlation there; None: as in training."""
    distinct: bool = True
    """Whether the digits of one scene all differ; False draws each uniformly (then ``cooccurrence`` must be 0)."""
    num_pos: int = 1
    """Positive labels observed in each scene; -1 = all."""
    num_neg: int = 0
    """Negative labels observed in each scene; -1 = all."""
    label_seed: int = 1200
    """Of the draw of observed labels, at least 0."""
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

    def _check_strength(self, split: Split) -> None:
        strength = self.strength(split)
        if not 0 <= strength <= 1:
            raise ValueError(f"cooccurrence must lie in [0, 1], got {strength}")
        if strength and self.max_digits < 2:
            raise ValueError(f"cooccurrence {strength} needs max_digits of at least 2, got {self.max_digits}")
        if strength and not self.distinct:
            raise ValueError(f"cooccurrence {strength} needs distinct digits; set distinct: true or cooccurrence: 0")

    def num(self, split: Split) -> int:
        """Images asked for in a split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]

    def strength(self, split: Split) -> float:
        """Co-occurrence of a split."""
        if split == "test" and self.cooccurrence_test is not None:
            return self.cooccurrence_test
        return self.cooccurrence
