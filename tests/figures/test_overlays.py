"""Overlays: blended colours by hand, panels of the figure, refusals."""

import numpy as np
import pytest
import torch

from tenfold.figures.overlays import figure_overlays, overlay

IMAGE = np.full((4, 6, 3), 100, dtype=np.uint8)
SCORE = np.linspace(0, 1, 24).reshape(4, 6)


def test_colours_are_mixed_by_alpha():
    assert np.array_equal(overlay(IMAGE, SCORE, alpha=0), IMAGE)
    gray = overlay(IMAGE, SCORE, alpha=1, colormap="gray")
    np.testing.assert_allclose(gray[..., 0], 255 * SCORE, atol=1)
    half = overlay(IMAGE, SCORE, alpha=0.5, colormap="gray")
    np.testing.assert_allclose(half, (100 + gray.astype(float)) / 2, atol=1)
    assert half.dtype == np.uint8
    low, high = overlay(IMAGE, SCORE)[0, 0], overlay(IMAGE, SCORE)[3, 5]
    assert low[2] > low[0]  # blue where the map is low
    assert high[0] > high[2]  # red where it is high


def test_tensors_are_accepted():
    assert np.array_equal(overlay(torch.from_numpy(IMAGE), torch.from_numpy(SCORE)), overlay(IMAGE, SCORE))


def test_figure_has_a_row_per_image_and_a_column_per_method():
    truth = np.zeros((2, 4, 6), dtype=np.uint8)
    truth[0, 1:3, 1:3] = 1
    maps = [torch.from_numpy(np.stack([SCORE, 1 - SCORE])), [SCORE, SCORE], np.zeros((2, 4, 6))]
    figure = figure_overlays([IMAGE, IMAGE], maps, ["CAM", "CALM", "nothing"], ["a", "b"], truth)
    assert [panel.get_title() for panel in figure.axes[:4]] == ["image", "CAM", "CALM", "nothing"]
    assert len(figure.axes) == 8
    assert [figure.axes[0].get_ylabel(), figure.axes[4].get_ylabel()] == ["a", "b"]
    assert np.array_equal(figure.axes[1].images[0].get_array(), overlay(IMAGE, SCORE))
    assert np.array_equal(figure.axes[5].images[0].get_array(), overlay(IMAGE, 1 - SCORE))
    assert [len(panel.collections) for panel in figure.axes] == [1] * 4 + [0] * 4  # outlines


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlay(IMAGE / 255, SCORE), r"image must be uint8 \(H, W, 3\), got float64"),
        (lambda: overlay(IMAGE, SCORE.T), r"score must be \(4, 6\) like the image, got \(6, 4\)"),
        (lambda: overlay(IMAGE, SCORE * 2), r"score must lie in \[0, 1\] without NaN"),
        (lambda: overlay(IMAGE, SCORE * np.nan), "without NaN"),
        (lambda: overlay(IMAGE, SCORE, alpha=2), r"alpha must lie in \[0, 1\]"),
        (lambda: overlay(IMAGE, SCORE, colormap="rainbows"), "a colour map of matplotlib, got 'rainbows'"),
        (lambda: figure_overlays([IMAGE], [[SCORE]], ["a", "b"]), "for each of 2 titles"),
        (lambda: figure_overlays([IMAGE], [[SCORE, SCORE]], ["a"]), "a map of each of 1 images"),
        (lambda: figure_overlays([], [], []), "at least one"),
        (lambda: figure_overlays([IMAGE], [[SCORE]], ["a"], ["x", "y"]), "row_titles must have one entry"),
        (lambda: figure_overlays([IMAGE], [[SCORE]], ["a"], truth=[]), "truth must have one entry"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
