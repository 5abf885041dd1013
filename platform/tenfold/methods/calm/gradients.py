"""Gradient-based attribution baselines: input, integrated, smooth and variance gradients.

G(x) is the maximum absolute derivative over the colour channels (captum's Saliency), and every other map is a moment of
G over points near x; captum's own averages take the channel maximum last. The points of many draws pass through the
network together. The network should be in evaluation mode: batch norm in training mode couples the images of a batch.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from tenfold.methods.calm.checks import check_labels

Classifier = Callable[[Tensor], Tensor]
_PIXELS_AT_ONCE = 1 << 21
"""Upper bound on the pixels of a forward pass: forty images of 224x224."""


def input_gradient(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Compute G(x) = max over channels of |d s_y / dx|.

    Args:
        model: Maps images to logits ``(B, C)``.
        x: Normalised images ``(B, channels, H, W)``.
        y: Class of each image, int64 ``(B,)``.

    Returns:
        ``(B, H, W)`` in the dtype of x.

    Raises:
        ValueError: If x is not floating-point 4-D, y not int64 ``(B,)`` or not a class, or logits have another shape.
    """
    from captum.attr import Saliency  # imported here: it imports matplotlib.pyplot

    _check(x, y)

    def logits_of(points: Tensor) -> Tensor:
        logits = model(points)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(f"model must return logits (B, C) with B = {len(x)}, got {tuple(logits.shape)}")
        check_labels(y, len(x), logits.shape[1], "y")
        return logits

    with torch.enable_grad():
        return Saliency(logits_of).attribute(x.detach().requires_grad_(), target=y, abs=True).amax(1)


def integrated_gradient(model: Classifier, x: Tensor, y: Tensor, steps: int = 50) -> Tensor:
    """Compute (1/n) sum over k = 0..n of G(k x / n): n + 1 terms over n, no product with x, zero baseline.

    Args:
        model, x, y: As in ``input_gradient``.
        steps: Number of steps n, at least 1.

    Returns:
        ``(B, H, W)`` in the dtype of x.

    Raises:
        ValueError: As in ``input_gradient``, or for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    points = (x.detach() * (k / steps) for k in range(steps + 1))
    mean, _ = _moments(model, x, y, points, steps + 1)
    return mean * ((steps + 1) / steps)


def smooth_gradient(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    n: int = 50,
    sigma_scale: float = 4,
    generator: Generator | None = None,
    square: bool = False,
) -> Tensor:
    """Compute the mean of G(x + noise), or of its square.

    Args:
        model, x, y: As in ``input_gradient``.
        n: Number of draws, at least 1.
        sigma_scale: The noise has standard deviation (max x - min x) / ``sigma_scale``, per image.
        generator: Source of the noise; torch's global one if None. Draws do not depend on the batching.
        square: Whether to average G squared.

    Returns:
        ``(B, H, W)`` in the dtype of x.

    Raises:
        ValueError: As in ``input_gradient``, or if there is no draw or the scale is not positive.
    """
    mean, variance = _moments(model, x, y, noisy_points(x, n, sigma_scale, generator), n)
    return variance + mean.square() if square else mean


def variance_gradient(
    model: Classifier, x: Tensor, y: Tensor, n: int = 50, sigma_scale: float = 4, generator: Generator | None = None
) -> Tensor:
    """Compute mean(G^2) - mean(G)^2 over noisy copies of x, never negative; arguments as in ``smooth_gradient``."""
    return _moments(model, x, y, noisy_points(x, n, sigma_scale, generator), n)[1]


def noise_std(x: Tensor, sigma_scale: float = 4) -> Tensor:
    """Compute (max x - min x) / ``sigma_scale`` of every image, ``(B,)``."""
    if sigma_scale <= 0:
        raise ValueError(f"sigma_scale must be positive, got {sigma_scale}")
    return (x.amax((1, 2, 3)) - x.amin((1, 2, 3))) / sigma_scale


def noisy_points(x: Tensor, n: int, sigma_scale: float, generator: Generator | None) -> Iterator[Tensor]:
    """Yield ``n`` noisy copies of the images, one draw at a time."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if x.ndim != 4:
        raise ValueError(f"x must be images (B, channels, H, W), got {tuple(x.shape)}")
    std = noise_std(x.detach(), sigma_scale).view(-1, 1, 1, 1)
    device = x.device if generator is None else generator.device

    def draws() -> Iterator[Tensor]:
        for _ in range(n):
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)
            yield x.detach() + std * noise.to(x.device)

    return draws()


def merge_moments(moments: tuple[Tensor, Tensor, int], maps: Tensor) -> tuple[Tensor, Tensor, int]:
    """Update mean, variance and count with further maps ``(k, B, H, W)``.

    Uses deviations from the mean, as a difference of squares cancels where the maps hardly vary.
    """
    mean, variance, count = moments
    new, total = len(maps), count + len(maps)
    new_mean = maps.mean(0)
    difference = new_mean - mean
    new_variance = (maps - new_mean).square().mean(0)
    variance = (count * variance + new * new_variance) / total + difference.square() * (count * new / total**2)
    return mean + difference * (new / total), variance, total


def _moments(model: Classifier, x: Tensor, y: Tensor, points: Iterator[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of G over the points, several per forward pass."""
    _check(x, y)
    at_once = max(1, _PIXELS_AT_ONCE // (x.shape[0] * x.shape[2] * x.shape[3]))
    zero = x.new_zeros(x.shape[0], *x.shape[2:])
    moments = zero, zero, 0
    for start in range(0, count, at_once):
        draws = [next(points) for _ in range(min(at_once, count - start))]
        maps = input_gradient(model, torch.cat(draws), y.repeat(len(draws)))
        moments = merge_moments(moments, maps.unflatten(0, (len(draws), len(x))))
    return moments[0], moments[1]


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or not x.numel() or not x.is_floating_point():
        raise ValueError(f"x must be floating-point images (B, channels, H, W), got {x.dtype} {tuple(x.shape)}")
    if y.dtype != torch.int64 or y.shape != (len(x),):
        raise ValueError(f"y must be int64 ({len(x)},), got {y.dtype} {tuple(y.shape)}")
