"""Settings of posterior annealing and of the baselines that it is compared with."""

from dataclasses import dataclass
from typing import Literal

Objective = Literal["annealed", "gaussian_nll", "beta_nll", "mse"]
Uncertainty = Literal["head", "mc_dropout", "deep_ensemble", "tta"]
Recalibration = Literal["none", "sigma_nll", "sigma_ratio", "isotonic"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training; a Config that exists is a valid one."""

    objective: Objective = "annealed"
    """``annealed`` is the method; ``gaussian_nll`` the plain likelihood; ``beta_nll`` the same weighted with
    sigma^(2 beta); ``mse`` learns the mean alone, and its std is the error on the validation part, everywhere alike."""
    schedule: Literal["cosine", "linear", "exponential", "staged"] = "cosine"
    """How the weight tau of the prior falls from ``start`` to 0."""
    start: float = 1.0
    """Weight tau of the first step, in (0, 1]; below 1 for the sum form."""
    hold: float = 0.0
    """Share of the training before tau begins to fall, in [0, ``end``)."""
    end: float = 1.0
    """Share of the training at which tau is 0, in (0, 1]: beyond it the plain likelihood is learnt."""
    rate: float = 6.0
    """How steep ``exponential`` falls."""
    residual_weight: float = 1.0
    """Weight l1 of the prior that residuals are small."""
    coupling_weight: float = 1.0
    """Weight l2 of the prior that sigma equals the residual."""
    residual_power: float = 2.0
    """Power p of the residual, at least 1."""
    detach_residual: bool = False
    """Whether the coupling teaches sigma alone and leaves the mean in peace."""
    form: Literal["convex", "sum"] = "convex"
    """``convex`` weighs likelihood against prior; ``sum`` adds the prior to the whole likelihood."""
    beta: float = 0.5
    """Of ``beta_nll``, in [0, 1]."""
    uncertainty: Uncertainty = "head"
    """Where the std comes from: the network's second head; passes with dropout; networks trained apart; noisy inputs.
    The last three add to the head's variance that of the means."""
    num_members: int = 5
    """Networks of a deep ensemble, at least 2."""
    num_passes: int = 30
    """Passes of MC dropout and of noisy inputs, at least 2."""
    input_noise: float = 0.05
    """Std of the noise on inputs (``tta``), as a share of each input's largest absolute value."""
    recalibration: Recalibration = "none"
    """What is fitted after training on a share of the training part that the networks don't see."""
    calibration_fraction: float = 0.2
    """That share, in (0, 1); only taken where something is fitted on it."""
    learning_rate: float = 1e-3
    """Adam's, at the start."""
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine"
    """``cosine`` falls to 0 along with the temperature, at every step."""
    weight_decay: float = 0.0
    """L2 penalty."""
    num_bins: int = 15
    """Bins M of the calibration errors."""

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1 or (self.form == "sum" and self.start == 1):
            raise ValueError(
                f"start must lie in (0, 1], and below 1 for the sum form, where the prior's weight is "
                f"tau / (1 - tau); got {self.start} for {self.form}"
            )
        if not 0 < self.end <= 1:
            raise ValueError(
                f"end must lie in (0, 1], got {self.end}: tau has to be 0 before training ends, or the model stays "
                f"over-confident"
            )
        if not 0 <= self.hold < self.end:
            raise ValueError(f"hold must lie in [0, end = {self.end}), got {self.hold}")
        for name in ("residual_weight", "coupling_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("rate", "learning_rate", "input_noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.residual_power < 1:
            raise ValueError(f"residual_power must be at least 1, got {self.residual_power}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")
        if self.num_members < 2 or self.num_passes < 2:
            raise ValueError(
                f"num_members and num_passes must be at least 2, got {self.num_members} and {self.num_passes}"
            )
        if not 0 < self.calibration_fraction < 1:
            raise ValueError(f"calibration_fraction must lie in (0, 1), got {self.calibration_fraction}")
        if self.num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {self.num_bins}")
        if self.objective == "mse" and self.uncertainty == "head" and self.recalibration != "none":
            raise ValueError(
                "mse has one std for all, fitted to the validation part: leave recalibration none, or choose another "
                "objective"
            )
