"""Likelihood Annealing: Fast Calibrated Uncertainty for Regression (first called Posterior Annealing).

Uddeshya Upadhyay, Jae Myung Kim, Cordelia Schmid, Bernhard Schoelkopf, Zeynep Akata. 2023, arXiv 2302.11012.

A network that predicts a mean and a variance converges slowly where its errors are large, and is badly calibrated. The
method starts from an improper likelihood, whose gradients are larger there, and anneals it to the Gaussian likelihood
during training, together with the learning rate.
"""

from tenfold.data.embedded.physics.lorenz import lorenz_rhs, simulate_lorenz
from tenfold.methods.posterior_annealing.loss import annealed_likelihood_loss, annealed_likelihood_modes
from tenfold.methods.posterior_annealing.schedules import annealing_weight
from tenfold.metrics.regression.calibration import (
    CalibrationBins,
    QuantileCalibration,
    calibration_bins,
    error_uncertainty_correlation,
    expected_normalized_calibration_error,
    quantile_calibration,
    uncertainty_calibration_error,
)
from tenfold.metrics.regression.image_quality import image_psnr, image_ssim
from tenfold.metrics.regression.likelihoods import (
    gaussian_nll,
    generalized_gaussian_nll,
    generalized_gaussian_variance,
)
from tenfold.metrics.regression.moments import PredictiveMoments, predictive_moments
from tenfold.metrics.regression.recalibration import IsotonicCalibrator, SigmaScaler
from tenfold.metrics.regression.scores import gaussian_crps, sharpness
from tenfold.models.regressors.egnn import EGNN
from tenfold.models.regressors.unet import ResidualBlock

__all__ = [
    "EGNN",
    "CalibrationBins",
    "IsotonicCalibrator",
    "PredictiveMoments",
    "QuantileCalibration",
    "ResidualBlock",
    "SigmaScaler",
    "annealed_likelihood_loss",
    "annealed_likelihood_modes",
    "annealing_weight",
    "calibration_bins",
    "error_uncertainty_correlation",
    "expected_normalized_calibration_error",
    "gaussian_crps",
    "gaussian_nll",
    "generalized_gaussian_nll",
    "generalized_gaussian_variance",
    "image_psnr",
    "image_ssim",
    "lorenz_rhs",
    "predictive_moments",
    "quantile_calibration",
    "sharpness",
    "simulate_lorenz",
    "uncertainty_calibration_error",
]
