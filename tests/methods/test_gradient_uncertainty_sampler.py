"""The chain: kept members, reproducibility, resumption, rejected settings; predictions of its members."""

import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tenfold.methods.gradient_uncertainty.batches import ShuffledBatches, endless
from tenfold.methods.gradient_uncertainty.members import posterior_predictive, stack_members
from tenfold.methods.gradient_uncertainty.per_example import per_example_gradients
from tenfold.methods.gradient_uncertainty.sampler import GradientUncertaintySampler, SamplerConfig
from tenfold.methods.gradient_uncertainty.steps import (
    draw_noise,
    langevin_step,
    potential_gradient_variance,
    triggered_langevin_step,
)
from tenfold.methods.gradient_uncertainty.uncertainty import gradient_uncertainty
from tenfold.metrics.uncertainty import predictive_uncertainty
from tests.methods.gradient_uncertainty_golden import assert_matches, golden


def make_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def make_batches(seed=0, **options):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    labels = inputs[:, :3].argmax(1)
    return ShuffledBatches(inputs, labels, options.pop("batch_size", 8), seed=seed, **options)


def triggered(**options):
    defaults = {"lr": 0.1, "num_members": 6, "threshold": 0.0, "noise_power": -0.5, "warmup": 5}
    return SamplerConfig(**(defaults | options))


def replay(config, batches, num_steps):
    """Reference implementation of the chain over exact per-example gradients."""
    network = make_network()
    generator = torch.Generator().manual_seed(config.seed)
    states, trace, fired = [], [], []
    for step, (_, _, (inputs, labels)) in zip(range(num_steps), endless(batches), strict=False):
        params = {name: value.detach().clone() for name, value in network.named_parameters()}
        states.append(params)
        grads = per_example_gradients(network, functional.cross_entropy, inputs, labels)
        trace.append(float(gradient_uncertainty(grads).value))
        mean = {name: value.mean(0) for name, value in grads.items()}
        if config.mode == "triggered":
            moved, kicked = triggered_langevin_step(
                params, mean, uncertainty=trace[-1], step=step, lr=config.lr, noise_power=config.noise_power,
                threshold=config.threshold, warmup=config.warmup, generator=generator,
            )  # fmt: skip
            fired += [step] if kicked else []
        else:
            size = 30
            moved = langevin_step(
                params,
                {name: params[name] / config.prior_variance + size * mean[name] for name in params},
                step_size=config.step_size or 2 * config.lr / size,
                temperature=config.temperature,
                grad_variance=potential_gradient_variance(grads, size) if config.mode == "corrected" else None,
                noise=draw_noise(params, generator),
            )
        network.load_state_dict(moved)
    states.append({name: value.detach().clone() for name, value in network.named_parameters()})
    return states, trace, fired


def assert_same_member(got, expected):
    assert list(got) == list(expected)
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-11)


def test_triggered_chain_is_the_rule_and_keeps_the_state_before_the_kick():
    config = triggered()
    samples = GradientUncertaintySampler(make_network(), config).run(make_batches(), 200)
    states, trace, fired = replay(config, make_batches(), len(samples.uncertainty_trace))
    assert len(samples.members) == 6
    assert samples.steps == fired
    torch.testing.assert_close(samples.uncertainty_trace, torch.tensor(trace, dtype=torch.float64))
    assert samples.steps[0] > config.warmup
    # It stops at the last member.
    assert len(trace) == samples.steps[-1] + 1
    for step, member in zip(samples.steps, samples.members, strict=True):
        assert_same_member(member, states[step])


@pytest.mark.parametrize("mode", ["plain", "corrected"])
def test_langevin_chains_are_the_steps_at_even_distances(mode):
    config = SamplerConfig(mode=mode, lr=0.05, num_members=5, prior_variance=2.0, temperature=0.7, burn_in=0.25)
    batches = make_batches(drop_last=True)
    samples = GradientUncertaintySampler(make_network(), config).run(batches, 30)
    states, trace, _ = replay(config, make_batches(drop_last=True), 30)
    assert samples.steps == [round(7.5 + i * 22.5 / 5) for i in range(1, 6)]
    assert samples.steps[-1] == 30
    assert len(samples.uncertainty_trace) == 30
    torch.testing.assert_close(samples.uncertainty_trace, torch.tensor(trace, dtype=torch.float64))
    for step, member in zip(samples.steps, samples.members, strict=True):
        assert_same_member(member, states[step])


def test_step_size_and_dataset_size_can_be_given():
    given = SamplerConfig(mode="plain", lr=0.3, num_members=2, step_size=2 * 0.05 / 30, dataset_size=30)
    derived = SamplerConfig(mode="plain", lr=0.05, num_members=2)
    batches = list(make_batches())
    first = GradientUncertaintySampler(make_network(), given).run(batches, 12)
    second = GradientUncertaintySampler(make_network(), derived).run(_WithDataset(batches), 12)
    for got, expected in zip(first.members, second.members, strict=True):
        assert_same_member(got, expected)


