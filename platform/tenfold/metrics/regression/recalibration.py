"""Post-hoc recalibration of a predicted std, fitted on held-out predictions."""

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tenfold.metrics.regression.elements import AnyArray, like, standard_scores

ScaleMethod = Literal["nll", "ratio"]


class SigmaScaler:
    """Sigma scaling: one factor for all stds (Levi et al., 2019; Laves et al., 2020).

    Args:
        method: ``nll`` is S = sqrt(mean(r^2 / sigma^2)), which maximises the Gaussian likelihood; ``ratio`` is
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
        """Fit the factor on held-out predictions.

        Args:
            mean, target: Same shape.
            std: Positive, broadcasts to that shape.

        Raises:
            ValueError: Mismatched shapes, no values, a non-positive std, NaN or infinity, or only errors of 0 (every
                std would become 0).
        """
        residual, spread = standard_scores(mean, std, target)
        if self.method == "nll":
            scale = float((residual / spread).square().mean().sqrt())
        else:
            scale = float(residual.abs().sum() / spread.sum())
        if not scale > 0:
            raise ValueError("mean must differ from target somewhere, got no errors; there is nothing to scale by")
        self._scale = scale
        return self

    @property
    def scale(self) -> float:
        """Factor applied to every std.

        Raises:
            ValueError: Before ``fit``.
        """
        if self._scale is None:
            raise ValueError("scale is not fitted; call fit first")
        return self._scale

    def transform(self, std: AnyArray) -> AnyArray:
        """Return ``scale * std``, same shape and dtype."""
        return std * self.scale


class IsotonicCalibrator:
    """Isotonic regression from observed to expected proportions (Kuleshov et al., 2018), by scikit-learn."""

    def __init__(self) -> None:
        self._curve: Any = None

    def fit(self, expected: "Tensor | np.ndarray", observed: "Tensor | np.ndarray") -> "IsotonicCalibrator":
        """Fit the map from observed coverage to nominal level.

        Args:
            expected: Nominal levels, 1-D, from ``quantile_calibration``.
            observed: Observed coverage at each level.

        Raises:
            ValueError: Not two non-empty 1-D arrays of the same length in [0, 1].
        """
        levels, shares = (torch.as_tensor(each).detach().to(torch.float64) for each in (expected, observed))
        if levels.ndim != 1 or levels.shape != shares.shape or not len(levels):
            raise ValueError(
                f"expected and observed must be 1-D and equally long, "
                f"got {tuple(levels.shape)} and {tuple(shares.shape)}"
            )
        for name, values in (("expected", levels), ("observed", shares)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"{name} must lie in [0, 1], got {values.min().item()} to {values.max().item()}")
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(increasing=True, out_of_bounds="clip")
        self._curve = curve.fit(shares.cpu().numpy(), levels.cpu().numpy())
        return self

    def transform(self, proportions: AnyArray) -> AnyArray:
        """Return the nominal levels to request so that the intervals have the desired coverage.

        Args:
            proportions: Desired coverage, any shape; clipped to the fitted range.

        Returns:
            Same shape, float64; linear between the fitted points, constant beyond the outermost.

        Raises:
            ValueError: Before ``fit``, or NaN.
        """
        if self._curve is None:
            raise ValueError("curve is not fitted; call fit first")
        wanted = torch.as_tensor(proportions).detach().to(torch.float64).cpu().numpy()
        if np.isnan(wanted).any():
            raise ValueError("proportions must not contain NaN, got NaN")
        return like(torch.from_numpy(self._curve.predict(wanted.reshape(-1)).reshape(wanted.shape)), proportions)
