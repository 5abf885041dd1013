"""Claims of the BoostLU paper on small digit scenes, over three seeds: fifteen to thirty minutes on one core."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replicas.boostlu_scenes import (
    BOOST,
    EPOCHS_SHOWN,
    SCHEMES,
    SWEEP,
    boosted_at_inference,
    compare_maps,
    setting,
    train,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SEEDS = (0, 1, 2)
Result = Mapping[str, Any]


@pytest.fixture(scope="module")
def schemes(folder: Path) -> dict[tuple[str, float], list[Result]]:
    wanted = [("full", 1.0), *((scheme, boost) for scheme in SCHEMES for boost in (1.0, BOOST))]
    return {key: [train(setting(key[0], seed, key[1]), folder) for seed in SEEDS] for key in wanted}


@pytest.fixture(scope="module")
def maps(folder: Path, schemes: dict[tuple[str, float], list[Result]]) -> list[dict[str, float]]:
    """Comparison of the assume-negative model with the full-label model, both at their best epoch."""
    return [compare_maps(seed, folder) for seed in SEEDS]


def mean(results: Sequence[Result]) -> float:
    return float(np.mean([result["test_mAP"] for result in results]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_boost_helps_every_loss(schemes, scheme):
    assert mean(schemes[scheme, BOOST]) - mean(schemes[scheme, 1.0]) >= 2


def test_rejecting_with_the_boost_comes_close_to_full_labels(schemes):
    assert mean(schemes["full", 1.0]) - mean(schemes["LL-R", BOOST]) <= 1.5


def test_more_boost_helps_more(folder, schemes):
    reached = [train(setting("LL-R", SEEDS[0], alpha), folder)["test_mAP"] for alpha in SWEEP]
    assert reached[1] > reached[0]
    assert reached[2] > reached[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plain_model_is_better_with_the_boost_at_inference_alone(folder, schemes, seed):
    found = boosted_at_inference(seed, folder)
    assert found["1"]["mAP"] == pytest.approx(schemes["an", 1.0][SEEDS.index(seed)]["last_test_mAP"], abs=0.01)
    assert found["5"]["mAP"] >= found["1"]["mAP"] + 5
    assert found["1"]["recall"] < 0.5 < found["5"]["recall"]


def test_partial_labels_leave_the_places_and_lower_the_scores(maps):
    for of_seed in maps:
        assert of_seed["correlation_median"] > 0.4
        assert of_seed["top_positives_reference"] / of_seed["top_positives_unboosted"] > 1.5


def test_the_boost_finds_more_wrong_negatives(schemes):
    for plain, boosted in zip(schemes["LL-R", 1.0], schemes["LL-R", BOOST], strict=True):
        for epoch in EPOCHS_SHOWN[1:]:
            assert boosted["rejected_fn"][epoch - 1] > plain["rejected_fn"][epoch - 1]
