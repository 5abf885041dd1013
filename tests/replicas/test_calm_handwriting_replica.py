"""CALM against CAM on handwriting, over three seeds: about twenty minutes on one core."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.replicas.calm_handwriting import GRADIENTS, MODES, Setting, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SEEDS = (0, 1, 2)
Result = Mapping[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("replica")
    try:
        return {mode: [train(Setting(mode=mode, seed=seed), folder) for seed in SEEDS] for mode in MODES}
    finally:
        torch.set_num_threads(threads)


def column(records: Sequence[Result], metric: str) -> np.ndarray:
    return np.array([record["metrics"][f"test/{metric}"] for record in records])


@pytest.mark.parametrize("mode", ["em", "ml"])
def test_maps_are_on_the_digit(results, mode):
    for metric in ("pxap_minmax_even", "mass_in_cue", "max_box_acc_v2"):
        assert column(results[mode], metric).mean() > column(results["cam"], metric).mean(), metric


def test_gradients_are_no_better_than_calm(results):
    for name in GRADIENTS:
        found = np.mean([record["gradients"][name]["test/pxap_minmax_even"] for record in results["cam"]])
        assert found < column(results["em"], "pxap_minmax_even").mean(), name
