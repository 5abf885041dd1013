"""Realigners without simulated corrections: values by enumeration, by hand and by another way, laws, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tenfold.methods.concept_realignment.gaussian import (
    GaussianRealigner,
    fit_gaussian,
    fit_stochastic,
    log_likelihood,
)
from tenfold.methods.concept_realignment.patterns import PatternRealigner, fit_patterns
from tenfold.methods.concept_realignment.realigner import ConceptRealigner
from tenfold.methods.concept_realignment.rollout import intervention_rollout, validation_loss

UNHURRIED = settings(deadline=None, max_examples=25)  # a busy machine is no failure
SEEDS = st.integers(0, 2**32 - 1)
K = 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make_rows(seed, num_images=40):
    """Draw concept rows in which the first three concepts are the same and the others follow with errors."""
    generator = torch.Generator().manual_seed(seed)
    first = (torch.rand(num_images, 1, generator=generator, dtype=torch.float64) < 0.4).double()
    flips = (torch.rand(num_images, 2, generator=generator, dtype=torch.float64) < 0.2).double()
    return torch.cat([first, first, first, (first - flips).abs()], 1)


def make_predictions(concepts, seed, sharpness=1.5):
    """Draw predictions whose logits are right on average."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(concepts.shape, generator=generator, dtype=concepts.dtype)
    return (sharpness * (2 * concepts - 1) + noise).sigmoid()


def make_patterns(seed, exponent=0.7, unseen=0.1, fallback=None):
    rows, counts = torch.unique(make_rows(seed), dim=0, return_counts=True)
    base = make_rows(seed).mean(0)
    return PatternRealigner(rows, (counts / counts.sum()).double().log(), base, exponent, unseen, fallback).eval()


def make_gaussian(seed, num_concepts=K, ridge=0.2):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(num_concepts, num_concepts, generator=generator, dtype=torch.float64)
    low = -3 - torch.rand(num_concepts, generator=generator, dtype=torch.float64)
    return GaussianRealigner(factor @ factor.T, low, -low, ridge).eval()


def make_step(seed, batch=6, num_concepts=K):
    generator = torch.Generator().manual_seed(seed)
    c_hat, share = torch.rand(2, batch, num_concepts, generator=generator, dtype=torch.float64)
    truth = (share < 0.5).double()
    mask = (torch.rand(batch, num_concepts, generator=generator, dtype=torch.float64) < 0.4).double()
    return torch.where(mask == 1, truth, c_hat), mask, c_hat


def small_mlp():
    return ConceptRealigner(K, hidden=4, layers=1).double().eval()


@UNHURRIED
@given(seed=SEEDS, soft=st.booleans())
def test_patterns_equal_the_enumeration_of_all_hypotheses(seed, soft):
    realigner = make_patterns(seed)
    value, mask, c_hat = make_step(seed)
    if soft:
        value = torch.where(mask == 1, 0.1 + 0.7 * value, value)
    found, state = realigner(value, mask, c_hat)
    assert state is None
    rows, base, alpha = realigner.rows.tolist(), realigner.base_rate.tolist(), float(realigner.exponent)
    unseen, prior = float(realigner.unseen), realigner.log_prior.exp().tolist()
    for b in range(len(value)):

        def likelihood(row, b=b):
            product = 1.0
            for k, present in enumerate(row):
                v, c, p = float(value[b, k]), float(c_hat[b, k]), base[k]
                if mask[b, k] == 1:
                    product *= v if present else 1 - v
                else:
                    product *= (c / p) ** alpha if present else ((1 - c) / (1 - p)) ** alpha
            return product

        # A new row: every row there could be, with the probability that independent concepts give it.
        every = list(itertools.product([0.0, 1.0], repeat=K))
        independent = [
            math.prod(p if present else 1 - p for present, p in zip(row, base, strict=True)) for row in every
        ]
        weights = [(1 - unseen) * prior[j] * likelihood(row) for j, row in enumerate(rows)]
        weights += [unseen * chance * likelihood(row) for chance, row in zip(independent, every, strict=True)]
        mean = np.average(rows + [list(row) for row in every], axis=0, weights=weights)
        expected = torch.where(mask[b] == 1, value[b], torch.from_numpy(mean))
        torch.testing.assert_close(found[b], expected, rtol=1e-9, atol=1e-12)


def test_one_row_that_fits_is_returned():
    rows = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    realigner = PatternRealigner(rows, torch.full((3,), 1 / 3).log(), torch.full((3,), 0.5), 1.0, 1e-12)
    c_hat = torch.tensor([[0.5, 0.9, 0.1]])
    out, _ = realigner(torch.tensor([[1.0, 0.9, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]]), c_hat)
    torch.testing.assert_close(out, rows[:1], rtol=0, atol=1e-6)
    assert out[0, 0] == 1


