"""Bayes by backprop: value and gradient of the divergence, draws, and training of a small posterior."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.nn import functional

from tenfold.methods.gradient_uncertainty.variational import MeanFieldNetwork, gaussian_divergence


def make_gaussians(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return mean, torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.01


@given(seed=st.integers(0, 999), prior_variance=st.floats(1e-3, 1e3))
def test_the_divergence_is_that_of_torch(seed, prior_variance):
    mean, std = make_gaussians(seed)
    prior = Normal(torch.zeros_like(mean), torch.full_like(std, prior_variance**0.5))
    expected = kl_divergence(Normal(mean, std), prior).sum()
    torch.testing.assert_close(gaussian_divergence(mean, std, prior_variance), expected, rtol=1e-10, atol=1e-10)


def test_the_prior_is_at_no_distance_from_itself_and_a_mean_costs_half_its_square():
    assert gaussian_divergence(torch.zeros(5), torch.full((5,), 2.0), 4.0).item() == pytest.approx(0, abs=1e-6)
    moved = gaussian_divergence(torch.tensor([3.0]), torch.tensor([1.0]), 1.0)
    assert moved.item() == pytest.approx(4.5)


def test_gradient():
    mean, std = make_gaussians()
    assert gradcheck(lambda m, s: gaussian_divergence(m, s, 0.5), (mean.requires_grad_(), std.requires_grad_()))


@pytest.mark.parametrize(
    ("mean", "std", "prior_variance", "message"),
    [
        (torch.zeros(3), torch.ones(3, 1), 1.0, r"one shape, got \(3,\) and \(3, 1\)"),
        (torch.zeros(3), torch.ones(3), 0.0, "prior_variance must be positive and finite, got 0.0"),
        (torch.zeros(3), torch.ones(3), math.inf, "got inf"),
    ],
)
def test_gaussians_that_are_rejected(mean, std, prior_variance, message):
    with pytest.raises(ValueError, match=message):
        gaussian_divergence(mean, std, prior_variance)


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def test_every_parameter_is_a_gaussian_around_that_of_the_network():
    network = make_network()
    posterior = MeanFieldNetwork(network, 0.05)
    draws = posterior.draws(2000, seed=3)
    named = dict(network.named_parameters())
    assert [list(draw) for draw in draws] == [list(named)] * 2000
    for name, value in named.items():
        together = torch.stack([draw[name] for draw in draws])
        # Six standard errors of the mean and of the standard deviation, over 131 parameters.
        torch.testing.assert_close(together.mean(0), value, atol=6 * 0.05 / 2000**0.5, rtol=0)
        torch.testing.assert_close(together.std(0), torch.full_like(value, 0.05), atol=6 * 0.05 / 4000**0.5, rtol=0)
    expected = sum(
        float(kl_divergence(Normal(value.detach(), 0.05), Normal(0.0, 2.0**0.5)).sum()) for value in named.values()
    )
    assert posterior.divergence(2.0).item() == pytest.approx(expected, rel=1e-5)


def test_draws_follow_their_seed_and_differ():
    posterior = MeanFieldNetwork(make_network(), 0.05)
    first, second = posterior.draws(2, seed=0)
    assert not torch.equal(first["0.weight"], second["0.weight"])
    assert torch.equal(first["0.weight"], posterior.draws(1, seed=0)[0]["0.weight"])
    assert not torch.equal(first["0.weight"], posterior.draws(1, seed=1)[0]["0.weight"])


def test_a_pass_is_that_of_one_draw_and_reaches_means_and_deviations():
    network = make_network()
    posterior = MeanFieldNetwork(network, 0.3)
    inputs = torch.randn(5, 4)
    torch.manual_seed(9)
    outputs = posterior(inputs)
    torch.manual_seed(9)
    drawn = {name: value + 0.3 * torch.randn_like(value) for name, value in network.named_parameters()}
    torch.testing.assert_close(outputs, functional_call(network, drawn, (inputs,)))
    assert not torch.equal(outputs, posterior(inputs))
    outputs.square().sum().backward()
    for name, parameter in posterior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_small_posterior_learns_and_its_deviations_move():
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(300, 4, generator=generator)
    labels = inputs[:, :3].argmax(1)
    posterior = MeanFieldNetwork(make_network(), 0.05)
    before = posterior.divergence(1.0).item()
    optimizer = torch.optim.Adam(posterior.parameters(), lr=0.01)
    for _ in range(300):
        loss = functional.cross_entropy(posterior(inputs), labels) + posterior.divergence(1.0) / len(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits = torch.stack([functional_call(make_network(), draw, (inputs,)) for draw in posterior.draws(10, seed=0)])
    accuracy = (logits.softmax(-1).mean(0).argmax(1) == labels).float().mean()
    assert accuracy > 0.8  # a third by chance
    assert not torch.equal(logits[0], logits[1])
    # Parameters that the data do not determine return to the prior.
    assert posterior.divergence(1.0).item() < 0.5 * before
    assert max(float(std.detach().max()) for std in posterior.stds().values()) > 0.2


@pytest.mark.parametrize("initial_std", [0.0, -1.0, math.nan])
def test_a_deviation_must_be_positive(initial_std):
    with pytest.raises(ValueError, match="initial_std must be positive and finite"):
        MeanFieldNetwork(make_network(), initial_std)


def test_buffers_and_zero_draws_are_rejected():
    with pytest.raises(ValueError, match=r"network must have no buffers, got \['1.running_mean'"):
        MeanFieldNetwork(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 0.05)
    with pytest.raises(ValueError, match="num_members must be at least 1, got 0"):
        MeanFieldNetwork(make_network(), 0.05).draws(0, seed=0)
