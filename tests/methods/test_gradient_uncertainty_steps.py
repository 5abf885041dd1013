"""Sampler steps, their theory and the toy posterior: golden values, closed forms, laws, rejected inputs."""

import math

import numpy as np
import posteriors
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional

from tenfold.methods.gradient_uncertainty.per_example import per_example_gradients
from tenfold.methods.gradient_uncertainty.steps import (
    draw_noise,
    hotter_share,
    langevin_step,
    potential_gradient_variance,
    triggered_langevin_step,
)
from tenfold.methods.gradient_uncertainty.theory import stationary_variance
from tenfold.methods.gradient_uncertainty.toy import PRIOR_VARIANCES, toy_potential
from tenfold.methods.gradient_uncertainty.uncertainty import gradient_uncertainty
from tests.methods.gradient_uncertainty_golden import META, assert_matches, golden, golden_network
from tests.replicas.gradient_uncertainty_toy import (
    figure_toy,
    langevin_chain,
    mode_switches,
    share_below,
    toy_data,
    toy_gradients,
    toy_grid_posterior,
    triggered_chain,
)

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("case", ["a", "b"])
def test_triggered_step_matches_golden(case):
    names = META["param_names"]
    params = {name: golden(f"cnn.param.{name}") for name in names}
    grads = per_example_gradients(golden_network(), functional.cross_entropy, golden("cnn.x"), golden("cnn.y"))
    after, triggered = triggered_langevin_step(
        params,
        {name: value.mean(0) for name, value in grads.items()},
        uncertainty=0.5,
        step=301,
        lr=float(golden(f"step.{case}.lr")),
        noise_power=float(golden(f"step.{case}.noise_power")),
        noise={name: golden(f"step.{case}.noise.{name}") for name in names},
    )
    assert triggered
    for name in names:
        assert_matches(after[name], f"step.{case}.after.{name}")


def test_langevin_steps_match_golden():
    given_tensors = [golden(f"sgld.{name}") for name in ("theta", "grad", "grad_var", "precond", "noise")]
    theta, grad, variance, preconditioner, noise = given_tensors
    options = {
        "step_size": float(golden("sgld.step_size")),
        "temperature": float(golden("sgld.temperature")),
        "preconditioner": preconditioner,
        "noise": noise,
    }
    assert_matches(langevin_step(theta, grad, **options), "sgld.after_plain")
    assert_matches(langevin_step(theta, grad, grad_variance=variance, **options), "sgld.after_corrected")


def test_gradient_variance_matches_golden():
    grads, size = golden("gvar.grads"), int(golden("gvar.dataset_size"))
    assert_matches(potential_gradient_variance(grads, size), "gvar.potential_grad_var")
    assert_matches(
        potential_gradient_variance({"a": grads}, size, with_replacement=True)["a"],
        "gvar.potential_grad_var_with_replacement",
    )


def test_stationary_variance_matches_golden():
    for row in golden("sgld.table").tolist():
        precision, step_size, noise, temperature, plain, injected, corrected = row
        assert stationary_variance(precision, step_size, noise, temperature, False) == pytest.approx(plain, rel=1e-9)
        assert stationary_variance(precision, step_size, noise, temperature, True) == pytest.approx(corrected, rel=1e-9)
        assert max(step_size * temperature - step_size**2 * noise / 4, 0) == pytest.approx(injected, rel=1e-9)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("step_size", "noise"), [(0.1, 8.0), (0.5, 4.0), (0.5, 40.0)])
def test_langevin_ends_at_the_variance_of_theory(step_size, noise, corrected):
    """20,000 chains on a Gaussian of precision 2; at (0.5, 40) minibatch noise alone exceeds the temperature."""
    precision, temperature, chains = 2.0, 1.0, 20_000
    generator = torch.Generator().manual_seed(1)
    theta = torch.zeros(chains, dtype=torch.float64)
    variance = torch.full_like(theta, noise) if corrected else None
    for _ in range(round(12 / (step_size * precision))):
        of_minibatch = math.sqrt(noise) * torch.randn(chains, generator=generator, dtype=torch.float64)
        theta = langevin_step(
            theta, precision * theta + of_minibatch, step_size=step_size, temperature=temperature,
            grad_variance=variance, noise=draw_noise(theta, generator),
        )  # fmt: skip
    expected = stationary_variance(precision, step_size, noise, temperature, corrected)
    # Four standard deviations of the sample variance of as many normal numbers.
    assert float(theta.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / chains))
    assert hotter_share(torch.full_like(theta, noise), step_size, temperature) == float(noise > 8)


@settings(max_examples=30)
@given(precision=st.floats(0.1, 5), share=st.floats(0.001, 0.5), temperature=st.floats(0.1, 2), noise=st.floats(0, 100))
def test_correction_takes_the_minibatch_out_of_the_variance(precision, share, temperature, noise):
    step_size = share / precision
    noise = min(noise, 4 * temperature / step_size)  # where the maximum is inactive
    exact = temperature / (precision * (1 - step_size * precision / 4))
    assert stationary_variance(precision, step_size, noise, temperature, True) == pytest.approx(exact, rel=1e-9)
    assert stationary_variance(precision, step_size, noise, temperature, False) >= exact * (1 - 1e-9)