def test_a_row_that_was_never_seen_is_left_to_the_fallback():
    rows = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    base = torch.full((3,), 0.5)
    value, mask = torch.tensor([[1.0, 0.0, 0.3]]), torch.tensor([[1.0, 1.0, 0.0]])
    c_hat = torch.tensor([[0.6, 0.6, 0.3]])
    without = PatternRealigner(rows, torch.full((2,), 0.5).log(), base, 1.0, 0.01)
    torch.testing.assert_close(without(value, mask, c_hat)[0], torch.tensor([[1.0, 0.0, 0.3]]))
    network = ConceptRealigner(3).eval()
    with_network = PatternRealigner(rows, torch.full((2,), 0.5).log(), base, 1.0, 0.01, network)
    torch.testing.assert_close(with_network(value, mask, c_hat)[0], network(value, mask, c_hat)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patterns_are_finite_at_certain_predictions(dtype):
    realigner = make_patterns(0, exponent=3.0).to(dtype)
    for c_hat in torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=dtype).split(8):
        for corrected in (0.0, 1.0):
            mask = torch.zeros_like(c_hat)
            mask[:, :2] = corrected
            out, _ = realigner(c_hat, mask, c_hat)
            assert out.dtype == dtype
            assert out.isfinite().all()
            assert ((out >= 0) & (out <= 1)).all()


@pytest.mark.parametrize("kind", ["patterns", "fallback", "gaussian"])
def test_steps_at_once_equal_steps_one_by_one_and_pin(kind, monkeypatch):
    realigner = {
        "patterns": make_patterns(0),
        "fallback": make_patterns(0, fallback=small_mlp()),
        "gaussian": make_gaussian(0),
    }[kind]
    steps = [make_step(seed) for seed in range(4)]
    c_hat = steps[0][2]
    value, mask = (torch.stack([step[part] for step in steps], 1) for part in (0, 1))
    found, _ = realigner(value, mask, c_hat)
    assert torch.equal(found[mask == 1], value[mask == 1])
    single = torch.stack([realigner(value[:, t], mask[:, t], c_hat)[0] for t in range(4)], 1)
    torch.testing.assert_close(found, single, rtol=1e-12, atol=1e-12)
    other = torch.where(mask == 1, value, 1 - value)
    assert torch.equal(realigner(other, mask, c_hat)[0], found)  # values that nobody corrected are not read
    assert not realigner.reads_previous
    for module in ("patterns", "gaussian"):
        monkeypatch.setattr(f"tenfold.methods.concept_realignment.{module}._BLOCK_ELEMENTS", 1)
    torch.testing.assert_close(realigner(value, mask, c_hat)[0], found, rtol=1e-12, atol=1e-12)


@UNHURRIED
@given(seed=SEEDS, order=st.permutations(range(K)))
def test_order_of_the_concepts_does_not_matter(seed, order):
    order = torch.tensor(order)
    step = make_step(seed)
    patterns, gaussian = make_patterns(seed), make_gaussian(seed)
    moved = (
        PatternRealigner(
            patterns.rows[:, order],
            patterns.log_prior,
            patterns.base_rate[order],
            float(patterns.exponent),
            float(patterns.unseen),
        ),
        GaussianRealigner(
            gaussian.covariance[order][:, order], gaussian.low[order], gaussian.high[order], float(gaussian.ridge)
        ),
    )
    for one, other in zip((patterns, gaussian), moved, strict=True):
        expected = one(*step)[0][:, order]
        torch.testing.assert_close(other(*(part[:, order] for part in step))[0], expected, rtol=1e-9, atol=1e-12)


def test_exponent_zero_ignores_the_predictions():
    realigner = make_patterns(3, exponent=0.0)
    _, mask, c_hat = make_step(3)
    out, _ = realigner(c_hat, torch.zeros_like(mask), c_hat)
    torch.testing.assert_close(out, realigner.base_rate.expand_as(out))


