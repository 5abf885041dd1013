"""Attribution maps of the packaged ImageNet network on photographs."""

from pathlib import Path

import pytest
import torch

from tests.replicas.attribution_photographs import (
    NAMES,
    draw,
    explain,
    load_network,
    load_photographs,
    probability_left,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network():
    return load_network()


@pytest.fixture(scope="module")
def explained(network):
    return explain(network, load_photographs())


def test_the_answers_are_those_of_the_plain_classifier(network, explained):
    with torch.no_grad():
        torch.testing.assert_close(explained.probs, network(explained.images).softmax(1), rtol=1e-3, atol=1e-5)


def test_every_map_of_every_photograph_has_a_strongest_and_a_weakest_place(explained):
    for maps in explained.maps.values():
        assert maps.shape == explained.images.shape[:3]
        assert maps.amin((1, 2)).eq(0).all()
        assert maps.amax((1, 2)).eq(1).all()


def test_without_the_strongest_places_the_answer_fades_faster_than_by_chance(network, explained):
    left = probability_left(network, explained)
    for name in explained.maps:
        assert left[name]["0.5"] < left["random places"]["0.5"], name
    for name in ("CAM", "CALM, uniform prior", "smooth gradient", "variance gradient"):
        assert left[name]["0.3"] < left["random places"]["0.3"], name


def test_images_are_written(explained, tmp_path: Path):
    draw(explained, tmp_path)
    assert len(NAMES) == len(explained.images)
    assert {path.name for path in tmp_path.iterdir()} == {"overlays.png", "counterfactual.png"}