def test_plain_steps_are_those_of_posteriors(monkeypatch):
    """posteriors has drift lr with noise 2 lr: ours with eps = 2 lr."""
    theta = {"w": torch.tensor([0.3, -1.0], dtype=torch.float64)}
    noise = torch.tensor([0.7, 0.2], dtype=torch.float64)
    monkeypatch.setattr(torch, "randn_like", lambda value, **_: noise.to(value))

    def log_posterior(params, batch):
        return -1.5 * params["w"].square().sum() / 2, torch.tensor(0.0)

    chain = posteriors.sgmcmc.sgld.build(log_posterior, lr=0.05, temperature=0.5)
    expected, _ = chain.update(chain.init(theta), None, inplace=False)
    got = langevin_step(theta, {"w": 1.5 * theta["w"]}, step_size=0.1, temperature=0.5, noise={"w": noise})
    torch.testing.assert_close(got["w"], expected.params["w"])


def test_temperature_zero_is_gradient_descent():
    theta, grad = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    moved = langevin_step(theta, grad, step_size=0.2, temperature=0.0, noise=torch.ones(2))
    torch.testing.assert_close(moved, theta - 0.1 * grad)


@pytest.mark.parametrize(
    ("uncertainty", "step", "triggered"), [(0.4, 11, True), (0.4, 10, False), (0.3, 11, False), (0.1, 500, False)]
)
def test_a_kick_needs_uncertainty_and_the_warm_up(uncertainty, step, triggered):
    theta, grad, noise = torch.zeros(3), torch.ones(3), torch.tensor([1.0, -2.0, 0.5])
    options = {
        "uncertainty": uncertainty,
        "step": step,
        "lr": 0.25,
        "noise_power": -0.5,
        "threshold": 0.3,
        "warmup": 10,
    }
    moved, kicked = triggered_langevin_step(theta, grad, noise=noise, **options)
    assert kicked is triggered
    torch.testing.assert_close(moved, -0.25 * (grad + 2.0 * noise) if triggered else -0.25 * grad)
    torch.testing.assert_close(theta, torch.zeros(3))


def test_noise_is_drawn_only_for_a_kick_and_by_the_generator():
    def draw(uncertainty):
        generator = torch.Generator().manual_seed(3)
        params = {"a": torch.zeros(2), "b": torch.zeros(2, 2)}
        moved, _ = triggered_langevin_step(
            params, params, uncertainty=uncertainty, step=1, lr=1.0, warmup=0, generator=generator
        )
        return moved, torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())

    first, untouched = draw(0.9)
    assert not untouched
    torch.testing.assert_close(first, draw(0.9)[0], rtol=0, atol=0)
    again = torch.Generator().manual_seed(3)
    torch.testing.assert_close(first["a"], -torch.randn(2, generator=again))
    torch.testing.assert_close(first["b"], -torch.randn(2, 2, generator=again))
    assert draw(0.1)[1]


def kick(params=None, grad=None, **options):
    two = torch.zeros(2)
    given_or_zero = (two if tree is None else tree for tree in (params, grad))
    return triggered_langevin_step(*given_or_zero, **({"uncertainty": 0.5, "step": 400, "lr": 0.1} | options))


def move(size=2, **options):
    theta = torch.zeros(size)
    return langevin_step(theta, theta, **({"step_size": 0.1, "noise": torch.zeros(2)} | options))


def potential(*theta_shape, size=2, **options):
    return toy_potential(torch.zeros(theta_shape), torch.zeros(size), **options)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: kick(lr=0.0), "lr must be positive"),
        (lambda: kick(warmup=-1), "warmup must be at least 0"),
        (lambda: kick(grad=torch.zeros(3)), r"mean_grad must be \(2,\)"),
        (lambda: kick({"a": torch.zeros(2)}), "mean_grad must be a mapping"),
        (lambda: kick({"a": torch.zeros(2)}, {"b": torch.zeros(2)}), r"differing: \['a', 'b'\]"),
        (lambda: kick(uncertainty=math.nan), "uncertainty must be a number"),
        (lambda: move(temperature=-1.0), "temperature must be at least 0"),
        (lambda: move(step_size=-0.1), "step_size must be positive"),
        (lambda: move(3), r"noise must be \(3,\)"),
        (lambda: move(preconditioner=torch.zeros(2)), "positive everywhere"),
        (lambda: move(grad_variance=-torch.ones(2)), "at least 0 everywhere"),
        (lambda: potential_gradient_variance(torch.zeros(1, 2), 10), "at least 2 examples, got 1"),
        (lambda: potential_gradient_variance(torch.zeros(4, 2), 3), "at most dataset_size = 3"),
        (lambda: stationary_variance(2.0, 2.0, 0.0, 1.0, True), r"in \(0, 4\), got 4.0"),
        (lambda: stationary_variance(-1.0, 0.1, 0.0, 1.0, False), "precision must be positive"),
        (lambda: stationary_variance(1.0, 0.1, -1.0, 1.0, False), "at least 0"),
        (lambda: potential(3), r"theta must be \(\.\.\., 2\)"),
        (lambda: potential(2, size=0), "B at least 1"),
        (lambda: potential(2, likelihood_variance=0.0), "likelihood_variance must be positive"),
        (lambda: potential(2, dataset_size=0), "dataset_size must be at least 1"),
    ],
)
def test_rejected_inputs(step, message):
    with pytest.raises(ValueError, match=message):
        step()