def test_patterns_fit_counts_rows_and_chooses_the_exponent():
    concepts = make_rows(0, 300)
    val = make_rows(1, 80)
    c_hat = make_predictions(val, 2)
    fitted = fit_patterns(concepts, c_hat, val)
    rows, counts = np.unique(concepts.numpy(), axis=0, return_counts=True)
    assert fitted.rows.shape == rows.shape
    torch.testing.assert_close(fitted.log_prior.exp().sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(fitted.base_rate, concepts.mean(0))
    assert float(fitted.unseen) == pytest.approx(max((counts == 1).sum() / 300, 1 / 301))
    losses = {
        exponent: validation_loss(fit_patterns(concepts, c_hat, val, exponents=[exponent]), c_hat, val, None)
        for exponent in (0.1, 0.5, 1.0)
    }
    chosen = fit_patterns(concepts, c_hat, val, exponents=list(losses))
    assert float(chosen.exponent) == min(losses, key=lambda exponent: losses[exponent])
    unique = fit_patterns(torch.eye(K, dtype=torch.float64), c_hat, val)
    assert float(unique.unseen) == pytest.approx(K / (K + 1))


@pytest.mark.parametrize("fallback", [False, True])
def test_patterns_load_back(fallback):
    make_fallback = small_mlp if fallback else lambda: None
    realigner = make_patterns(4, fallback=make_fallback())
    empty = PatternRealigner.empty(len(realigner.rows), K, make_fallback()).double().eval()
    empty.load_state_dict(realigner.state_dict())
    step = make_step(4)
    assert torch.equal(empty(*step)[0], realigner(*step)[0])


@UNHURRIED
@given(seed=SEEDS)
def test_gaussian_is_the_conditional_normal(seed):
    realigner = make_gaussian(seed)
    value, mask, c_hat = make_step(seed)
    found, state = realigner(value, mask, c_hat)
    assert state is None
    covariance = realigner.covariance.numpy()
    for b in range(len(value)):
        known = mask[b].numpy() == 1
        if not known.any():
            torch.testing.assert_close(found[b], c_hat[b])
            continue
        # By the precision matrix of the joint normal of noisy corrected and free logits.
        joint = covariance + np.diag(np.where(known, float(realigner.ridge), 1e-9))
        precision = np.linalg.inv(joint)
        logits = np.log(c_hat[b].numpy() / (1 - c_hat[b].numpy()))
        level = np.where(value[b].numpy() == 1, realigner.high.numpy(), realigner.low.numpy())
        free = ~known
        shift = -np.linalg.solve(
            precision[np.ix_(free, free)], precision[np.ix_(free, known)] @ (level - logits)[known]
        )
        expected = 1 / (1 + np.exp(-(logits[free] + shift)))
        torch.testing.assert_close(found[b][~mask[b].bool()], torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_gaussian_without_correlation_changes_nothing():
    value, mask, c_hat = make_step(5)
    realigner = GaussianRealigner(
        torch.diag(torch.rand(K, dtype=torch.float64)), -torch.ones(K).double(), torch.ones(K).double()
    )
    torch.testing.assert_close(realigner(value, mask, c_hat)[0], value)


def test_gaussian_moves_correlated_concepts_towards_the_correction():
    covariance = torch.tensor([[1.0, 0.8, -0.8], [0.8, 1.0, 0.0], [-0.8, 0.0, 1.0]])
    realigner = GaussianRealigner(covariance, torch.full((3,), -2.0), torch.full((3,), 2.0), ridge=1e-6)
    c_hat, mask = torch.full((3, 3), 0.5), torch.tensor([[1.0, 0.0, 0.0]] * 3)
    value = c_hat.clone()
    value[:, 0] = torch.tensor([1.0, 0.0, 0.7])
    found, _ = realigner(value, mask, c_hat)
    # The shift of the free logits: covariance / variance times the level; 0.7 has its own logit.
    shift = 0.8 * torch.tensor([2.0, -2.0, math.log(0.7 / 0.3)])
    torch.testing.assert_close(found[:, 1], shift.sigmoid(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 2], (-shift).sigmoid(), rtol=1e-4, atol=1e-5)


def test_gaussian_is_finite_at_certain_predictions():
    realigner = make_gaussian(6).float()
    c_hat = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5]])
    for mask in torch.tensor(list(itertools.product([0.0, 1.0], repeat=K))).split(1):
        out, _ = realigner(c_hat, mask, c_hat)
        assert out.isfinite().all()


def test_gaussian_loads_back():
    realigner = make_gaussian(7)
    empty = GaussianRealigner.empty(K).double().eval()
    empty.load_state_dict(realigner.state_dict())
    step = make_step(7)
    assert torch.equal(empty(*step)[0], realigner(*step)[0])


