"""Concept realignment against no realignment, over three seeds: about half an hour on one core."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replicas.concept_realignment import EXPERIMENTS, areas, curve_of, questions_to_tenth, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {experiment: [train(experiment, seed, folder) for seed in SEEDS] for experiment in EXPERIMENTS}


def gains(results: list[dict[str, Any]], realigner: str, policy: str = "ucp") -> np.ndarray:
    """Return the share by which the area under the concept loss falls, by seed."""
    return np.array([1 - areas(result, realigner, policy)[0] / areas(result, "none", policy)[0] for result in results])


@pytest.mark.parametrize("experiment", ["sklearn", "pairs0"])
def test_the_concept_loss_falls_by_a_fifth_with_the_network(results, experiment):
    assert (gains(results[experiment], "network") > 0.2).all()


@pytest.mark.parametrize("experiment", ["sklearn", "pairs0"])
def test_the_accuracy_of_the_independent_head_rises(results, experiment):
    for result in results[experiment]:
        assert areas(result, "network")[1] > areas(result, "none")[1]


@pytest.mark.parametrize("experiment", ["sklearn", "pairs0"])
def test_fewer_questions_reach_a_tenth_of_the_loss(results, experiment):
    for result in results[experiment]:
        with_network, without = (questions_to_tenth(result, name) for name in ("network", "none"))
        assert with_network is not None
        assert without is None or with_network < without


def test_random_questions_gain_too(results):
    assert (gains(results["sklearn"], "network", "random") > 0.2).all()


def test_patterns_are_the_rival_to_fear_where_concepts_follow_from_the_class(results):
    for experiment in ("sklearn", "pairs0"):
        assert (gains(results[experiment], "patterns") > gains(results[experiment], "network")).all()


def test_no_policy_beats_the_one_that_knows_the_truth(results):
    for experiment in EXPERIMENTS:
        for result in results[experiment]:
            policies = {each["policy"] for each in result["curves"]}
            if "skyline" in policies:
                for policy in policies:
                    assert areas(result, "network", "skyline")[0] <= areas(result, "network", policy)[0]


def test_everything_is_known_in_the_end(results):
    for result in results["pairs0"]:
        assert curve_of(result, "network")["concept_loss"][-1] == 0
