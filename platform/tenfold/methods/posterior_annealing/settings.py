"""Settings of posterior annealing and its baselines."""

from dataclasses import dataclass
from typing import Literal

Objective = Literal["annealed", "gaussian_nll", "beta_nll", "mse"]
Uncertainty = Literal["head", "mc_dropout", "deep_ensemble", "tta"]
Recalibration = Literal["none", "sigma_nll", "sigma_ratio", "isotonic"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one training; a Config that exists is a valid one."""

    objective: Objective = "annealed"
    """``annealed`` is the method; ``gaussian_nll`` the plain likelihood; ``beta_nll`` the same weighted by
    sigma^(2 beta); ``mse`` trains the mean only and uses one constant std, the error on the validation split."""
    schedule: Literal["cosine", "linear", "exponential", "staged"] = "cosine"
    """Schedule of the weight tau of the prior, from ``start`` to 0."""
    start: float = 1.0
    """Weight tau at the first step, in (0, 1]; below 1 for the sum form."""
    hold: float = 0.0
    """Fraction of training before tau starts to fall, in [0, ``end``)."""
    end: float = 1.0
    """Fraction of training at which tau reaches 0, in (0, 1]; from there on the loss is the plain likelihood."""
    rate: float = 6.0
    """Decay rate of ``exponential``."""
    residual_weight: float = 1.0
    """Weight l1 of the prior on small residuals."""
    coupling_weight: float = 1.0
    """Weight l2 of the prior that couples sigma to the residual."""
    residual_power: float = 2.0
    """Power p of the residual, at least 1."""
    detach_residual: bool = False
    """Whether the coupling trains sigma only and sends no gradient to the mean."""
    form: Literal["convex", "sum"] = "convex"
    """``convex`` interpolates between likelihood and prior; ``sum`` adds the prior to the full likelihood."""
    beta: float = 0.5
    """Exponent of the variance in ``beta_nll``, in [0, 1]."""
    uncertainty: Uncertainty = "head"
    """Source of the std: ``head``, the variance head; ``mc_dropout``, passes with dropout; ``deep_ensemble``, networks
    trained independently; ``tta``, noisy inputs. The last three add the variance of the means to that of the head."""
    num_members: int = 5
    """Number of networks of a deep ensemble, at least 2."""
    num_passes: int = 30
    """Number of passes of MC dropout and of ``tta``, at least 2."""
    input_noise: float = 0.05
    """Std of the noise on inputs (``tta``), as a fraction of the largest absolute value of each input."""
    recalibration: Recalibration = "none"
    """Post-hoc recalibration, fitted on a calibration split that is held out from the training split."""
    calibration_fraction: float = 0.2
    """Fraction of the training split in the calibration split, in (0, 1); only used with a recalibration."""
    learning_rate: float = 1e-3
    """Initial learning rate of Adam."""
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine"
    """``cosine`` anneals it to 0 along with the temperature, at every step."""
    weight_decay: float = 0.0
    """L2 penalty."""
    num_bins: int = 15
    """Number of bins M of the calibration errors."""

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1 or (self.form == "sum" and self.start == 1):
            raise ValueError(
                f"start must lie in (0, 1], and be below 1 for the sum form, got {self.start} for {self.form}; the "
                f"weight of the prior in the sum form is tau / (1 - tau)"
            )
        if not 0 < self.end <= 1:
            raise ValueError(
                f"end must lie in (0, 1], got {self.end}; tau has to be 0 before training ends, or the model stays "
                f"over-confident"
            )
        if not 0 <= self.hold < self.end:
            raise ValueError(f"hold must lie in [0, end = {self.end}), got {self.hold}")
        for name in ("residual_weight", "coupling_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
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
                f"recalibration must be none for objective mse, whose single std is fitted on the validation split, "
                f"got {self.recalibration}; choose another objective to recalibrate"
            )