class _WithDataset(list):
    dataset = range(30)


def test_corrected_reports_where_minibatch_noise_exceeds_the_temperature():
    config = SamplerConfig(mode="corrected", lr=5.0, num_members=2, temperature=1e-3)
    chain = GradientUncertaintySampler(make_network(), config)
    shares = [step.hotter for step in chain.advance(make_batches(drop_last=True), 6)]
    assert max(shares) > 0.5
    mild = SamplerConfig(mode="corrected", lr=1e-6, num_members=2)
    assert [
        s.hotter for s in GradientUncertaintySampler(make_network(), mild).advance(make_batches(drop_last=True), 4)
    ] == [0] * 4


def test_the_network_stays_as_it_is_and_the_seed_makes_the_chain():
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    runs = [GradientUncertaintySampler(network, triggered(seed=seed)).run(make_batches(), 150) for seed in (0, 0, 1)]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(runs[0].uncertainty_trace, runs[1].uncertainty_trace)
    assert not torch.equal(runs[0].uncertainty_trace[:20], runs[2].uncertainty_trace[:20])


def test_members_are_copies():
    samples = GradientUncertaintySampler(make_network(), triggered()).run(make_batches(), 200)
    stacked = stack_members(samples.members)
    assert all(not torch.equal(stacked["0.weight"][0], other) for other in stacked["0.weight"][1:])


@pytest.mark.parametrize("config", [triggered(), triggered(random_kicks=0.1),
                                    SamplerConfig(mode="corrected", lr=0.05, num_members=5)])  # fmt: skip
@pytest.mark.parametrize("pause", [1, 11, 17])
def test_a_chain_in_pieces_is_the_chain_in_one_piece(config, pause):
    steps = 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short chain may keep fewer members
        whole = GradientUncertaintySampler(make_network(), config).run(make_batches(), steps)
        first = GradientUncertaintySampler(make_network(), config)
        for done in first.advance(make_batches(), steps):
            if done.step == pause:
                break
        stored = io.BytesIO()
        torch.save(first.state_dict(), stored)
        stored.seek(0)
        second = GradientUncertaintySampler(make_network(seed=5), config)
        second.load_state_dict(torch.load(stored, weights_only=True))
        rest = second.run(make_batches(), steps)
    assert rest.steps == whole.steps
    assert torch.equal(rest.uncertainty_trace, whole.uncertainty_trace)
    for got, expected in zip(rest.members, whole.members, strict=True):
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_running_again_goes_on_and_adds_nothing_to_what_is_done():
    chain = GradientUncertaintySampler(make_network(), triggered(num_members=4))
    once = chain.run(make_batches(), 200)
    again = chain.run(make_batches(), 200)
    assert once.steps == again.steps
    assert len(again.uncertainty_trace) == len(once.uncertainty_trace)


