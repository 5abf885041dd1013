"""Gradient uncertainty end to end on tiny networks: schemes, threshold, stopping and resuming, rejected settings."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from jobs.config import compose_job
from tenfold.bundle import check_probe, load_bundle
from tenfold.catalog import load_predictor
from tenfold.config import ConfigError
from tenfold.data.catalog import load_uncertainty
from tenfold.engine.run import Interrupted, Outcome, PlainRun
from tenfold.methods.gradient_uncertainty import figures, recipe
from tenfold.methods.gradient_uncertainty.baselines import SghmcChain, SwagChain, laplace_members
from tenfold.methods.gradient_uncertainty.batches import ShuffledBatches
from tenfold.methods.gradient_uncertainty.evaluation import member_probs
from tenfold.methods.gradient_uncertainty.predictor import grey
from tenfold.metrics.uncertainty import predictive_uncertainty
from tenfold.models.digit_cnn import DigitCnnConfig, build_digit_cnn

TINY = (
    "method=gradient_uncertainty", "scale=local", "data.num_train=10", "data.num_val=10", "data.num_test=30",
    "model.channels=[2, 2, 2]", "model.hidden=8", "run.num_epochs=2", "run.max_steps=24", "run.batch_size=200",
    "method.num_members=3", "method.warmup_steps=5", "method.threshold=-1e6", "method.noise_power=1.0",
    "method.judge_epochs=0",
)  # fmt: skip


def trained(folder: Path, *settings: str, stop: threading.Event | None = None) -> Outcome:
    job = compose_job([*TINY, *settings])
    run = PlainRun(folder=folder / "run", shared=folder, seed=job.run.seed, progress=False, stop=stop)
    try:
        return recipe.train(job, run)
    finally:
        run.close()


@pytest.mark.parametrize(
    ("settings", "members"),
    [
        (("method.scheme=triggered",), 3),
        (("method.scheme=random_kicks", "method.kick_rate=1.0"), 3),
        (("method.scheme=plain",), 3),
        (("method.scheme=corrected",), 3),
        (("method.scheme=sghmc",), 3),
        (("method.scheme=swag",), 3),
        (("method.scheme=laplace",), 3),
        (("method.scheme=bayes_by_backprop",), 3),
        (("method.scheme=deep_ensemble", "method.num_members=2"), 2),
        (("method.scheme=mc_dropout",), 1),
        (("method.scheme=deterministic",), 1),
    ],
    ids=lambda value: value[0].split("=")[1] if isinstance(value, tuple) else "",
)
def test_every_scheme_ends_in_a_bundle_that_answers_as_it_was_measured(tmp_path: Path, settings, members):
    outcome = trained(tmp_path, *settings)
    bundle = load_bundle(outcome.bundle)
    predictor = load_predictor(bundle)
    assert check_probe(bundle, predictor) == 0.0
    assert outcome.metrics["members"] == members
    run = PlainRun(folder=tmp_path / "again", progress=False)
    again = recipe.evaluate(predictor, compose_job([*TINY, *settings]).data, run)
    run.close()
    assert again == pytest.approx({name: outcome.metrics[name] for name in again}, rel=1e-4, abs=1e-6, nan_ok=True)
    # The threshold is set on held-out images: their flagged fraction does not exceed the configured rate.
    assert outcome.metrics["val/flagged"] <= 0.05


def test_answers_hold_together(tmp_path: Path):
    predictor = load_predictor(trained(tmp_path, "method.scheme=deep_ensemble", "method.num_members=3").bundle)
    images = torch.randint(0, 256, (5, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = predictor(images)
    members = predictor.member_probs(images)
    scores = predictive_uncertainty(members)
    torch.testing.assert_close(answer["probs"], members.mean(0))
    torch.testing.assert_close(answer["logits"].softmax(1), answer["probs"])
    torch.testing.assert_close(answer["mutual_information"], scores.mutual_information)
    flagged = (scores.predictive_entropy > predictor.threshold).float()
    assert torch.equal(answer["outside"], flagged)
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, H, W, 3\)"):
        predictor(torch.zeros(1, 28, 28, 3))


@pytest.mark.parametrize("scheme", ["triggered", "sghmc", "swag", "bayes_by_backprop"])
def test_a_stopped_job_resumes_to_the_same_members(tmp_path: Path, monkeypatch, scheme):
    settings = (f"method.scheme={scheme}", "method.warmup_steps=15", "run.checkpoint_every_steps=7")
    whole = load_bundle(trained(tmp_path / "whole", *settings).bundle).tensors()
    monkeypatch.setattr(recipe, "REPORT_EVERY", 7)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        trained(tmp_path / "parts", *settings, stop=stop)
    parts = load_bundle(trained(tmp_path / "parts", *settings).bundle).tensors()
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_the_judge_is_trained_once_per_seed_and_its_images_are_compared_with_the_rest(tmp_path: Path, monkeypatch):
    stages = []
    fit = recipe.fit
    monkeypatch.setattr(recipe, "fit", lambda *a, **k: (stages.append(a[4].stage), fit(*a, **k))[1])
    settings = ("method.judge_epochs=1", "method.scheme=deep_ensemble", "method.num_members=2")
    outcome = trained(tmp_path, *settings)
    assert stages == ["judge", "member0", "member1"]
    trained(tmp_path, "method.judge_epochs=1", "method.scheme=deterministic", "method.learning_rate=0.02")
    assert stages[3:] == ["fit"]
    trained(tmp_path / "other", *settings, "run.seed=1")
    assert stages[4:] == ["judge", "member0", "member1"]

    predictor = load_predictor(load_bundle(outcome.bundle))
    job = compose_job([*TINY, *settings])
    run = PlainRun(folder=tmp_path / "again", shared=tmp_path, seed=job.run.seed, progress=False)
    data = recipe._with_confusing(job, load_uncertainty(job.data), run)
    rows = data.confusing["small_margin"]
    assert len(rows) == 62  # 5 % of 1,250
    chosen = np.isin(np.arange(1250), rows)
    scores = predictive_uncertainty(member_probs(predictor, data.inside.test.images))
    measured = outcome.metrics
    assert measured["small_margin/auroc_predictive_entropy"] == pytest.approx(
        roc_auc_score(chosen, scores.predictive_entropy.numpy()), abs=1e-4
    )
    assert measured["small_margin/flagged"] == pytest.approx(
        float((scores.predictive_entropy[chosen] > predictor.threshold).float().mean()), abs=0.02
    )
    # Only the recipe has the training split that a judge needs.
    again = recipe.evaluate(predictor, job.data, run)
    run.close()
    assert not [name for name in again if name.startswith("small_margin")]
    assert {name for name in measured if name.startswith("blends")} <= set(again)


def test_the_judge_is_none_of_the_members(tmp_path: Path):
    settings = ("method.judge_epochs=1", "method.scheme=deterministic")
    job = compose_job([*TINY, *settings])
    outcome = trained(tmp_path, *settings)
    data = load_uncertainty(job.data)
    member = member_probs(load_predictor(load_bundle(outcome.bundle)), data.inside.test.images)[0]
    run = PlainRun(folder=tmp_path / "again", shared=tmp_path, seed=job.run.seed, progress=False)
    seeds = []
    for seed in (0, 1):
        run.seed = seed
        seeds.append(recipe._with_confusing(job, data, run).confusing["small_margin"].tolist())
    run.close()
    assert seeds[0] != seeds[1]
    assert seeds[0] != recipe.smallest_margin(member, 0.05).tolist()


def test_figures_show_every_set(tmp_path: Path):
    settings = ("method.judge_epochs=1",)
    outcome = trained(tmp_path, *settings)
    job = compose_job([*TINY, *settings])
    drawn = {}
    run = PlainRun(folder=tmp_path / "again", shared=tmp_path, seed=job.run.seed, progress=False)
    run.log_figure = lambda name, figure: drawn.update({name: figure})
    data = recipe._with_confusing(job, load_uncertainty(job.data), run)
    predictor = load_predictor(load_bundle(outcome.bundle))
    figures.log_figures(run, job.method, data, predictor, [0.0, 0.5])
    run.close()
    sets = ["test", "letters", "blends", "confusable", "small_margin"]
    labels = [text.get_text() for text in drawn["predictive_entropy.png"].axes[0].get_legend().get_texts()]
    assert [label.split(",")[0] for label in labels if "threshold" not in label] == sets
    panels = drawn["doubted.png"].axes
    assert [panel.get_ylabel() for panel in panels if panel.get_ylabel()] == sets
    shown = panels[-figures.NUM_IMAGES].images[0].get_array()
    assert any(np.array_equal(shown, image) for image in data.sets()["small_margin"].read(range(62)).numpy())


def test_a_chain_without_members_names_the_settings_to_change(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"no member was kept in 24 steps.*lower threshold or warmup") as caught:
        trained(tmp_path, "method.threshold=0.999", "method.warmup_steps=20")
    assert caught.value.__cause__ is not None  # so that the command line prints the message only


def test_fewer_members_than_asked_for_are_kept_with_a_warning(tmp_path: Path):
    with pytest.warns(UserWarning, match="of 3 members were kept in 24 steps"):
        outcome = trained(tmp_path, "method.warmup_steps=22")
    assert outcome.metrics["members"] == 1


def digits(num: int = 64) -> ShuffledBatches:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(num) % 10
    pixels = torch.rand(num, 1, 28, 28, generator=generator) * 0.1
    pixels[torch.arange(num), 0, labels * 2] += 0.9  # a bright row encodes the class
    return ShuffledBatches(pixels, labels, 32, seed=0)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_digit_cnn(DigitCnnConfig(channels=(4, 4, 4), hidden=16), 10)


def accuracy(members, batches: ShuffledBatches) -> float:
    (inputs, labels), *_ = batches.epoch(0)
    probs = torch.stack([torch.func.functional_call(network(), member, (inputs,)).softmax(1) for member in members])
    return float((probs.mean(0).argmax(1) == labels).float().mean())


def test_the_hamiltonian_chain_learns_and_its_members_differ():
    batches = digits()
    chain = SghmcChain(
        network(),
        num_examples=6400,
        learning_rate=0.1,
        friction=0.1,
        prior_variance=1.0,
        num_members=4,
        burn_in=0.5,
        seed=0,
    )
    assert list(chain.advance(batches, 300))[-1] == 300
    assert len(chain.members) == 4
    assert accuracy(chain.members, batches) > 0.5
    assert not torch.equal(chain.members[0]["fc2.weight"], chain.members[1]["fc2.weight"])


def test_the_gaussian_along_the_path_is_centred_on_it():
    batches = digits()
    chain = SwagChain(network(), learning_rate=0.2, num_members=200, rank=10, burn_in=0.5, steps_between=4, seed=0)
    list(chain.advance(batches, 400))
    drawn = torch.stack([member["fc2.bias"] for member in chain.members])
    state = chain.state_dict()
    mean, variance = state["mean"]["fc2.bias"], state["squares"]["fc2.bias"] - state["mean"]["fc2.bias"].square()
    torch.testing.assert_close(drawn.mean(0), mean, atol=4 * float(variance.max().sqrt()) / 200**0.5, rtol=0)
    assert torch.equal(chain.members[0]["fc1.bias"], chain.members[0]["fc1.bias"])
    few = SwagChain(network(), learning_rate=0.2, num_members=2, rank=10, burn_in=0.9, steps_between=50, seed=0)
    list(few.advance(batches, 50))
    with pytest.raises(RuntimeError, match="at least 2 moments after the burn-in, got 1"):
        _ = few.members


def test_laplace_members_differ_in_the_last_layer_around_the_trained_one():
    model, batches = network(), digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for epoch in range(100):
        for inputs, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    members = laplace_members(model, digits(), 200, seed=0)
    for name, trained in model.named_parameters():
        drawn = torch.stack([member[name] for member in members])
        if not name.startswith("fc2"):
            assert torch.equal(drawn, trained.detach().expand_as(drawn)), name
            continue
        std = drawn.std(0)
        assert float(std.min()) > 0, name
        # Five standard errors, over 170 parameters.
        assert float(((drawn.mean(0) - trained.detach()) / std).abs().max()) < 5 / 200**0.5, name
    again = laplace_members(model, digits(), 200, seed=0)
    assert torch.equal(again[7]["fc2.weight"], members[7]["fc2.weight"])


def test_a_chain_that_diverges_says_so():
    chain = SwagChain(network(), learning_rate=1e6, num_members=2, rank=4, burn_in=0.5, steps_between=1, seed=0)
    with pytest.raises(RuntimeError, match="the chain diverged; lower learning_rate"):
        list(chain.advance(digits(), 50))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.threshold=1.0", "threshold must be below 1, got 1.0; gradient uncertainty never exceeds 1"),
        ("method.num_members=0", "num_members must be at least 1"),
        ("method.learning_rate=0", "learning_rate must be positive"),
        ("method.burn_in=1", r"burn_in must lie in \[0, 1\)"),
        ("method.dropout=0", r"dropout must lie in \(0, 1\)"),
        ("method.kick_rate=0", "kick_rate must lie in"),
        ("method.swag_rank=1", "swag_rank must be at least 2"),
        ("method.initial_std=0", "initial_std must be positive"),
        ("method.judge_epochs=-1", "judge_epochs must be at least 0"),
        ("method.scheme=bayes", "method.scheme"),
        ("model.channels=[2, 2]", "model.channels"),
    ],
)
def test_settings_out_of_range_are_rejected(setting, message):
    with pytest.raises(ConfigError, match=message):
        compose_job([*TINY, setting])


def test_grey_is_the_mean_of_the_colours():
    images = torch.tensor([0, 51, 204], dtype=torch.uint8).expand(1, 2, 2, 3)
    torch.testing.assert_close(grey(images), torch.full((1, 1, 2, 2), 85 / 255))
