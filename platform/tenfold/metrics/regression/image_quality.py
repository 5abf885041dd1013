"""PSNR and SSIM, for networks whose targets are images.

SSIM: Wang et al., 2004, with a window of five taps. torchmetrics derives the window from sigma, so it cannot stand in.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

WINDOW_TAPS = 5
WINDOW_SIGMA = 1.5
_EPS = 1e-12


def image_psnr(prediction: Tensor, target: Tensor, *, max_value: float = 1.0) -> float:
    """Peak signal-to-noise ratio 10 log10(max^2 / MSE) per image, averaged over images.

    Args:
        prediction, target: ``(C, H, W)`` or ``(B, C, H, W)``, same shape.
        max_value: Largest value that a pixel can have.

    Returns:
        Decibels; infinite if an image is predicted exactly.

    Raises:
        ValueError: Wrong shapes, empty images, NaN or infinity, max_value not positive.
    """
    first, second = _as_batches(prediction, target, max_value)
    errors = (first - second).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(max_value**2 / errors)).mean())


def image_ssim(prediction: Tensor, target: Tensor, *, max_value: float = 1.0) -> float:
    """Structural similarity (SSIM), averaged over pixels, channels and images.

    Gaussian window with sigma 1.5 and five taps, reflect padding, C1 = (0.01 max)^2, C2 = (0.03 max)^2; moments are
    weighted means, variances E[x^2] - E[x]^2; computed in float64.

    Args:
        prediction, target: ``(C, H, W)`` or ``(B, C, H, W)``, same shape, at least 3 x 3 pixels.
        max_value: Largest value that a pixel can have.

    Returns:
        At most 1, for equal images.

    Raises:
        ValueError: Wrong shapes, empty or too small images, NaN or infinity, max_value not positive.
    """
    first, second = _as_batches(prediction, target, max_value)
    margin = WINDOW_TAPS // 2
    if min(first.shape[2:]) <= margin:
        raise ValueError(f"images must be at least {margin + 1} pixels high and wide, got {tuple(first.shape[2:])}")
    a, b, aa, bb, ab = _windowed(torch.stack([first, second, first**2, second**2, first * second]), margin)
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    above = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    below = (a**2 + b**2 + c1) * (aa - a**2 + bb - b**2 + c2)
    return float((above / (below + _EPS)).mean())


def _windowed(stack: Tensor, margin: int) -> Tensor:
    """Weighted mean around each pixel of ``(5, B, C, H, W)``; the window is separable, one axis at a time."""
    offsets = torch.arange(-margin, margin + 1, dtype=stack.dtype, device=stack.device)
    taps = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    taps = taps / taps.sum()
    height, width = stack.shape[-2:]
    planes = functional.pad(stack.reshape(-1, 1, height, width), (margin,) * 4, mode="reflect")
    rows = functional.conv2d(planes, taps.view(1, 1, -1, 1))
    return functional.conv2d(rows, taps.view(1, 1, 1, -1)).reshape(stack.shape)


def _as_batches(prediction: Tensor, target: Tensor, max_value: float) -> tuple[Tensor, Tensor]:
    """Check both images and return them as float64 ``(B, C, H, W)``."""
    if prediction.shape != target.shape or prediction.ndim not in (3, 4) or not prediction.numel():
        raise ValueError(
            f"prediction and target must be (C, H, W) or (B, C, H, W), of the same shape and not empty, got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if not 0 < max_value < math.inf:
        raise ValueError(f"max_value must be positive and finite, got {max_value}")
    first, second = (each.detach().to(torch.float64) for each in (prediction, target))
    if not bool(torch.isfinite(first - second).all()):
        raise ValueError("prediction and target must be finite, got NaN or infinity")
    return (first, second) if first.ndim == 4 else (first[None], second[None])
