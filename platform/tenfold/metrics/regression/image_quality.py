"""How close two pictures are, for networks whose targets are pictures.

SSIM: Wang et al., 2004, here with a window of five taps, so torchmetrics' (whose width follows from sigma) is no
substitute.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

WINDOW_TAPS = 5
WINDOW_SIGMA = 1.5
_EPS = 1e-12


def image_psnr(prediction: Tensor, target: Tensor, *, max_value: float = 1.0) -> float:
    """Peak signal-to-noise ratio 10 log10(max^2 / MSE) of each picture, averaged over pictures.

    Args:
        prediction, target: ``(C, H, W)`` or ``(B, C, H, W)``, one shape.
        max_value: Largest value that a pixel can have.

    Returns:
        Decibels; infinite if a picture is met exactly.

    Raises:
        ValueError: Other shapes, nothing in them, NaN or infinity, max_value not positive.
    """
    first, second = _pictures(prediction, target, max_value)
    errors = (first - second).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(max_value**2 / errors)).mean())


def image_ssim(prediction: Tensor, target: Tensor, *, max_value: float = 1.0) -> float:
    """Structural similarity, averaged over pixels, channels and pictures.

    Gaussian window of sigma 1.5 and five taps, borders reflected, C1 = (0.01 max)^2, C2 = (0.03 max)^2; moments are
    weighted means, variances E[x^2] - E[x]^2; computed in float64.

    Args:
        prediction, target: ``(C, H, W)`` or ``(B, C, H, W)``, one shape, at least 3 pixels high and wide.
        max_value: Largest value that a pixel can have.

    Returns:
        At most 1, which is equality.

    Raises:
        ValueError: Other shapes, too small or nothing in them, NaN or infinity, max_value not positive.
    """
    first, second = _pictures(prediction, target, max_value)
    margin = WINDOW_TAPS // 2
    if min(first.shape[2:]) <= margin:
        raise ValueError(f"pictures must be at least {margin + 1} pixels high and wide, got {tuple(first.shape[2:])}")
    a, b, aa, bb, ab = _windowed(torch.stack([first, second, first**2, second**2, first * second]), margin)
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    above = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    below = (a**2 + b**2 + c1) * (aa - a**2 + bb - b**2 + c2)
    return float((above / (below + _EPS)).mean())


def _windowed(stack: Tensor, margin: int) -> Tensor:
    """Weighted mean around every pixel of ``(5, B, C, H, W)``; the window is a product, so one axis after the other."""
    offsets = torch.arange(-margin, margin + 1, dtype=stack.dtype, device=stack.device)
    taps = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    taps = taps / taps.sum()
    height, width = stack.shape[-2:]
    planes = functional.pad(stack.reshape(-1, 1, height, width), (margin,) * 4, mode="reflect")
    rows = functional.conv2d(planes, taps.view(1, 1, -1, 1))
    return functional.conv2d(rows, taps.view(1, 1, 1, -1)).reshape(stack.shape)


def _pictures(prediction: Tensor, target: Tensor, max_value: float) -> tuple[Tensor, Tensor]:
    """Both as float64 ``(B, C, H, W)``."""
    if prediction.shape != target.shape or prediction.ndim not in (3, 4) or not prediction.numel():
        raise ValueError(
            f"prediction and target must be (C, H, W) or (B, C, H, W), of one shape and not empty, got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if not 0 < max_value < math.inf:
        raise ValueError(f"max_value must be positive and finite, got {max_value}")
    first, second = (each.detach().to(torch.float64) for each in (prediction, target))
    if not bool(torch.isfinite(first - second).all()):
        raise ValueError("prediction and target must be finite, got NaN or infinity")
    return (first, second) if first.ndim == 4 else (first[None], second[None])
