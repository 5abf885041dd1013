"""Settings of gradient uncertainty, of the samplers and of what they are compared with."""

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
    """Settings of one training; a Config that exists is a valid one. The defaults are those of the published code."""

    scheme: Scheme = "triggered"
    """``triggered`` is the method: a member is kept, and the chain kicked on, where a minibatch's gradients cancel;
    ``random_kicks`` does so by chance. ``plain`` and ``corrected`` are Langevin dynamics, ``sghmc`` has momentum (by
    the library posteriors), ``swag`` fits a Gaussian to the path of gradient descent, ``laplace`` one to the loss
    around its end (last layer, by the extra laplace-torch). ``bayes_by_backprop`` trains a Gaussian for every
    parameter and draws from it. ``deterministic`` is one network."""
    learning_rate: float = 0.01
    """Of gradient descent; the samplers' steps are as long as its."""
    num_members: int = 60
    """Members K that are kept, drawn, trained or (``mc_dropout``) passed through."""
    noise_power: float = -0.25
    """A kick moves every parameter by a standard deviation of learning_rate ** (1 + noise_power)."""
    threshold: float = 1 / 3
    """Gradient uncertainty above which a member is kept; from 1 on there is none."""
    warmup_steps: int = 300
    """The last step at which no member is kept."""
    kick_rate: float = 0.01
    """Of ``random_kicks``: their probability at each step after the warm-up, in (0, 1]."""
    temperature: float = 1.0
    """Of the Langevin samplers: 1 is the posterior, below it is colder."""
    prior_variance: float = 1.0
    """Of the normal prior on every parameter, for the Langevin samplers, ``sghmc`` and ``bayes_by_backprop``."""
    burn_in: float = 0.2
    """Share of the steps, in [0, 1), before the first member can be kept: Langevin samplers, ``sghmc``, ``swag``."""
    friction: float = 0.1
    """Of ``sghmc``, positive: share of the momentum that a step at this learning rate takes away."""
    swag_rank: int = 20
    """Of ``swag``: columns of its low-rank covariance, at least 2."""
    initial_std: float = 0.02
    """Of ``bayes_by_backprop``, positive: standard deviation with which every parameter begins."""
    dropout: float = 0.3
    """Of ``mc_dropout``: share of units dropped before each linear layer, in (0, 1)."""
    score: Score = "predictive_entropy"
    """What tells pictures that don't belong from those that do."""
    false_positive_rate: float = 0.05
    """Share in (0, 1) of held-out known pictures that may be flagged; fixes the flag's threshold."""
    judge_epochs: int = 10
    """Passes of the network that says which test pictures are confusing: the 5 % whose two best classes it finds
    closest are measured against the rest, as the set ``small_margin``. It is none of the members. 0: no such set."""
    figures: bool = True
    """Whether figures of the finished training are drawn; all pictures are scored once more for them."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "prior_variance", "friction", "initial_std"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("noise_power", "threshold"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if self.num_members < 1 or self.warmup_steps < 0 or self.temperature < 0 or self.judge_epochs < 0:
            raise ValueError(
                f"num_members must be at least 1, warmup_steps, temperature and judge_epochs at least 0; "
                f"got {self.num_members}, {self.warmup_steps}, {self.temperature} and {self.judge_epochs}"
            )
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
            raise ValueError(
                f"threshold must be below 1, which gradient uncertainty never exceeds; got {self.threshold}"
            )
