"""Claims of posterior annealing on four small tasks, over seeds: about ten minutes on one core.

Includes claims that do not hold: a baseline is better on the sine, and the variances of digits are not better
calibrated.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.replicas import annealing_digits, annealing_lorenz, annealing_molecules, annealing_sine
from tests.replicas.annealing import ANNEALED, NLL, Replica, mean_epochs_to, mean_of, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

Runs = Sequence[Mapping[str, Any]]
Trained = Callable[[str], Runs]


def over_seeds(replica: Replica, seeds: Sequence[int]) -> Trained:
    """Return the runs of a scheme, trained on first use."""
    known: dict[str, Runs] = {}

    def runs(scheme: str) -> Runs:
        if scheme not in known:
            known[scheme] = [train(replica, scheme, seed) for seed in seeds]
        return known[scheme]

    return runs


@pytest.fixture(scope="module")
def lorenz() -> Trained:
    return over_seeds(annealing_lorenz.REPLICA, annealing_lorenz.SEEDS)


@pytest.fixture(scope="module")
def sine() -> Trained:
    return over_seeds(annealing_sine.REPLICA, annealing_sine.SEEDS)


@pytest.fixture(scope="module")
def digits() -> Trained:
    return over_seeds(annealing_digits.REPLICA, annealing_digits.SEEDS)


@pytest.fixture(scope="module")
def molecules() -> Trained:
    return over_seeds(annealing_molecules.REPLICA, annealing_molecules.SEEDS)


def test_trajectories_are_denoised_better(lorenz):
    assert mean_of(lorenz(ANNEALED), "mse") < 0.9 * mean_of(lorenz(NLL), "mse")


def test_trajectories_are_learnt_faster(lorenz):
    epochs = [mean_epochs_to(lorenz(name), annealing_lorenz.FAST, annealing_lorenz.REPLICA.num_epochs)
              for name in (ANNEALED, NLL)]  # fmt: skip
    assert epochs[0] < 0.7 * epochs[1]


@pytest.mark.parametrize("baseline", [NLL, "sigma_scaling", "mc_dropout", "deep_ensemble"])
def test_variances_of_trajectories_are_calibrated_better(lorenz, baseline):
    assert mean_of(lorenz(ANNEALED), "uce") < mean_of(lorenz(baseline), "uce")


def test_the_sine_is_fitted_better_than_by_the_likelihood(sine):
    assert mean_of(sine(ANNEALED), "mse") <= 0.5 * mean_of(sine(NLL), "mse")
    assert mean_of(sine(ANNEALED), "uce") <= 0.6 * mean_of(sine(NLL), "uce")


def test_beta_nll_is_better_on_the_sine(sine):
    """A baseline that the method does not beat here."""
    assert mean_of(sine("beta_nll"), "mse") < mean_of(sine(ANNEALED), "mse")
    assert mean_of(sine("beta_nll"), "uce") < mean_of(sine(ANNEALED), "uce")


def test_the_mean_alone_has_less_error_on_the_sine(sine):
    """Calibration costs accuracy. Not for beta-NLL here: measured, .0065 and .0066."""
    assert mean_of(sine("mse"), "mse") < min(mean_of(sine(name), "mse") for name in (NLL, ANNEALED))


def test_the_residual_term_gives_the_speed_and_the_coupling_alone_costs_some(sine):
    """Errors of the first 40 of 150 epochs; at the end the coupling alone is better than the likelihood too."""
    early = {name: np.mean([[epoch["mse"] for epoch in run["history"][:40]] for run in sine(name)])
             for name in (NLL, "annealed l2=0", "annealed l1=0")}  # fmt: skip
    assert early["annealed l1=0"] > early[NLL]
    assert mean_of(sine("annealed l2=0"), "mse") <= 0.5 * mean_of(sine(NLL), "mse")


@pytest.mark.parametrize("early", ["annealed end=0.6", "annealed exponential"])
def test_a_prior_that_leaves_early_loses_some_of_the_gain(sine, early):
    assert mean_of(sine(ANNEALED), "mse") < mean_of(sine(early), "mse")


@pytest.mark.parametrize("scheme", [ANNEALED, "annealed l2=0.1", "annealed p=1 l2=0.1"])
def test_digits_are_enlarged_better(digits, scheme):
    for score in ("mse", "nll"):
        assert mean_of(digits(scheme), score) < mean_of(digits(NLL), score)


@pytest.mark.xfail(
    strict=True, reason="UCE .0049 and .0048, the likelihood .0035; over seeds 0 to 5 .0043, .0039, .0040"
)
@pytest.mark.parametrize("scheme", [ANNEALED, "annealed l2=0.1"])
def test_digits_are_enlarged_with_better_variances(digits, scheme):
    """Expected over two seeds, and not found over these two; over six seeds the difference is small."""
    assert mean_of(digits(scheme), "uce") < mean_of(digits(NLL), "uce")


def test_digits_are_enlarged_with_better_variances_by_the_absolute_residual(digits):
    assert mean_of(digits("annealed p=1 l2=0.1"), "uce") < mean_of(digits(NLL), "uce")


def test_molecules_are_predicted_as_well_as_by_the_likelihood(molecules):
    """Parity within 15 %; more is not claimed: these two seeds gave .0102 against .0165, two others .0090 against
    .0085."""
    assert mean_of(molecules(ANNEALED), "mse") <= 1.15 * mean_of(molecules(NLL), "mse")
