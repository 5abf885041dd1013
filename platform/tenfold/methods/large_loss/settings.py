"""Settings of Large Loss and of its baselines."""

from dataclasses import dataclass
from typing import Literal

Scheme = Literal[
    "LL-R", "LL-Ct", "LL-Cp", "an", "full",
    "bce", "bce_ls", "an_ls", "wan", "iu", "iun", "pr", "epr", "role", "em", "em_apl", "asl",
]  # fmt: skip
LARGE_LOSS_SCHEMES = ("LL-R", "LL-Ct", "LL-Cp")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training, validated on construction."""

    scheme: Scheme = "LL-R"
    """LL-R rejects large losses, LL-Ct corrects them temporarily, LL-Cp permanently; ``an`` assumes negatives; ``full``
    trains on all true labels (the upper bound); the others are the baselines of ``baselines.py`` by name."""
    delta_rel_percent: float = 1.5
    """Increase per epoch of the share of a batch's entries that is treated (LL-Cp: the constant share), in percent, in
    [0, 100). The paper uses 0.1 to 0.5 on photographs; 0 is ``an``."""
    warmup_epochs: int = 1
    """Number of initial epochs without treatment."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser; ``sgd`` has momentum 0.9."""
    learning_rate: float = 1e-3
    """Learning rate of the backbone, constant."""
    head_multiplier: float = 10.0
    """Learning rate of the head and of ROLE's label estimator, as a multiple of the backbone's."""
    weight_decay: float = 0.0
    """L2 penalty; the paper uses 0 with Adam and 1e-3 with SGD."""
    stop_after_drop: float | None = 3.0
    """Drop of validation mAP below the best, in points, at which training stops; None: never."""
    horizontal_flip: bool = True
    """Flip training images horizontally at random, if the data set allows it."""
    observatory: Literal["all", "treated", "off"] = "all"
    """Recorded in every epoch: the loss of every entry and the treated entries, only the latter, or nothing."""
    label_smoothing: float = 0.1
    """Label smoothing of an_ls and bce_ls."""
    expected_num_pos: float | None = None
    """Mean number of positives per image, for epr and role; None computes it from the true training labels, as
    published."""
    alpha: float = 0.2
    """Weight of the entropy term, for em and em_apl."""
    beta: float = 0.02
    """Weight of pseudo-labelled negatives, for em_apl."""
    apl_warmup_epochs: int = 5
    """First epoch at whose end em_apl pseudo-labels; must be less than the number of epochs."""
    gamma_neg: float = 4.0
    """Focusing exponent of negatives, for asl."""
    gamma_pos: float = 1.0
    """Focusing exponent of positives, for asl."""
    clip: float = 0.05
    """Probability margin of negatives, for asl."""

    def __post_init__(self) -> None:
        if not 0 <= self.delta_rel_percent < 100:
            raise ValueError(f"delta_rel_percent must lie in [0, 100), got {self.delta_rel_percent}")
        if self.warmup_epochs < 0 or self.apl_warmup_epochs < 0:
            raise ValueError(
                f"warmup_epochs and apl_warmup_epochs must be at least 0, "
                f"got {self.warmup_epochs} and {self.apl_warmup_epochs}"
            )
        for name in ("learning_rate", "head_multiplier"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "alpha", "beta", "gamma_neg", "gamma_pos"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing <= 1 or not 0 <= self.clip < 1:
            raise ValueError(
                f"label_smoothing must lie in [0, 1] and clip in [0, 1), got {self.label_smoothing} and {self.clip}"
            )
        if self.stop_after_drop is not None and self.stop_after_drop <= 0:
            raise ValueError(f"stop_after_drop must be positive or null, got {self.stop_after_drop}")
        if self.expected_num_pos is not None and self.expected_num_pos <= 0:
            raise ValueError(f"expected_num_pos must be positive or null, got {self.expected_num_pos}")
