"""Settings of gradient uncertainty, its samplers and its baselines."""

import math
from dataclasses import dataclass
from typing import Literal

Scheme = Literal[
    "triggered", "random_kicks", "plain", "corrected", "sghmc", "swag", "laplace", "bayes_by_backprop", "deep_ensemble",
    "mc_dropout", "deterministic",
]  # fmt: skip
CHAINS = ("triggered", "random_kicks", "plain", "corrected", "sghmc", "swag")
Score = Literal["predictive_entropy", "mutual_information", "variation_ratio"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training, validated on construction. The defaults are those of the published code."""

    scheme: Scheme = "triggered"
    """``triggered`` is the method: a member is kept, and the chain kicked, when minibatch gradients cancel;
    ``random_kicks`` does so at random. ``plain`` and ``corrected`` are Langevin dynamics; ``sghmc`` adds momentum (by
    the library posteriors); ``swag`` fits a Gaussian to the trajectory of gradient descent; ``laplace`` is the
    last-layer Laplace approximation (by the optional laplace-torch); ``bayes_by_backprop`` trains a Gaussian over every
    parameter and draws from it; ``deterministic`` is one network."""
    learning_rate: float = 0.01
    """Learning rate of gradient descent; the samplers have the same drift."""
    num_members: int = 60
    """Number K of members kept, drawn or trained, or of passes (``mc_dropout``)."""
    noise_power: float = -0.25
    """A kick displaces every parameter with a standard deviation of learning_rate ** (1 + noise_power)."""
    threshold: float = 1 / 3
    """Gradient uncertainty above which a member is kept; never exceeded from 1 on."""
    warmup_steps: int = 300
    """Last step at which no member is kept."""
    kick_rate: float = 0.01
    """``random_kicks``: probability of a kick per step after the warm-up, in (0, 1]."""
    temperature: float = 1.0
    """Langevin samplers: temperature; 1 is the posterior, lower is colder."""
    prior_variance: float = 1.0
    """Langevin samplers, ``sghmc``, ``bayes_by_backprop``: variance of the normal prior on every parameter."""
    burn_in: float = 0.2
    """Langevin samplers, ``sghmc``, ``swag``: fraction of the steps, in [0, 1), before the first member can be kept."""
    friction: float = 0.1
    """``sghmc``: fraction of the momentum removed per step at this learning rate, positive."""
    swag_rank: int = 20
    """``swag``: columns of the low-rank covariance, at least 2."""
    initial_std: float = 0.02
    """``bayes_by_backprop``: initial standard deviation of every parameter, positive."""
    dropout: float = 0.3
    """``mc_dropout``: dropout rate before each linear layer, in (0, 1)."""
    score: Score = "predictive_entropy"
    """Out-of-distribution score."""
    false_positive_rate: float = 0.05
    """False-positive rate of the out-of-distribution flag on held-out images, in (0, 1); sets its threshold."""
    judge_epochs: int = 10
    """Epochs of a separate network, the judge, that selects ambiguous test images: the 5 % with the smallest margin
    between its two best classes form the set ``small_margin``, evaluated against the rest. The judge is not a member.
    0: no such set."""
    figures: bool = True
    """Whether to draw figures after training; they score all images once more."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "prior_variance", "friction", "initial_std"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("noise_power", "threshold"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name, least in (("num_members", 1), ("warmup_steps", 0), ("temperature", 0), ("judge_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.kick_rate <= 1:
            raise ValueError(f"kick_rate must lie in (0, 1], got {self.kick_rate}")
        if not 0 <= self.burn_in < 1:
            raise ValueError(f"burn_in must lie in [0, 1), got {self.burn_in}")
        for name in ("dropout", "false_positive_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        if self.swag_rank < 2:
            raise ValueError(f"swag_rank must be at least 2, got {self.swag_rank}")
        if self.scheme == "triggered" and self.threshold >= 1:
            raise ValueError(f"threshold must be below 1, got {self.threshold}; gradient uncertainty never exceeds 1")
