"""Posterior annealing end to end on tiny data: objectives, sources of the std, recalibration, rejected settings."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.config import compose_job
from tenfold.bundle import check_probe, load_bundle
from tenfold.catalog import load_predictor
from tenfold.config import ConfigError
from tenfold.data.catalog import load_regression
from tenfold.data.regression import ArraySource
from tenfold.engine.fit import Clock
from tenfold.engine.run import Outcome, PlainRun
from tenfold.methods.posterior_annealing.predictor import RegressionEnsemble
from tenfold.methods.posterior_annealing.recipe import (
    evaluate,
    objective_loss,
    share_units,
    target_statistics,
    tau_at,
    train,
)
from tenfold.methods.posterior_annealing.settings import Config
from tenfold.metrics.regression.likelihoods import gaussian_nll
from tenfold.models.regressors.build import RegressorConfig, build_regressor
from tenfold.tasks import Slot

TINY = ("method=posterior_annealing", "data=table", "scale=local", "run.num_epochs=2", "model.widths=[8]")


def trained(folder: Path, *settings: str) -> Outcome:
    job = compose_job([*TINY, *settings])
    run = PlainRun(folder=folder / "run", shared=folder, seed=job.run.seed, progress=False)
    try:
        return train(job, run)
    finally:
        run.close()


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("method.objective=gaussian_nll", "method.recalibration=sigma_nll"),
        ("method.objective=beta_nll", "method.recalibration=isotonic"),
        ("method.objective=mse",),
        ("method.form=sum", "method.start=0.9", "method.learning_rate_schedule=constant"),
        ("method.uncertainty=mc_dropout", "model.dropout=0.2", "method.num_passes=3"),
        ("method.uncertainty=deep_ensemble", "method.num_members=2", "method.recalibration=sigma_ratio"),
        ("method.uncertainty=tta", "method.num_passes=3"),
    ],
    ids=lambda settings: "-".join(each.split("=")[1] for each in settings) or "annealed",
)
def test_a_training_ends_in_a_model_that_answers_as_it_was_measured(tmp_path: Path, settings):
    outcome = trained(tmp_path, *settings)
    bundle = load_bundle(outcome.bundle)
    predictor = load_predictor(bundle)
    assert check_probe(bundle, predictor) == 0.0
    run = PlainRun(folder=tmp_path / "again", progress=False)
    again = evaluate(predictor, compose_job([*TINY, *settings]).data, run)
    run.close()
    assert again == pytest.approx(outcome.metrics, rel=1e-5, nan_ok=True)
    assert outcome.metrics["test/rmse"] == pytest.approx(math.sqrt(outcome.metrics["test/mse"]))


def test_the_std_is_made_of_noise_and_disagreement(tmp_path: Path):
    predictor = load_predictor(trained(tmp_path, "method.uncertainty=deep_ensemble", "method.num_members=3").bundle)
    batch = {"input": torch.randn(5, 10)}
    answer = predictor(**batch)
    together = answer["aleatoric"].square() + answer["epistemic"].square()
    torch.testing.assert_close(answer["std"].square(), together)
    assert (answer["epistemic"] > 0).all()
    # One vectorised pass equals the members one by one.
    means, log_variances = zip(*(network(batch["input"]) for network in predictor.networks), strict=True)
    unit = predictor.std
    torch.testing.assert_close(answer["mean"], torch.stack(means).mean(0).detach() * unit + predictor.mean)
    noise = torch.stack(log_variances).exp().mean(0).sqrt().detach() * unit
    torch.testing.assert_close(answer["aleatoric"], noise)


def test_intervals_have_their_nominal_coverage():
    random = np.random.default_rng(0)
    network = build_regressor(
        RegressorConfig(name="mlp", widths=(4,)), [Slot(name="x", dtype="float32", shape=(1,))], 1
    )
    predictor = RegressionEnsemble(
        [network], inputs=(Slot(name="x", dtype="float32", shape=(1,)),), classes=("y",),
        mean=torch.zeros(1), std=torch.ones(1),
    )  # fmt: skip
    outputs = {"mean": torch.zeros(20000, 1), "std": torch.full((20000, 1), 2.0)}
    truth = torch.from_numpy(2.0 * random.standard_normal((20000, 1)))
    assert all(end.isfinite().all() for end in predictor.interval(outputs, 0.9999999999999999))
    low, high = predictor.interval(outputs, 0.8)
    assert ((low <= truth) & (truth <= high)).double().mean().item() == pytest.approx(0.8, abs=0.01)
    for level in (0.0, 1.0, -3.0):
        with pytest.raises(ValueError, match=r"level must lie in \(0, 1\)"):
            predictor.interval(outputs, level)
    answer = predictor(x=torch.zeros(3, 1), level=0.8)
    assert torch.equal(torch.stack([answer["lower"], answer["upper"]]), torch.stack(predictor.interval(answer, 0.8)))


def test_an_overconfident_model_gets_wider_intervals(tmp_path: Path):
    settings = (
        "run.num_epochs=60",
        "method.objective=gaussian_nll",
        "method.learning_rate=0.02",
        "model.widths=[64, 64]",
    )
    plain = trained(tmp_path / "plain", *settings)
    scaled = trained(tmp_path / "scaled", *settings, "method.recalibration=sigma_nll")
    assert scaled.metrics["test/nll"] < plain.metrics["test/nll"]
    assert abs(scaled.metrics["test/coverage_90"] - 0.9) < abs(plain.metrics["test/coverage_90"] - 0.9)


def test_tau_falls_from_its_start_to_exactly_0_at_the_last_step():
    taus = [tau_at(Config(start=0.5), Clock(epoch=1, num_epochs=1, step=step, total_steps=11)) for step in range(11)]
    assert taus[0] == 0.5
    assert taus[-1] == 0.0
    assert all(after < before for before, after in pairwise(taus))
    assert tau_at(Config(end=0.6), Clock(epoch=1, num_epochs=1, step=7, total_steps=11)) == 0.0
    assert tau_at(Config(), Clock(epoch=1, num_epochs=1, step=0, total_steps=1)) == 1.0


def test_at_tau_0_every_likelihood_is_the_gaussian_one():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, targets = (torch.randn(6, 2, generator=generator) for _ in range(3))
    expected = gaussian_nll(mean, log_variance, targets)
    for config in (
        Config(),
        Config(form="sum", start=0.9),
        Config(objective="gaussian_nll"),
        Config(objective="beta_nll", beta=0.0),
    ):
        torch.testing.assert_close(objective_loss(config, mean, log_variance, targets, 0.0), expected)


def test_squared_error_reaches_every_weight():
    mean, log_variance = torch.ones(3, 1, requires_grad=True), torch.ones(3, 1, requires_grad=True)
    objective_loss(Config(objective="mse"), mean, log_variance, torch.zeros(3, 1), 1.0).backward()
    assert log_variance.grad is not None
    assert (log_variance.grad == 0).all()
    torch.testing.assert_close(mean.grad, torch.full((3, 1), 2 / 3))


def test_statistics_are_those_of_each_channel_and_of_the_chosen_rows():
    random = np.random.default_rng(1)
    targets = (1e4 + random.standard_normal((700, 3, 5)) * np.array([1, 10, 0])[:, None]).astype(np.float32)
    source = ArraySource({"input": np.zeros((700, 1), np.float32)}, targets)
    rows = np.arange(0, 700, 2)
    mean, std = target_statistics(source, rows)
    chosen = targets[rows].astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), chosen.mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy()[:2], chosen.std((0, 2))[:2], rtol=1e-4)
    assert std[2] == 1  # a constant channel


def test_an_input_in_the_targets_unit_is_standardised_with_them():
    job = compose_job(["method=posterior_annealing", "data.num_train=2", "data.num_val=2", "data.num_test=2"])
    lorenz = load_regression(job.data)
    network = build_regressor(job.model, lorenz.inputs, 3)
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    share_units(network, lorenz, mean, std)
    assert torch.equal(network.input_mean, mean)
    assert torch.equal(network.input_std, std)
    table = load_regression(compose_job(list(TINY)).data)
    network = build_regressor(RegressorConfig(widths=(4,)), table.inputs, 10)
    share_units(network, table, torch.ones(10), torch.ones(10))
    assert (network.input_mean == 0).all()  # the columns of a table have different units


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs must be input, got none"),
        ({"input": torch.zeros(2, 10), "mask": torch.zeros(2)}, "inputs must be input, got input, mask"),
        ({"input": torch.zeros(2, 9)}, r"input must be float32 \(B, 10\), got float32 \(2, 9\)"),
        ({"input": torch.zeros(2, 10).double()}, "got float64"),
    ],
)
def test_inputs_of_the_wrong_name_dtype_or_shape_are_rejected(tmp_path_factory, inputs, message):
    network = build_regressor(RegressorConfig(widths=(4,)), [Slot(name="input", dtype="float32", shape=(10,))], 1)
    predictor = RegressionEnsemble(
        [network], inputs=(Slot(name="input", dtype="float32", shape=(10,)),), classes=("y",),
        mean=torch.zeros(1), std=torch.ones(1),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        predictor(**inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("method.uncertainty=mc_dropout",), r"mc_dropout needs a network with dropout: set model\.dropout"),
        (("data=lorenz", "model.name=mlp"), r"mlp takes one float32 input.*model\.name=cnn1d"),
        (("data=photographs", "model.upscale=2", "model.widths=null"), r"model\.upscale must be 4"),
    ],
)
def test_incompatible_settings_are_rejected_before_training(tmp_path: Path, settings, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, *settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.end=1.2", r"end must lie in \(0, 1\], got 1\.2; tau has to be 0 before training ends"),
        ("method.hold=1.0", "hold must lie in"),
        ("method.form=sum", r"below 1 for the sum form"),
        ("method.start=0", r"start must lie in \(0, 1\]"),
        ("method.coupling_weight=-1", "coupling_weight must be at least 0"),
        ("method.residual_power=0.5", "residual_power must be at least 1"),
        ("method.num_members=1", "must be at least 2"),
        ("method.calibration_fraction=1", "calibration_fraction must lie in"),
    ],
)
def test_settings_out_of_range_are_rejected(setting, message):
    with pytest.raises(ConfigError, match=message):
        compose_job([*TINY, setting])


@pytest.mark.parametrize("data", ["lorenz", "nbody", "molecules", "photographs", "phantoms", "table"])
def test_every_embedded_data_set_has_a_network_that_fits(data):
    counts = () if data == "table" else ("data.num_train=2", "data.num_val=2", "data.num_test=2")
    job = compose_job(["method=posterior_annealing", f"data={data}", "scale=local", *counts])
    loaded = load_regression(job.data)
    batch = loaded.train.read([0, 1])
    network = build_regressor(job.model, loaded.inputs, len(loaded.targets)).eval()
    with torch.no_grad():
        mean, log_variance = network(*(batch[schema.name] for schema in loaded.inputs))
    assert mean.shape == batch["targets"].shape
    assert log_variance.expand_as(mean).isfinite().all()
