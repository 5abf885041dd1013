"""Claims of gradient uncertainty that hold at this size, over three seeds."""

import numpy as np
import pytest

from tests.replicas import gradient_uncertainty_digits as digits
from tests.replicas import gradient_uncertainty_toy as toy
from tests.replicas.threads import one_thread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def toy_results():
    return [toy.replicate(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def results():
    return [digits.replicate(seed) for seed in SEEDS]


def column(results, method, key):
    return np.array([result["methods"][method][key] for result in results])


def test_the_triggered_chain_visits_both_modes_and_langevin_stays(toy_results):
    for result in toy_results:
        chains = result["chains"]
        assert chains["triggered"]["switches"] >= 1
        assert 0 < chains["triggered"]["share"] < 1
        assert chains["triggered"]["samples"] >= 100
        for step_size in toy.STEP_SIZES:
            assert chains[f"SGLD {step_size:g}"]["switches"] == 0


def test_the_chain_finds_letters_better_than_one_network(results):
    triggered, single = (column(results, name, "auroc") for name in ("triggered", "deterministic"))
    assert triggered.mean() >= single.mean() + 0.02


def test_accuracy_is_kept(results):
    triggered, single = (column(results, name, "accuracy") for name in ("triggered", "deterministic"))
    assert triggered.mean() >= single.mean() - 0.01


def test_letters_are_twice_as_uncertain_as_digits(results):
    assert (
        column(results, "triggered", "entropy_letters").mean()
        >= 2 * column(results, "triggered", "entropy_test").mean()
    )


def test_members_disagree_about_letters_most(results):
    for result in results:
        found = result["methods"]["triggered"]
        assert found["information_letters"] > found["information_test"] > 0
        # I2: disagreement grows with the members.
        growth = [result["growth"][k]["information_letters"] for k in digits.GROWTH if k in result["growth"]]
        assert growth[0] == pytest.approx(0, abs=1e-6)
        assert growth[-1] > growth[1]


def test_uncertainty_is_negative_while_learning_and_rarely_above_the_threshold_later(results):
    """Near 0 for the first five epochs, before the loss starts to fall."""
    for result in results:
        chain = result["chain"]
        assert chain["members"] == digits.NUM_MEMBERS
        # Epoch means; measured, -3.7 and -5.3.
        assert chain["lowest_epoch"] < -2
        assert chain["lowest_epoch"] < 2 * chain["late_mean"]
        assert 0.002 < chain["above_threshold"] < 0.05


def test_blends_are_found_better_than_by_one_network(results):
    assert column(results, "triggered", "auroc_blends").mean() > column(results, "deterministic", "auroc_blends").mean()
