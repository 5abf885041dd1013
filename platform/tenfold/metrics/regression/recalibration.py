"""Repairs after training: what is fitted on held-out predictions so that the std fits the errors."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tenfold.metrics.regression.elements import AnyArray, like, standard_scores

ScaleMethod = Literal["nll", "ratio"]


class SigmaScaler:
    """One factor for every std (Levi et al., 2019; Laves et al., 2020).

    Args:
        method: ``nll``: S = sqrt(mean(r^2 / sigma^2)), at which the Gaussian likelihood is greatest; ``ratio``:
            sum |r| / sum sigma.

    Raises:
        ValueError: Unknown method.
    """

    def __init__(self, method: ScaleMethod = "nll") -> None:
        if method not in get_args(ScaleMethod):
            raise ValueError(f"method must be one of {', '.join(get_args(ScaleMethod))}, got {method!r}")
        self.method = method
        self._scale: float | None = None

    def fit(
        self, mean: "Tensor | np.ndarray", std: "Tensor | np.ndarray", target: "Tensor | np.ndarray"
    ) -> "SigmaScaler":
        """Take the factor from predictions that the network was not trained on.

        Args:
            mean, target: One shape.
            std: Positive, broadcasts to it.

        Raises:
            ValueError: Shapes that don't fit, nothing in them, a std that is not positive, NaN or infinity, or no error
                at all (every std would become 0).
        """
        residual, spread = standard_scores(mean, std, target)
        if self.method == "nll":
            scale = float((residual / spread).square().mean().sqrt())
        else:
            scale = float(residual.abs().sum() / spread.sum())
        if not scale > 0:
            raise ValueError("mean must differ from target somewhere: without an error there is nothing to scale by")
        self._scale = scale
        return self

    @property
    def scale(self) -> float:
        """The factor.

        Raises:
            ValueError: Before ``fit``.
        """
        if self._scale is None:
            raise ValueError("there is no scale yet: call fit before")
        return self._scale

    def transform(self, std: AnyArray) -> AnyArray:
        """``scale * std``, same shape and dtype."""
        return std * self.scale


class IsotonicCalibrator:
    """A rising curve through observed and expected proportions (Kuleshov et al., 2018), by scikit-learn."""

    def __init__(self) -> None:
        self._curve: Any = None

    def fit(self, expected: "Tensor | np.ndarray", observed: "Tensor | np.ndarray") -> "IsotonicCalibrator":
        """Fit which nominal level holds each observed share of the targets.

        Args:
            expected: Nominal levels, 1-D, from ``quantile_calibration``.
            observed: Share of the targets at each of them.

        Raises:
            ValueError: Not two 1-D arrays of one length, at least 1, in [0, 1].
        """
        levels, shares = (torch.as_tensor(each).detach().to(torch.float64) for each in (expected, observed))
        if levels.ndim != 1 or levels.shape != shares.shape or not len(levels):
            raise ValueError(
                f"expected and observed must be 1-D of one length, got {tuple(levels.shape)} and {tuple(shares.shape)}"
            )
        for name, values in (("expected", levels), ("observed", shares)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"{name} must lie in [0, 1], got {values.min().item()} to {values.max().item()}")
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(increasing=True, out_of_bounds="clip")
        self._curve = curve.fit(shares.cpu().numpy(), levels.cpu().numpy())
        return self

    def transform(self, proportions: AnyArray) -> AnyArray:
        """Nominal levels that should be asked for so that these proportions hold.

        Args:
            proportions: Any shape.

        Returns:
            Same shape, float64; straight between the fitted points, the outermost ones' beyond them.

        Raises:
            ValueError: Before ``fit``, or NaN.
        """
        if self._curve is None:
            raise ValueError("there is no curve yet: call fit before")
        wanted = torch.as_tensor(proportions).detach().to(torch.float64).cpu().numpy()
        if np.isnan(wanted).any():
            raise ValueError("proportions must be numbers, got NaN")
        return like(torch.from_numpy(self._curve.predict(wanted.reshape(-1)).reshape(wanted.shape)), proportions)