def test_a_batch_with_replacement_may_be_larger_than_the_data():
    assert potential_gradient_variance(torch.randn(4, 2), 3, with_replacement=True).shape == (2,)


def test_toy_matches_golden():
    x, theta = golden("toy.x"), golden("toy.theta")
    # The reference rounds the constant of its likelihood to float32.
    assert_matches(toy_potential(theta, x).mean(-1), "toy.potential", 1e-7)
    grads = toy_gradients(theta, x[golden("toy.batch_index")], dataset_size=len(x))
    assert_matches(grads, "toy.per_example_grads")
    for theta_grads, expected in zip(grads, golden("toy.uncertainty"), strict=True):
        assert float(gradient_uncertainty(theta_grads).value) == pytest.approx(float(expected), abs=1e-9)


@settings(max_examples=20)
@given(seed=SEEDS, variance=st.floats(0.5, 3))
def test_toy_gradients_are_those_of_the_potential(seed, variance):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    x = 2 * torch.randn(4, generator=generator, dtype=torch.float64)
    options = {"dataset_size": 9, "likelihood_variance": variance}
    potential = toy_potential(theta, x, **options)
    rows = [torch.autograd.grad(potential[:, i].sum(), theta, retain_graph=True)[0] for i in range(len(x))]
    torch.testing.assert_close(toy_gradients(theta.detach(), x, **options), torch.stack(rows, 1))
    together = toy_potential(theta, x, **options).mean(-1)
    torch.testing.assert_close(toy_gradients(theta.detach(), x, **options).mean(1),
                               torch.autograd.grad(together.sum(), theta)[0])  # fmt: skip


def test_toy_potential_is_that_of_scipy():
    x, (m, d), variance = toy_data(7), (0.4, -1.1), 1.5
    scale = math.sqrt(variance)
    density = 0.5 * stats.norm.pdf(x, m, scale) + 0.5 * stats.norm.pdf(x, m + d, scale)
    prior = sum(stats.norm.logpdf(value, 0, v**0.5) for value, v in zip((m, d), PRIOR_VARIANCES, strict=True))
    expected = -prior - np.log(density).sum()
    got = toy_potential(torch.tensor([m, d], dtype=torch.float64), x, likelihood_variance=variance).mean()
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_grid_posterior_has_both_modes():
    x = toy_data(likelihood_variance=1.0)
    posterior = toy_grid_posterior(x, likelihood_variance=1.0, resolution=60)
    assert float(posterior.probs.sum()) == pytest.approx(1)
    below = float(posterior.probs[:, posterior.second < 0].sum())
    assert 0.2 < below < 0.8
    for side in (posterior.second < 0, posterior.second > 0):
        best = posterior.probs[:, side].max(0).values.argmax()
        assert abs(float(posterior.second[side][best])) == pytest.approx(2, abs=0.8)


def test_toy_chains_are_made_by_their_seed_and_keep_what_they_say():
    x = toy_data(likelihood_variance=1.0)
    options = {"lr": 0.005, "likelihood_variance": 1.0, "threshold": 0.5}
    first, again, other = (triggered_chain(x, 400, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first.samples, again.samples)
    assert not torch.equal(first.uncertainty, other.uncertainty)
    assert len(first.uncertainty) == 400
    assert first.steps.tolist() == [t for t in range(1, 400) if first.uncertainty[t] > 0.5]
    plain = langevin_chain(x, 100, step_size=0.003, likelihood_variance=1.0)
    assert plain.samples.shape == (100, 2)
    assert plain.samples[0].tolist() == [2.0, 2.0]
    assert len(triggered_chain(x, 20, seed=1, lr=0.005, threshold=2.0).samples) == 0


def test_modes_are_counted_by_the_sign_of_the_difference():
    samples = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -1.0], [0.0, 3.0]])
    assert mode_switches(samples) == 2
    assert share_below(samples) == 0.25


def test_toy_figure_shows_the_posterior_and_every_chain():
    posterior = toy_grid_posterior(toy_data(20), resolution=20)
    figure = figure_toy(posterior, {"one": torch.zeros(3, 2), "two": torch.ones(5, 2)}, "toy")
    assert [panel.get_title() for panel in figure.axes] == ["posterior", "one: 3 samples", "two: 5 samples"]
