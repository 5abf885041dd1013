"""CRPS and sharpness of a predicted Gaussian.

CRPS: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007. Likelihoods are in
``likelihoods``.
"""

import math

import numpy as np
import torch
from torch import Tensor

from tenfold.metrics.regression.elements import Reduction, check_positive, check_reduction, reduced
from tenfold.metrics.regression.likelihoods import check_finite_inputs, full_precision_triple


def gaussian_crps(mean: Tensor, std: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Continuous ranked probability score: sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - mu) / sigma.

    Args:
        mean, target: Same shape, any floating dtype.
        std: sigma, positive, broadcasts to that shape.
        reduction: Over all elements.

    Returns:
        In the target's unit, at least 0, lower is better; shape ``()`` or that of ``mean``, float32 for half precision.
        Tends to the absolute error as sigma tends to 0.

    Raises:
        ValueError: Mismatched shapes, not a floating dtype, a non-positive std, mean or target not finite, unknown
            reduction.
    """
    check_reduction(reduction)
    mean, std, target = full_precision_triple(mean, std, target, "std")
    check_positive(std, "std")
    z = (target - mean) / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    result = reduced(std * (z * torch.special.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)), reduction)
    check_finite_inputs(result, mean=mean, target=target)
    return result


def sharpness(std: "Tensor | np.ndarray") -> float:
    """Root mean variance, in the target's unit; depends on the predictions alone.

    Args:
        std: Positive, any shape.

    Raises:
        ValueError: No values, a non-positive std, NaN or infinity.
    """
    values = torch.as_tensor(std).detach().to(torch.float64)
    if not values.numel():
        raise ValueError("std must hold at least one value, got none")
    check_positive(values, "std")
    return float(values.square().mean().sqrt())
