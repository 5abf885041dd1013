"""The annealed likelihood and its schedules: golden values, values by hand, laws, gradients, rejected inputs."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

import tenfold.methods.posterior_annealing as room
from tenfold.methods.posterior_annealing.baselines import beta_nll_loss
from tenfold.methods.posterior_annealing.loss import annealed_likelihood_loss, annealed_likelihood_modes
from tenfold.methods.posterior_annealing.schedules import annealing_weight
from tenfold.metrics.regression.likelihoods import (
    gaussian_nll,
    generalized_gaussian_nll,
    generalized_gaussian_variance,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden/posterior_annealing.npz")
SEEDS = st.integers(0, 2**32 - 1)
KINDS = ("cosine", "linear", "exponential", "staged")
SCHEDULES = [name for name in GOLDEN.files if name.startswith("schedule.") and name.count(".") > 2]


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def make_case(seed, shape=(4, 3), log_variance_shape=None):
    generator = torch.Generator().manual_seed(seed)
    mean, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    log_variance = torch.randn(log_variance_shape or shape, generator=generator, dtype=torch.float64)
    return mean, log_variance, target


def golden_inputs():
    return golden("in.mean"), golden("in.log_variance"), golden("in.target")


@pytest.mark.parametrize(("full", "name"), [(True, "full"), (False, "no_const")])
def test_gaussian_nll_matches_golden(full, name):
    close(gaussian_nll(*golden_inputs(), full=full, reduction="none"), golden(f"gaussian_nll.{name}"))


@pytest.mark.parametrize("row", range(12))
def test_annealed_loss_and_gradients_match_golden(row):
    tau, residual_weight, coupling_weight, residual_power, detach = GOLDEN["annealed.config"][row]
    mean, log_variance, target = golden_inputs()
    mean, log_variance = mean.requires_grad_(), log_variance.requires_grad_()
    losses = annealed_likelihood_loss(
        mean,
        log_variance,
        target,
        tau=tau,
        residual_weight=residual_weight,
        coupling_weight=coupling_weight,
        residual_power=residual_power,
        detach_residual=bool(detach),
        reduction="none",
    )
    gradients = torch.autograd.grad(losses.sum(), (mean, log_variance))
    for actual, name in zip((losses.detach(), *gradients), ("loss", "grad_mean", "grad_log_variance"), strict=True):
        close(actual, golden(f"annealed.{row}.{name}"))


def test_modes_match_golden():
    for *row, expected in GOLDEN["modes.table"]:
        assert annealed_likelihood_modes(*row) == pytest.approx(expected, rel=1e-9)
        tensor = annealed_likelihood_modes(torch.tensor([row[0]] * 2, dtype=torch.float64), *row[1:])
        assert tensor.tolist() == pytest.approx([expected] * 2, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_match_golden(name):
    _, kind, hold_whole, hold_part, end_whole, end_part = name.split(".")
    hold, end = float(f"{hold_whole}.{hold_part}"), float(f"{end_whole}.{end_part}")
    total = int(GOLDEN["schedule.total"])
    actual = [annealing_weight(int(step), total, kind=kind, hold=hold, end=end) for step in GOLDEN["schedule.step"]]
    np.testing.assert_allclose(actual, GOLDEN[name], rtol=1e-9, atol=1e-12)


def test_generalized_gaussian_matches_golden():
    mean, target, inv_scale, shape = (golden(f"ggd.{name}") for name in ("mean", "target", "inv_scale", "shape"))
    exact = generalized_gaussian_nll(mean, inv_scale, shape, target, reduction="none")
    close(exact, golden("ggd.nll_exact"))
    close(generalized_gaussian_variance(inv_scale, shape), golden("ggd.variance"))
    # The surrogate of earlier public code is a different function.
    assert (exact - golden("ggd.linearised_reference")).abs().max() > 0.1


def test_the_gaussian_is_the_generalized_one_of_shape_two():
    mean, log_variance, target = make_case(0)
    std = torch.exp(log_variance / 2)
    shape = torch.full_like(std, 2.0)
    inv_scale = 1 / (std * math.sqrt(2))
    close(
        generalized_gaussian_nll(mean, inv_scale, shape, target, reduction="none"),
        gaussian_nll(mean, log_variance, target, full=True, reduction="none"),
    )
    close(generalized_gaussian_variance(inv_scale, shape), std.square())


def test_loss_by_hand():
    # r = 2 and sigma = 1: the likelihood is 2, the residual 4, the coupling 1.
    value = annealed_likelihood_loss(torch.zeros(1), torch.zeros(1), torch.tensor([2.0]), tau=0.25, coupling_weight=3.0)
    assert value.item() == pytest.approx(0.75 * 2 + 0.25 * (4 + 3))
    total = annealed_likelihood_loss(
        torch.zeros(1), torch.zeros(1), torch.tensor([2.0]), tau=0.25, residual_power=1.0, form="sum"
    )
    assert total.item() == pytest.approx(2 + (2 + 1) / 3)


@settings(max_examples=30)
@given(
    seed=SEEDS, form=st.sampled_from(("convex", "sum")), detach=st.booleans(), power=st.sampled_from((1.0, 1.5, 2.0))
)
def test_at_tau_zero_it_is_the_likelihood(seed, form, detach, power):
    case = make_case(seed)
    annealed = annealed_likelihood_loss(
        *case, tau=0.0, form=form, detach_residual=detach, residual_power=power, reduction="none"
    )
    torch.testing.assert_close(annealed, gaussian_nll(*case, reduction="none"), rtol=0, atol=0)


@settings(max_examples=30)
@given(seed=SEEDS, tau=st.floats(0.01, 0.99), power=st.sampled_from((1.0, 1.7, 2.0)))
def test_the_two_forms_differ_by_a_factor(seed, tau, power):
    case = make_case(seed)
    options = {"tau": tau, "residual_weight": 0.7, "coupling_weight": 0.4, "residual_power": power}
    convex = annealed_likelihood_loss(*case, **options)
    close(convex, (1 - tau) * annealed_likelihood_loss(*case, form="sum", **options))


@settings(max_examples=30)
@given(
    sigma=st.floats(0.1, 3),
    tau=st.floats(0.01, 0.99),
    residual_weight=st.floats(0, 2),
    coupling_weight=st.floats(0.05, 2),
)
def test_the_modes_are_where_the_energy_is_least(sigma, tau, residual_weight, coupling_weight):
    offset = torch.tensor(
        annealed_likelihood_modes(sigma, tau, residual_weight, coupling_weight), dtype=torch.float64
    ).requires_grad_()
    log_variance = torch.tensor(2 * math.log(sigma), dtype=torch.float64)

    def energy(target):
        return annealed_likelihood_loss(
            torch.zeros_like(target),
            log_variance,
            target,
            tau=tau,
            residual_weight=residual_weight,
            coupling_weight=coupling_weight,
            form="sum",
        )

    (slope,) = torch.autograd.grad(energy(offset), offset)
    assert abs(slope.item()) < 1e-9 * (1 + tau / (1 - tau)) * (1 + sigma + 1 / sigma**2)
    close(energy(-offset), energy(offset))
    assert energy(torch.zeros_like(offset)) > energy(offset)


def test_the_modes_join_as_the_temperature_falls():
    assert annealed_likelihood_modes(2.0, 0.0, 1.0, 1.0) == 0
    assert annealed_likelihood_modes(2.0, 1.0, 1.0, 3.0) == pytest.approx(2.0 * 3 / 4)
    assert annealed_likelihood_modes(2.0, 1.0, 0.0, 0.0) == 0
    assert annealed_likelihood_modes(torch.ones(3), 1.0, 0.0, 0.0).tolist() == [0, 0, 0]
    rising = [annealed_likelihood_modes(2.0, tau, 1.0, 3.0) for tau in (0.01, 0.3, 0.9, 1.0)]
    assert rising == sorted(rising)
    assert annealed_likelihood_modes(torch.ones(2, dtype=torch.float16), 0.5, 1.0, 1.0).dtype == torch.float32


@settings(max_examples=30)
@given(
    sigma=st.floats(0.2, 5), far=st.floats(1.01, 6), temperature=st.floats(0.01, 20), coupling_weight=st.floats(0, 3)
)
def test_beyond_sigma_the_gradient_is_larger_than_the_likelihoods(sigma, far, temperature, coupling_weight):
    residual_weight, residual = 0.5, far * sigma
    log_variance = torch.tensor(2 * math.log(sigma), dtype=torch.float64)
    slopes = []
    for tau in (temperature / (1 + temperature), 0.0):
        mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
        loss = annealed_likelihood_loss(
            mean,
            log_variance,
            torch.tensor(residual, dtype=torch.float64),
            tau=tau,
            residual_weight=residual_weight,
            coupling_weight=coupling_weight,
            form="sum",
        )
        slopes.append(torch.autograd.grad(loss, mean)[0].abs().item())
    factor = 1 + 2 * temperature * sigma**2 * (residual_weight + coupling_weight * (1 - sigma / residual))
    assert slopes[0] / slopes[1] == pytest.approx(factor, rel=1e-6)
    assert factor > 1


@pytest.mark.parametrize(("tau", "best"), [(1.0, 1.7 * math.sqrt(2 / math.pi)), (0.0, 1.7)])
def test_the_prior_alone_is_over_confident(tau, best):
    """At tau = 1 the best sigma for Gaussian noise is sqrt(2 / pi) of the true one, at tau = 0 the true one."""
    noise = 1.7 * torch.special.ndtri((torch.arange(20001, dtype=torch.float64) + 0.5) / 20001)
    slopes = []
    for sigma in (0.999 * best, 1.001 * best):
        log_variance = torch.tensor([2 * math.log(sigma)], dtype=torch.float64, requires_grad=True)
        annealed_likelihood_loss(torch.zeros_like(noise), log_variance, noise, tau=tau).backward()
        slopes.append(log_variance.grad.item())
    assert slopes[0] < 0 < slopes[1]


@pytest.mark.parametrize(("power", "best"), [(2.0, 3.0), (1.0, 1.0)])
def test_at_tau_one_without_coupling_the_optimum_is_mean_or_median(power, best):
    targets = torch.tensor([0.0, 1.0, 8.0], dtype=torch.float64)
    candidates = torch.arange(0, 8.01, 0.5, dtype=torch.float64)
    losses = [
        annealed_likelihood_loss(
            candidate.expand(3),
            torch.zeros(3, dtype=torch.float64),
            targets,
            tau=1.0,
            coupling_weight=0.0,
            residual_power=power,
        ).item()
        for candidate in candidates
    ]
    assert candidates[int(np.argmin(losses))].item() == best


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("detach", [False, True])
def test_gradients_of_the_annealed_loss(tau, power, detach):
    mean, log_variance, target = make_case(1, (2, 2, 3), (2, 1, 3))
    if detach:  # the finite difference would see the residual move
        mean = mean.detach()
        inputs = (log_variance.requires_grad_(),)
        assert gradcheck(
            lambda ell: annealed_likelihood_loss(
                mean, ell, target, tau=tau, residual_power=power, detach_residual=True, reduction="none"
            ),
            inputs,
        )
        return
    assert gradcheck(
        lambda mu, ell: annealed_likelihood_loss(mu, ell, target, tau=tau, residual_power=power, reduction="none"),
        (mean.requires_grad_(), log_variance.requires_grad_()),
    )


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_gradient_at_a_residual_of_zero(power):
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_variance = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = annealed_likelihood_loss(
        mean, log_variance, torch.zeros(2, dtype=torch.float64), tau=0.5, residual_power=power, reduction="sum"
    )
    slopes = torch.autograd.grad(loss, (mean, log_variance))
    assert slopes[0].tolist() == [0, 0]
    # 1/2 (1/2) from the likelihood and + 1/2 sigma^2 from the coupling.
    assert slopes[1].tolist() == pytest.approx([0.75, 0.75])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("detach", [False, True])
def test_inputs_without_weight_have_a_zero_gradient(weights, detach):
    mean, log_variance, target = make_case(2)
    loss = annealed_likelihood_loss(
        mean.requires_grad_(),
        log_variance.requires_grad_(),
        target,
        tau=1.0,
        residual_weight=weights[0],
        coupling_weight=weights[1],
        detach_residual=detach,
    )
    of_mean, of_log_variance = torch.autograd.grad(loss, (mean, log_variance))
    assert bool(of_mean.any()) == (weights[0] > 0 or (weights[1] > 0 and not detach))
    assert bool(of_log_variance.any()) == (weights[1] > 0)


@pytest.mark.parametrize(
    "loss", [gaussian_nll, beta_nll_loss, lambda *case, **options: annealed_likelihood_loss(*case, tau=0.4, **options)]
)
def test_one_log_variance_for_all_channels(loss):
    mean, log_variance, target = make_case(3, (2, 3, 4, 5), (2, 1, 4, 5))
    shared = loss(mean, log_variance, target, reduction="none")
    assert shared.shape == mean.shape
    close(shared, loss(mean, log_variance.expand_as(mean).contiguous(), target, reduction="none"))
    close(loss(mean, log_variance, target), shared.mean())
    close(loss(mean, log_variance, target, reduction="sum"), shared.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(dtype):
    case = [each.to(dtype) for each in make_case(4)]
    exact = [each.float() for each in case]
    ones = torch.ones(4, 3, dtype=dtype)
    for function in (
        gaussian_nll,
        beta_nll_loss,
        lambda *each: annealed_likelihood_loss(*each, tau=0.6),
        lambda mean, _, target: generalized_gaussian_nll(mean, ones.to(mean), 1.5 * ones.to(mean), target),
    ):
        result = function(*case)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, function(*exact), rtol=0, atol=0)
    leaf = case[0].requires_grad_()
    annealed_likelihood_loss(leaf, case[1], case[2], tau=0.6).backward()
    assert leaf.grad.dtype == dtype


def test_beta_nll_between_likelihood_and_squared_error():
    mean, log_variance, target = make_case(5)
    torch.testing.assert_close(
        beta_nll_loss(mean, log_variance, target, beta=0.0), gaussian_nll(mean, log_variance, target)
    )
    loss = beta_nll_loss(mean.requires_grad_(), log_variance, target, beta=1.0, reduction="sum")
    close(torch.autograd.grad(loss, mean)[0], mean.detach() - target)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_begin_at_one_end_at_exactly_zero_and_never_rise(kind):
    weights = [annealing_weight(step, 97, kind=kind, hold=0.1, end=0.7, rate=3.0) for step in range(98)]
    assert weights[:10] == [1.0] * 10
    assert all(weight == 0.0 for step, weight in enumerate(weights) if step / 97 >= 0.7)
    assert weights == sorted(weights, reverse=True)
    assert 0 < weights[67] < 1
    assert annealing_weight(1, 1, kind=kind) == 0.0
    assert annealing_weight(0, 1, kind=kind) == 1.0


def test_schedules_by_hand():
    assert annealing_weight(1, 4) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert annealing_weight(1, 4, kind="linear") == 0.75
    assert annealing_weight(1, 2, kind="exponential", rate=2.0) == pytest.approx(
        (math.exp(-1) - math.exp(-2)) / (1 - math.exp(-2))
    )
    assert [annealing_weight(step, 10, kind="staged") for step in (0, 1, 2, 3, 4, 9, 10)] == [
        1,
        1,
        0.5,
        0.5,
        0.1,
        0.1,
        0,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step must lie in 0..10, got -1"),
        ({"step": 11}, "step must lie in 0..10, got 11"),
        ({"step": 0, "total_steps": 0}, "total_steps must be at least 1, got 0"),
        ({"hold": 0.5, "end": 0.5}, "hold < end"),
        ({"hold": -0.1}, "0 <= hold"),
        ({"end": 1.2}, "the weight has to reach 0 before training ends"),
        ({"kind": "exponential", "rate": 0.0}, "rate must be positive"),
        ({"kind": "polynomial"}, "kind must be one of cosine, linear, exponential, staged, got 'polynomial'"),
        ({"hold": math.nan}, "0 <= hold"),
    ],
)
def test_schedules_reject(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        annealing_weight(**{"step": 3, "total_steps": 10, **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 1.1}, "tau must lie in [0, 1], got 1.1"),
        ({"tau": -0.1}, "tau must lie in [0, 1]"),
        ({"tau": math.nan}, "tau must lie in [0, 1]"),
        ({"tau": 1.0, "form": "sum"}, "below 1 in the sum form"),
        ({"residual_weight": -1.0}, "residual_weight must be finite and not negative, got -1"),
        ({"coupling_weight": math.nan}, "coupling_weight must be finite"),
        ({"residual_power": 0.5}, "residual_power must be at least 1, got 0.5"),
        ({"form": "product"}, "form must be one of convex, sum, got 'product'"),
        ({"reduction": "median"}, "reduction must be one of none, mean, sum, got 'median'"),
    ],
)
def test_settings_that_are_rejected(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        annealed_likelihood_loss(*make_case(6), **{"tau": 0.5, **options})


LOSSES = [
    gaussian_nll,
    beta_nll_loss,
    lambda *case, **options: annealed_likelihood_loss(*case, tau=0.0, **options),
    lambda *case, **options: annealed_likelihood_loss(*case, tau=0.5, **options),
    lambda *case, **options: annealed_likelihood_loss(*case, tau=1.0, **options),
    lambda *case, **options: annealed_likelihood_loss(
        *case, tau=1.0, residual_weight=0.0, coupling_weight=0.0, **options
    ),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("which", "name"), [(0, "mean"), (1, "log_variance"), (2, "target")])
def test_inputs_that_are_not_finite_are_named(loss, reduction, value, which, name):
    case = make_case(7)
    case[which][1, 2] = value
    with pytest.raises(
        ValueError, match=rf"{name} must be finite, got NaN or infinity in 1 of 12 values, first at \(1, 2"
    ):
        loss(*case, reduction=reduction)
    loss(*case, reduction=reduction, validate=False)


def test_finite_inputs_that_overflow_are_not_rejected():
    loss = annealed_likelihood_loss(torch.zeros(2), torch.full((2,), -200.0), torch.ones(2), tau=0.5)
    assert loss.item() == math.inf


@pytest.mark.parametrize("loss", LOSSES[:3])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3), (4, 3), (4,)), "mean and target must have the same shape, got mean (4, 3), target (4,)"),
        (((4,), (4,), (4, 1)), "mean and target must have the same shape"),
        (((4, 3), (4, 2), (4, 3)), "log_variance must broadcast to the shape of mean"),
        (((4, 3), (2, 4, 3), (4, 3)), "log_variance must broadcast to the shape of mean"),
        (((1, 3), (4, 3), (1, 3)), "log_variance must broadcast to the shape of mean"),
    ],
)
def test_shapes_that_are_rejected(loss, shapes, message):
    mean, log_variance, target = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(mean, log_variance, target)


def test_integers_and_empty_tensors_are_rejected():
    with pytest.raises(ValueError, match=re.escape("target must be floating point, got torch.int64")):
        gaussian_nll(torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one element"):
        gaussian_nll(torch.zeros(0), torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_generalized_gaussian_needs_positive_parameters(bad):
    good, wrong = torch.ones(2), torch.tensor([1.0, bad])
    for name, parameters in (("inv_scale", (wrong, good)), ("shape", (good, wrong))):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            generalized_gaussian_nll(good, *parameters, good)
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            generalized_gaussian_variance(*parameters)


def test_generalized_gaussian_is_a_density_and_has_its_gradient():
    grid = torch.linspace(-60, 60, 240001, dtype=torch.float64)
    for shape in (0.9, 1.0, 2.0, 3.5):
        inv_scale, b = torch.tensor(0.8, dtype=torch.float64), torch.tensor(shape, dtype=torch.float64)
        density = generalized_gaussian_nll(torch.zeros_like(grid), inv_scale, b, grid, reduction="none").neg().exp()
        assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-3)
        variance = torch.trapezoid(density * grid**2, grid).item()
        assert variance == pytest.approx(generalized_gaussian_variance(inv_scale, b).item(), rel=1e-3)
    mean, _, target = make_case(8)
    scale, power = (torch.full((4, 3), value, dtype=torch.float64, requires_grad=True) for value in (0.7, 1.6))
    assert gradcheck(lambda *given: generalized_gaussian_nll(*given, target), (mean.requires_grad_(), scale, power))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_modes_need_a_positive_sigma(sigma):
    for given_sigma in (sigma, torch.tensor([1.0, sigma])):
        with pytest.raises(ValueError, match="sigma must be positive"):
            annealed_likelihood_modes(given_sigma, 0.5, 1.0, 1.0)


def test_the_room_exports_its_public_names():
    assert {name for name in room.__all__ if not hasattr(room, name)} == set()
