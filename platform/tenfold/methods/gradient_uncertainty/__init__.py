"""Sampling-based Bayesian Inference with gradient uncertainty.

Chanwoo Park, Jae Myung Kim, Seok Hyeon Ha, Jungwoo Lee. 2018, arXiv 1812.03285.

Gradient descent has reached a mode where the per-example gradients of a minibatch cancel: the sampler keeps the
parameters there as a posterior sample ("member") and kicks the chain towards another mode. The members disagree where
the data do not determine the answer.
"""

from tenfold.methods.gradient_uncertainty.members import posterior_predictive
from tenfold.methods.gradient_uncertainty.per_example import per_example_gradients
from tenfold.methods.gradient_uncertainty.sampler import GradientUncertaintySampler, PosteriorSamples, SamplerConfig
from tenfold.methods.gradient_uncertainty.steps import (
    langevin_step,
    potential_gradient_variance,
    triggered_langevin_step,
)
from tenfold.methods.gradient_uncertainty.theory import stationary_variance
from tenfold.methods.gradient_uncertainty.toy import toy_potential
from tenfold.methods.gradient_uncertainty.uncertainty import GradientUncertainty, gradient_uncertainty
from tenfold.metrics.uncertainty import PredictiveUncertainty, predictive_uncertainty
from tenfold.models.digit_cnn import DigitCNN

__all__ = [
    "DigitCNN",
    "GradientUncertainty",
    "GradientUncertaintySampler",
    "PosteriorSamples",
    "PredictiveUncertainty",
    "SamplerConfig",
    "gradient_uncertainty",
    "langevin_step",
    "per_example_gradients",
    "posterior_predictive",
    "potential_gradient_variance",
    "predictive_uncertainty",
    "stationary_variance",
    "toy_potential",
    "triggered_langevin_step",
]
