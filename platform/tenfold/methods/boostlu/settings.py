"""Settings of BoostLU: those of Large Loss, and the boost."""

import math
from dataclasses import dataclass
from typing import Literal

from tenfold.methods.large_loss.settings import Config as LargeLossConfig


@dataclass(frozen=True, kw_only=True)
class Config(LargeLossConfig):
    """Settings of one training, validated on construction."""

    boost: float = 5.0
    """Factor alpha (> 0) of the positive scores of a class activation map; 1 is the plain model. (The setting ``alpha``
    is the entropy weight of em and em_apl.)"""
    boost_mode: Literal["both", "train", "inference", "none"] = "both"
    """Phases in which the factor applies: training and inference (the method), one of them, or none."""
    stop_after_drop: float | None = None
    """Drop of validation mAP below the best, in points, at which training stops; None, as published: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.boost > 0 and math.isfinite(self.boost)):
            raise ValueError(f"boost must be positive and finite, got {self.boost}")
