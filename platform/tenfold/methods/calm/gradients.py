"""Gradient baselines: how much would the class's logit change if this pixel did?

G(x) is the greatest absolute derivative over the colour channels (captum's Saliency), and every other map is a moment
of G over points near x; captum's own averages take the channels' greatest last. The points of many draws pass through
the network together. The network should be in evaluation mode: in a batch norm that trains, pictures change each other.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tenfold.methods.calm.checks import check_labels

Classifier = Callable[[Tensor], Tensor]
_PIXELS_AT_ONCE = 1 << 21
"""Forty pictures of 224 pixels' side, or some thousand small ones."""


def input_gradient(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """G(x) = max over channels of |d s_y / dx|.

    Args:
        model: Pictures to logits ``(B, C)``.
        x: Normalised pictures ``(B, channels, H, W)``.
        y: Class of each, int64 ``(B,)``.

    Returns:
        ``(B, H, W)`` in the dtype of x.

    Raises:
        ValueError: x not floating 4-D, y not int64 ``(B,)`` or outside the classes, logits of another shape.
    """
    from captum.attr import Saliency  # here: it brings matplotlib's windows along

    _check(x, y)

    def logits_of(points: Tensor) -> Tensor:
        logits = model(points)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(f"model must give logits (B, C) with B = {len(x)}, got {tuple(logits.shape)}")
        check_labels(y, len(x), logits.shape[1], "y")
        return logits

    with torch.enable_grad():
        return Saliency(logits_of).attribute(x.detach().requires_grad_(), target=y, abs=True).amax(1)


def integrated_gradient(model: Classifier, x: Tensor, y: Tensor, steps: int = 50) -> Tensor:
    """(1/n) times the sum over k = 0..n of G(k x / n): n + 1 terms over n, no product with x, a black baseline.

    Args:
        model, x, y: As in ``input_gradient``.
        steps: n, at least 1.

    Returns:
        ``(B, H, W)`` in the dtype of x.

    Raises:
        ValueError: As in ``input_gradient``; fewer than one step.
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
    generator: torch.Generator | None = None,
    square: bool = False,
) -> Tensor:
    """Mean of G(x + noise), or of its square.

    Args:
        model, x, y: As in ``input_gradient``.
        n: Draws, at least 1.
        sigma_scale: The noise has standard deviation (max x - min x) / ``sigma_scale``, per picture.
        generator: Of the noise; torch's own if None. The draws depend on it alone, not on how many run together.
        square: Mean of G squared.

    Returns:
        ``(B, H, W)`` in the dtype of x.

    Raises:
        ValueError: As in ``input_gradient``; no draw, or a scale that is not positive.
    """
    mean, variance = _moments(model, x, y, noisy_points(x, n, sigma_scale, generator), n)
    return variance + mean.square() if square else mean


def variance_gradient(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    n: int = 50,
    sigma_scale: float = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """mean(G^2) - mean(G)^2 over noisy copies of x, never negative; arguments and errors as in ``smooth_gradient``."""
    return _moments(model, x, y, noisy_points(x, n, sigma_scale, generator), n)[1]


def noise_std(x: Tensor, sigma_scale: float = 4) -> Tensor:
    """(max x - min x) / ``sigma_scale`` of every picture, ``(B,)``."""
    if sigma_scale <= 0:
        raise ValueError(f"sigma_scale must be positive, got {sigma_scale}")
    return (x.amax((1, 2, 3)) - x.amin((1, 2, 3))) / sigma_scale


def noisy_points(x: Tensor, n: int, sigma_scale: float, generator: torch.Generator | None) -> Iterator[Tensor]:
    """``n`` noisy copies of the pictures, one draw at a time."""
    if n < 1:
        raise ValueError(f"n must be at least 1 draw, got {n}")
    if x.ndim != 4:
        raise ValueError(f"x must be pictures (B, channels, H, W), got {tuple(x.shape)}")
    std = noise_std(x.detach(), sigma_scale).view(-1, 1, 1, 1)
    device = x.device if generator is None else generator.device

    def draws() -> Iterator[Tensor]:
        for _ in range(n):
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)
            yield x.detach() + std * noise.to(x.device)

    return draws()


def merge_moments(moments: tuple[Tensor, Tensor, int], maps: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean, mean squared deviation and count, after further maps ``(k, B, H, W)``.

    Deviations from the mean rather than a difference of squares, which loses all digits where the maps hardly vary.
    """
    mean, variance, count = moments
    new, total = len(maps), count + len(maps)
    new_mean = maps.mean(0)
    difference = new_mean - mean
    new_variance = (maps - new_mean).square().mean(0)
    variance = (count * variance + new * new_variance) / total + difference.square() * (count * new / total**2)
    return mean + difference * (new / total), variance, total


def _moments(model: Classifier, x: Tensor, y: Tensor, points: Iterator[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of G over the points, some of them at once."""
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
        raise ValueError(f"x must be floating pictures (B, channels, H, W), got {x.dtype} {tuple(x.shape)}")
    if y.dtype != torch.int64 or y.shape != (len(x),):
        raise ValueError(f"y must be int64 ({len(x)},), got {y.dtype} {tuple(y.shape)}")
