"""The claims of the DataDream paper on 8x8 digits, over three seeds: five to ten minutes on one core.

The bounds are those of the method's specification. It promises no gain over the real shots alone, and none is asserted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.replicas.datadream_digits import ROWS, Setting, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = (0, 1, 2)
Result = Mapping[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs of this module, so that none is done twice."""
    return tmp_path_factory.mktemp("replica")


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Result]:
    """Results of 16 shots a class, all seeds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [run(Setting(seed=seed, num_shots=16), folder) for seed in SEEDS]
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def four_shots(folder: Path) -> Result:
    return run(Setting(seed=SEEDS[0], num_shots=4), folder)


def mean(results: Sequence[Result], key: str) -> float:
    return float(np.mean([result[key] for result in results]))


@pytest.mark.parametrize("variant", ["dset", "cls"])
def test_the_adapted_generator_is_far_better_than_the_unadapted(results, four_shots, variant):
    for result in (*results, four_shots):
        assert result[f"synth_{variant}"] - result["synth_none"] > 15


@pytest.mark.parametrize("variant", ["dset", "cls"])
def test_class_means_come_more_than_twice_as_near(results, variant):
    for result in results:
        assert result["distance_none"] > 2 * result[f"distance_{variant}"]


def test_an_adapter_for_each_class_is_no_worse_than_one_for_all(results):
    assert mean(results, "synth_cls") >= mean(results, "synth_dset") - 2


@pytest.mark.parametrize("variant", ["dset", "cls"])
def test_generated_images_beside_real_ones_do_no_harm(results, variant):
    assert mean(results, f"both_{variant}") >= mean(results, "real") - 2


def test_more_shots_make_a_better_generator(results, four_shots):
    for variant in ("dset", "cls"):
        assert results[0][f"synth_{variant}"] > four_shots[f"synth_{variant}"]


def test_a_run_is_kept(results, folder):
    assert run(Setting(seed=SEEDS[0], num_shots=16), folder) == results[0]
    assert set(ROWS) < set(results[0])
    assert (folder / "samples-shots16-seed0.png").stat().st_size > 10_000