def test_loaders_of_torch_and_those_with_epochs_are_read_again_and_again():
    batches = make_batches()
    loader = DataLoader(TensorDataset(batches._inputs, batches._labels), batch_size=8)
    config = SamplerConfig(mode="plain", num_members=2)
    assert GradientUncertaintySampler(make_network(), config).run(loader, 9).steps == [5, 9]
    seen = []

    class Sampler(list):
        def set_epoch(self, epoch):
            seen.append(epoch)

    order = [(epoch, number) for (epoch, number, _), _ in zip(endless(Sampler("abc"), 1, 2), range(5), strict=False)]
    assert order == [(1, 2), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert seen == [1, 2, 3]


def test_every_epoch_of_shuffled_batches_has_its_own_order_of_all_examples():
    batches = make_batches()
    epochs = [torch.cat([labels for _, labels in batches.epoch(epoch)]) for epoch in (0, 1)]
    assert len(batches) == 4
    assert not torch.equal(*epochs)
    assert torch.equal(*(labels.sort().values for labels in epochs))
    assert [len(labels) for _, labels in make_batches(drop_last=True)] == [8, 8, 8]
    resumed = [inputs for inputs, _ in batches.epoch(1, 2)]
    assert torch.equal(resumed[0], list(batches.epoch(1))[2][0])
    with pytest.raises(ValueError, match=r"1\.\.30"):
        make_batches(batch_size=31)


def test_a_member_count_never_reached_warns_and_none_is_an_error():
    with pytest.warns(UserWarning, match="of 50 members were kept in 40 steps"):
        samples = GradientUncertaintySampler(make_network(), triggered(num_members=50)).run(make_batches(), 40)
    assert 0 < len(samples.members) < 50
    for threshold in (1.0, 0.999):
        chain = GradientUncertaintySampler(make_network(), triggered(threshold=threshold))
        with pytest.raises(RuntimeError, match="no member was kept in 20 steps"):
            chain.run(make_batches(), 20)
    with pytest.raises(RuntimeError, match="warm-up of 100 steps"):
        GradientUncertaintySampler(make_network(), triggered(warmup=100)).run(make_batches(), 20)


def test_random_kicks_come_at_their_rate_whatever_the_uncertainty_is():
    config = triggered(random_kicks=0.25, threshold=0.9, num_members=1000, lr=1e-4, noise_power=0.0, warmup=0)
    with pytest.warns(UserWarning, match="members were kept"):
        samples = GradientUncertaintySampler(make_network(), config).run(make_batches(), 400)
    assert len(samples.members) == pytest.approx(100, abs=4 * math.sqrt(400 * 0.25 * 0.75))
    kept = samples.uncertainty_trace[samples.steps]
    assert float(kept.min()) < float(samples.uncertainty_trace.median())


def test_a_chain_that_diverges_says_so():
    config = SamplerConfig(mode="plain", lr=1e6, num_members=2)
    with pytest.raises(RuntimeError, match="the chain diverged"):
        GradientUncertaintySampler(make_network(), config).run(make_batches(), 400)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bogus"}, "mode must be one of triggered, plain, corrected, got 'bogus'"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"num_members": 0}, "num_members must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"prior_variance": 0.0}, "prior_variance must be positive"),
        ({"burn_in": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"dataset_size": 0}, "dataset_size must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"threshold": math.nan}, "must be finite"),
        ({"random_kicks": 0.0}, r"random_kicks must lie in \(0, 1\]"),
        ({"random_kicks": 0.1, "mode": "plain"}, "random_kicks must be None in mode plain, got 0.1"),
    ],
)
def test_settings_that_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_runs_that_are_rejected():
    plain = SamplerConfig(mode="plain", num_members=10)
    with pytest.raises(ValueError, match="at least 10 steps after the burn-in for 10 members, got 12"):
        GradientUncertaintySampler(make_network(), plain).run(make_batches(), 12)
    with pytest.raises(ValueError, match="set dataset_size"):
        GradientUncertaintySampler(make_network(), plain).run(list(make_batches()), 100)
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        GradientUncertaintySampler(make_network(), triggered()).run(make_batches(), 0)
    with pytest.raises(ValueError, match="got no batch"):
        GradientUncertaintySampler(make_network(), triggered()).run([], 5)
    with pytest.raises(ValueError, match="a generator cannot"):
        GradientUncertaintySampler(make_network(), triggered(threshold=1.0)).run(iter(list(make_batches())), 50)
    with pytest.raises(ValueError, match="normalises over the batch"):
        GradientUncertaintySampler(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), triggered())
    with pytest.raises(ValueError, match="is active dropout"):
        GradientUncertaintySampler(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), triggered())
    corrected = SamplerConfig(mode="corrected", num_members=2)
    with pytest.raises(ValueError, match="leave out a last batch"):
        GradientUncertaintySampler(make_network(), corrected).run(make_batches(batch_size=29), 20)
    chain = GradientUncertaintySampler(make_network(), plain)
    next(chain.advance(make_batches(), 20))
    with pytest.raises(ValueError, match="max_steps must be 20, with which this chain started, got 30"):
        chain.run(make_batches(), 30)
    state = chain.state_dict()
    with pytest.raises(ValueError, match="the state must have the parameters of the network"):
        GradientUncertaintySampler(nn.Linear(4, 3), plain).load_state_dict(state)


def make_members(count=4):
    return [{name: value.detach() for name, value in make_network(seed).named_parameters()} for seed in range(count)]


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("stacked", [False, True])
def test_members_predict_as_their_networks_do(rows, stacked):
    inputs = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    members = make_members()
    with torch.no_grad():
        expected = torch.stack([make_network(seed)(inputs).softmax(1) for seed in range(4)])
    got = posterior_predictive(stack_members(members) if stacked else members, make_network(9), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    assert not got.requires_grad
    assert predictive_uncertainty(got).mutual_information.min() > 0


def test_prediction_switches_dropout_off_and_leaves_the_network_in_its_mode():
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    members = [{name: value.detach() for name, value in network.named_parameters()}]
    inputs = torch.randn(3, 4)
    first, second = (posterior_predictive(members, network, inputs) for _ in range(2))
    assert torch.equal(first, second)
    assert network.training


@pytest.mark.parametrize(
    ("members", "inputs", "message"),
    [
        ([], torch.zeros(1, 4), "at least one member"),
        (make_members(), torch.zeros(0, 4), "N at least 1"),
        ([{"bogus": torch.zeros(1)}], torch.zeros(1, 4), r"unknown: \['bogus'\]"),
        ([make_members()[0], {}], torch.zeros(1, 4), "got member 1 that differs from member 0"),
        ({}, torch.zeros(1, 4), "got 0 names"),
    ],
)
def test_predictions_that_are_rejected(members, inputs, message):
    with pytest.raises(ValueError, match=message):
        posterior_predictive(members, make_network(), inputs)


def test_scores_match_golden():
    scores = predictive_uncertainty(golden("score.probs"))
    for name in ("predictive_entropy", "mutual_information", "variation_ratio"):
        assert_matches(getattr(scores, name), f"score.{name}")
