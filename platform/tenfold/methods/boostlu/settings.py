"""Settings of BoostLU: those of a training on partial labels, and the boost."""

import math
from dataclasses import dataclass
from typing import Literal

from tenfold.methods.large_loss.settings import Config as LargeLossConfig


@dataclass(frozen=True, kw_only=True)
class Config(LargeLossConfig):
    """Settings of one training; a Config that exists is a valid one."""

    boost: float = 5.0
    """Factor alpha of the positive scores of a class activation map, positive; 1 is the plain model. (``alpha`` is the
    weight of another loss's entropy.)"""
    boost_mode: Literal["both", "train", "inference", "none"] = "both"
    """When the factor applies: in training and at inference (the method), in one of them, or never."""
    stop_after_drop: float | None = None
    """Points of validation mAP below the best at which training ends; None, as published: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.boost > 0 and math.isfinite(self.boost)):
            raise ValueError(f"boost must be positive and finite, got {self.boost}")
