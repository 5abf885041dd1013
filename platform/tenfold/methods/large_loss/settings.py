"""Settings of Large Loss, of the baselines that it is compared with, and of what builds on it."""

from dataclasses import dataclass
from typing import Literal

Scheme = Literal[
    "LL-R", "LL-Ct", "LL-Cp", "an", "full",
    "bce", "bce_ls", "an_ls", "wan", "iu", "iun", "pr", "epr", "role", "em", "em_apl", "asl",
]  # fmt: skip
LARGE_LOSS_SCHEMES = ("LL-R", "LL-Ct", "LL-Cp")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training; a config that exists is a valid one."""

    scheme: Scheme = "LL-R"
    """LL-R rejects large losses, LL-Ct flips them for a step, LL-Cp for good; ``an`` assumes negatives; ``full`` sees
    every true label (the upper bound); the others are the baselines of section 2 by their names."""
    delta_rel_percent: float = 1.5
    """Share of a batch's entries that is treated more from one epoch to the next (LL-Cp: in every epoch), in percent,
    in [0, 100). The paper's photographs want 0.1 to 0.5; 0 is ``an``."""
    warmup_epochs: int = 1
    """Epochs at the start without any treatment."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """``sgd`` has momentum 0.9."""
    learning_rate: float = 1e-3
    """Of the backbone; constant."""
    head_multiplier: float = 10.0
    """The head learns (and ROLE's estimator) at this multiple of the rate."""
    weight_decay: float = 0.0
    """L2 penalty; the paper has 0 with Adam and 1e-3 with SGD."""
    stop_after_drop: float | None = 3.0
    """Points of validation mAP below the best at which training ends; None: never."""
    horizontal_flip: bool = True
    """Mirror training pictures at random, where the data set allows it."""
    observatory: Literal["all", "treated", "off"] = "all"
    """What is kept of every epoch: the loss of every entry and what was treated, only the latter, or nothing."""
    label_smoothing: float = 0.1
    """For an_ls and bce_ls."""
    expected_num_pos: float | None = None
    """Mean positives of a picture, for epr and role; None measures it on the true training labels, as published."""
    alpha: float = 0.2
    """Weight of the entropy, for em and em_apl."""
    beta: float = 0.02
    """Weight of pseudo-labelled negatives, for em_apl."""
    apl_warmup_epochs: int = 5
    """First epoch at whose end em_apl pseudo-labels; must be less than the number of epochs."""
    gamma_neg: float = 4.0
    """Focusing of negatives, for asl."""
    gamma_pos: float = 1.0
    """Focusing of positives, for asl."""
    clip: float = 0.05
    """Probability margin of negatives, for asl."""

    def __post_init__(self) -> None:
        if not 0 <= self.delta_rel_percent < 100:
            raise ValueError(f"delta_rel_percent must lie in [0, 100), got {self.delta_rel_percent}")
        if self.warmup_epochs < 0 or self.apl_warmup_epochs < 0:
            raise ValueError(
                f"warm-up epochs must not be negative, got {self.warmup_epochs} and {self.apl_warmup_epochs}"
            )
        for name in ("learning_rate", "head_multiplier"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "alpha", "beta", "gamma_neg", "gamma_pos"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing <= 1 or not 0 <= self.clip < 1:
            raise ValueError(
                f"expected label_smoothing in [0, 1] and clip in [0, 1), got {self.label_smoothing} and {self.clip}"
            )
        if self.stop_after_drop is not None and self.stop_after_drop <= 0:
            raise ValueError(f"stop_after_drop must be positive or null, got {self.stop_after_drop}")
        if self.expected_num_pos is not None and self.expected_num_pos <= 0:
            raise ValueError(f"expected_num_pos must be positive or null, got {self.expected_num_pos}")