def test_fits_lower_the_loss_of_correlated_concepts():
    concepts, val = make_rows(0, 600), make_rows(1, 200)
    c_hat, c_hat_val = make_predictions(concepts, 2), make_predictions(val, 3)
    nothing = validation_loss(lambda value, mask, c_hat, state=None: (value, None), c_hat_val, val, None)
    fitted = {
        "patterns": fit_patterns(concepts, c_hat_val, val),
        "gaussian": fit_gaussian(c_hat, concepts, c_hat_val, val),
        "stochastic": fit_stochastic(c_hat, concepts, c_hat_val, val, steps=60),
    }
    losses = {name: validation_loss(realigner, c_hat_val, val, None) for name, realigner in fitted.items()}
    assert losses["patterns"] < 0.6 * nothing
    assert losses["gaussian"] < 0.85 * nothing
    assert losses["stochastic"] < 0.85 * nothing
    again = fit_stochastic(c_hat, concepts, c_hat_val, val, steps=60)
    assert torch.equal(again.covariance, fitted["stochastic"].covariance)
    learnt = fitted["stochastic"].covariance
    assert (learnt[:3, :3] > 0).all()
    assert (torch.linalg.eigvalsh(learnt) > 0).all()
    assert fitted["gaussian"].high[0] > fitted["gaussian"].low[0]


def test_rollout_with_a_closed_form_is_one_call():
    c_hat = make_predictions(make_rows(1, 20), 2)
    truth = make_rows(1, 20)
    realigner, calls = make_patterns(0), []
    realigner.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    rolled = intervention_rollout(realigner, c_hat, truth, "ucp", coupled=False)
    assert len(calls) == 1
    stepwise = intervention_rollout(
        lambda value, mask, c_hat, state=None: realigner(value, mask, c_hat, state), c_hat, truth, "ucp", coupled=False
    )
    assert len(calls) == 2 + K
    torch.testing.assert_close(rolled.outputs, stepwise.outputs)
    assert torch.equal(rolled.outputs[:, -1], truth)


def test_likelihood_of_independent_concepts():
    concepts = make_rows(0, 6)
    logits = torch.randn(6, K, dtype=torch.float64)
    noise = torch.randn(9, 6, K, dtype=torch.float64)
    found = log_likelihood(logits, concepts, torch.zeros(K, K, dtype=torch.float64), noise)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(concepts).sum(1)
    torch.testing.assert_close(found, expected)
    triangle = torch.eye(K, dtype=torch.float64)
    drawn = torch.distributions.Bernoulli(logits=logits + noise).log_prob(concepts).sum(2).exp().mean(0)
    torch.testing.assert_close(log_likelihood(logits, concepts, triangle, noise), drawn.log())


def test_gradients():
    noise, concepts = torch.randn(4, 3, K, dtype=torch.float64), make_rows(0, 3)
    logits = torch.randn(3, K, dtype=torch.float64)
    triangle = torch.randn(K, K, dtype=torch.float64).tril().requires_grad_()
    assert gradcheck(lambda lower: log_likelihood(logits, concepts, lower, noise), triangle)
    _, mask, c_hat = make_step(8)
    c_hat = c_hat.clamp(0.05, 0.95).requires_grad_()
    for realigner in (make_patterns(8), make_gaussian(8)):
        assert gradcheck(lambda c, model=realigner: model(torch.where(mask == 1, 0.6, c), mask, c)[0], c_hat)


def refused(match, call, *arguments, **options):
    with pytest.raises(ValueError, match=match):
        call(*arguments, **options)


def test_rivals_refuse():
    rows, zeros, half = torch.eye(3), torch.zeros(3), torch.full((3,), 0.5)
    refused("rows must be", PatternRealigner, rows, zeros[:2], half)
    refused("base_rate must lie inside", PatternRealigner, rows, zeros, zeros)
    refused("exponent must be at least 0", PatternRealigner, rows, zeros, half, -1.0)
    refused("unseen must lie inside", PatternRealigner, rows, zeros, half, 1.0, 0.0)
    refused("K = 3", PatternRealigner(rows, zeros, half), *[torch.zeros(2, 4)] * 3)
    refused("must be a binary matrix", fit_patterns, rows / 2, rows, rows)
    refused("one shape for all", fit_patterns, rows, rows, rows[:2])
    refused(r"c_hat_val must lie in \[0, 1\]", fit_patterns, rows, rows * 2, rows)
    refused("exponents and the validation data", fit_patterns, rows, rows, rows, exponents=[])
    refused("covariance must be", GaussianRealigner, rows[:2], zeros, zeros)
    refused("high must be at least low", GaussianRealigner, rows, half, zeros)
    refused("ridge must be positive", GaussianRealigner, rows, zeros, half, 0.0)
    refused("K = 3", GaussianRealigner(rows, zeros, half), *[torch.zeros(2, 4)] * 3)
    refused("two images", fit_gaussian, rows[:1], rows[:1], rows, rows)
    refused("ridges must not be empty", fit_gaussian, rows, rows, rows, rows, ridges=[])
    refused(r"c_hat must lie in \[0, 1\]", fit_stochastic, rows * torch.nan, rows, rows, rows)
