"""The claims of the WaffleCLIP paper on small shapes, over three training seeds: a few minutes on one core."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.replicas.waffleclip_shapes import NUM_REPETITIONS, budget_figure, run, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = (0, 1, 2)
Results = Sequence[Mapping[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("replica")
    return [run(seed, folder) for seed in SEEDS]


def mean(results: Results, name: str) -> float:
    return float(np.mean([np.mean(result["accuracy"][name]) for result in results]))


def deviation(results: Results, name: str) -> float:
    """Over the seven repetitions, mean over trainings."""
    return float(np.mean([np.std(result["accuracy"][name]) for result in results]))


def test_the_encoders_know_shapes_and_colours(results):
    assert min(np.mean(result["accuracy"]["plain"]) for result in results) > 10 * 100 / 36
    assert mean(results, "plain, unseen") > 5 * 100 / 12


def test_random_descriptors_shared_by_all_classes_beat_the_plain_prompt(results):
    assert mean(results, "waffle 15") > mean(results, "plain")


def test_more_pairs_shrink_the_deviation(results):
    assert deviation(results, "waffle 15") < deviation(results, "waffle 1")


def test_one_list_for_all_beats_a_list_for_each_at_one_pair(results):
    assert mean(results, "waffle 1") > mean(results, "own 1")


def test_with_fifteen_pairs_it_hardly_matters_whose_list_it_is(results):
    assert abs(mean(results, "waffle 15") - mean(results, "own 15")) < 0.5


def test_report_shows_every_row(results):
    text = table(results)
    assert "waffle 15 + concept" in text
    assert text.count("\n") == len({*text.splitlines()}) - 1
    assert all(len(result["accuracy"]["waffle 15"]) == NUM_REPETITIONS for result in results)
    (axes,) = budget_figure(results).axes
    assert len(axes.containers) == 2
