"""Claims of the CALM paper on small digit scenes, over three seeds: four to eight minutes on one core."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replicas.calm_cue_scenes import CELL, SIZE
from tests.replicas.calm_cues import Setting, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = (0, 1, 2)
CHANCE = 100 * CELL**2 / SIZE**2
Result = Mapping[str, Any]


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, list[Result]]:
    return {
        mode: [train(Setting(task="single", mode=mode, seed=seed), folder) for seed in SEEDS]
        for mode in ("cam", "em", "ml")
    }


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, list[Result]]:
    return {
        mode: [train(Setting(task="pairs", mode=mode, seed=seed), folder) for seed in SEEDS] for mode in ("cam", "em")
    }


def column(results: Sequence[Result], *keys: str) -> np.ndarray:
    values: list[Any] = list(results)
    for key in keys:
        values = [value[key] for value in values]
    return np.array(values)


@pytest.mark.parametrize("mode", ["em", "ml"])
def test_accuracy_is_that_of_cam(single, mode):
    assert column(single[mode], "accuracy").mean() >= column(single["cam"], "accuracy").mean() - 0.02


@pytest.mark.parametrize("mode", ["em", "ml"])
def test_maps_are_on_the_cue(single, mode):
    """Measured: EM 2.9 and ML 3.4 times the pixel precision of CAM, 6.7 and 7.4 times its mass in the cue."""
    assert column(single[mode], "pxap_minmax").mean() >= 2 * column(single["cam"], "pxap_minmax").mean()
    assert column(single[mode], "mass").mean() >= 5 * column(single["cam"], "mass").mean()
    assert (column(single[mode], "pxap_minmax") > column(single["cam"], "pxap_minmax")).all()


@pytest.mark.parametrize("mode", ["em", "ml"])
def test_what_the_map_names_is_needed(single, mode):
    """Measured: R_30 is .21 (EM) and .17 (ML), .39 for CAM; R_10 .26 and .20, .60 for CAM."""
    for share in ("0.1", "0.3"):
        ours, cams = (column(single[name], "R", share) for name in (mode, "cam"))
        assert (ours < cams).all()
        assert ours.mean() <= 0.6 * cams.mean()


def test_the_two_objectives_are_one(single):
    """Their gradients are equal; rounding alone differs, which training amplifies to the spread of seeds."""
    em, ml = (column(single[mode], "pxap_minmax") for mode in ("em", "ml"))
    standard_error = np.sqrt((em.var(ddof=1) + ml.var(ddof=1)) / len(SEEDS))
    assert abs(em.mean() - ml.mean()) <= 2 * standard_error


def test_differences_of_one_part_are_found_better(pairs):
    """Measured: 2.2 times for one slot, and 1.1 times for three, where most of the object is right."""
    em, cam = (column(pairs[mode], "pxap_pairs", "1") for mode in ("em", "cam"))
    assert em.mean() >= 2 * cam.mean()
    assert (em > cam).all()
    for count in ("2", "3"):
        assert column(pairs["em"], "pxap_pairs", count).mean() > column(pairs["cam"], "pxap_pairs", count).mean()


def test_the_gain_at_differences_is_that_of_finding_the_object(pairs):
    """The class-free p(z|x) reaches the same: 20.9, 27.8 and 35.0 against 20.9, 27.8 and 34.9.

    Features that see the whole image distinguish all slots at one location, where the attention concentrates.
    """
    for count in ("1", "2", "3"):
        differences, attention = (column(pairs["em"], key, count) for key in ("pxap_pairs", "pxap_attention"))
        assert abs(differences.mean() - attention.mean()) < 2


@pytest.mark.parametrize(("task", "keys"), [("single", ("pxap_minmax",)), ("pairs", ("pxap_pairs", "1"))])
def test_a_small_receptive_field_favours_cam(folder, task, keys):
    cam, em = (train(Setting(task=task, mode=mode, seed=0, receptive_field=21), folder) for mode in ("cam", "em"))
    assert column([cam], *keys)[0] > column([em], *keys)[0]


def test_a_detached_sum_loses_the_place(folder, single):
    result = train(Setting(task="single", mode="em", seed=0, detach_normalizer=True), folder)
    assert result["accuracy"] > 0.95
    assert result["pxap_minmax"] < 1.5 * CHANCE


def test_a_relu_prior_learns_worse(folder, pairs):
    """Measured with other rounding: .91, .94 and .81 of the images recognised; .94 here, .998 with softplus."""
    result = train(Setting(task="pairs", mode="em", seed=0, prior="relu"), folder)
    assert result["accuracy"] < pairs["em"][0]["accuracy"] - 0.03
