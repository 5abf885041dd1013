"""Settings of Large Loss and of the baselines that it is compared with."""

from dataclasses import dataclass

from tenfold.models.partial_labels.settings import PartialLabelConfig


@dataclass(frozen=True, kw_only=True)
class Config(PartialLabelConfig):
    """Settings of one training; a Config that exists is a valid one. All are shared with what builds on it."""
