"""Gradient baselines: published values, single against batched draws, refusals."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tenfold.methods.calm import gradients
from tenfold.methods.calm.gradients import (
    input_gradient,
    integrated_gradient,
    merge_moments,
    noise_std,
    smooth_gradient,
    variance_gradient,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden/calm.npz")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


@pytest.fixture(scope="module")
def network():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    model = nn.Sequential(*layers).double()
    weights = {"0.weight": "conv_weight", "0.bias": "conv_bias", "4.weight": "fc_weight", "4.bias": "fc_bias"}
    model.load_state_dict({key: golden(f"grad/{name}") for key, name in weights.items()})
    return model


@pytest.fixture(scope="module")
def images():
    return golden("grad/x"), golden("head/labels")


def draw_one_by_one(network, images, n, seed):
    """Compute maps ``(n, B, H, W)`` of noisy images, each in its own pass."""
    x, y = images
    generator = torch.Generator().manual_seed(seed)
    std = noise_std(x).view(-1, 1, 1, 1)
    noisy = [x + std * torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(n)]
    return torch.stack([input_gradient(network, points, y) for points in noisy])


def test_gradients_match_golden(network, images):
    torch.testing.assert_close(input_gradient(network, *images), golden("grad/input"), **TOLERANCE)
    torch.testing.assert_close(integrated_gradient(network, *images, steps=8), golden("grad/integrated"), **TOLERANCE)


def test_noise_scale_matches_golden():
    torch.testing.assert_close(noise_std(golden("grad/x")), golden("grad/noise_sigma"), **TOLERANCE)


@pytest.mark.parametrize("cuts", [(0, 6), (0, 2, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_moments_match_golden_however_they_are_taken(cuts):
    stack = golden("grad/stack")
    moments = torch.zeros_like(stack[0]), torch.zeros_like(stack[0]), 0
    for start, end in pairwise(cuts):
        moments = merge_moments(moments, stack[start:end])
    mean, variance, count = moments
    assert count == 6
    torch.testing.assert_close(mean, golden("grad/smooth"), **TOLERANCE)
    torch.testing.assert_close(variance + mean.square(), golden("grad/smooth_square"), **TOLERANCE)
    torch.testing.assert_close(variance, golden("grad/variance"), **TOLERANCE)


@pytest.mark.parametrize("pixels_at_once", [1, 600, 1 << 21])
def test_noise_maps_are_moments_of_single_passes(network, images, pixels_at_once, monkeypatch):
    monkeypatch.setattr(gradients, "_PIXELS_AT_ONCE", pixels_at_once)
    maps = draw_one_by_one(network, images, n=5, seed=3)

    def generator():
        return torch.Generator().manual_seed(3)

    smooth = smooth_gradient(network, *images, n=5, generator=generator())
    torch.testing.assert_close(smooth, maps.mean(0), **TOLERANCE)
    square = smooth_gradient(network, *images, n=5, generator=generator(), square=True)
    torch.testing.assert_close(square, maps.square().mean(0), **TOLERANCE)
    variance = variance_gradient(network, *images, n=5, generator=generator())
    torch.testing.assert_close(variance, maps.square().mean(0) - maps.mean(0).square(), **TOLERANCE)


def test_a_linear_network_has_the_same_gradient_everywhere():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.randn(2, 3, 2, 2), torch.tensor([2, 0])
    weight = model[1].weight[y].view(2, 3, 2, 2).abs().amax(1)
    torch.testing.assert_close(input_gradient(model, x, y), weight)
    # n + 1 terms over n, as published.
    torch.testing.assert_close(integrated_gradient(model, x, y, steps=4), weight * 5 / 4)
    torch.testing.assert_close(smooth_gradient(model, x, y, n=3), weight)
    variance = variance_gradient(model, x, y, n=3)
    assert (variance >= 0).all()
    torch.testing.assert_close(variance, torch.zeros_like(weight), rtol=0, atol=1e-12)


def test_nothing_is_left_behind(network, images):
    x, y = images
    before = x.clone()
    with torch.no_grad():
        variance_gradient(network, x, y, n=2)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x, y: input_gradient(model, x[0], y), r"x must be floating-point images"),
        (lambda model, x, y: input_gradient(model, x, y.int()), r"y must be int64 \(3,\), got torch.int32"),
        (lambda model, x, y: input_gradient(model, x, y + 5), r"y must lie in 0\.\.4"),
        (lambda model, x, y: input_gradient(model[:3], x, y), r"model must return logits \(B, C\)"),
        (lambda model, x, y: integrated_gradient(model, x, y, steps=0), "steps must be at least 1"),
        (lambda model, x, y: smooth_gradient(model, x, y, n=0), "n must be at least 1"),
        (lambda model, x, y: variance_gradient(model, x, y, sigma_scale=0), "sigma_scale must be positive"),
        (lambda model, x, y: smooth_gradient(model, x[0], y), r"x must be images"),
    ],
)
def test_refusals(network, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(network, *images)
