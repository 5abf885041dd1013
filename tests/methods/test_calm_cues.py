"""Cues of CUB: published values, values by hand, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.methods.calm.cues import attribute_parts, cue_mask, differing_parts, merge_parts, nearest_parts

GOLDEN = np.load(Path(__file__).parents[1] / "golden/calm.npz")
NAMES = [str(name) for name in GOLDEN["cue/attribute_names"]]
KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])


def test_attribute_parts_match_golden():
    assert np.array_equal(attribute_parts(NAMES).numpy(), GOLDEN["cue/attribute_part"])


def test_an_attribute_is_in_all_parts_that_its_name_holds():
    names = ["has_head_pattern::eyeline", "has_size::small", "has_shape::long-legged-like", "has_back_tail::x"]
    expected = [[1, 0, 0, 0, 0, 0, 0], [0] * 7, [0, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0]]
    assert attribute_parts(names).tolist() == expected
    assert attribute_parts([]).shape == (0, 7)


@KINDS
def test_differing_parts_match_golden(kind):
    percent = kind(GOLDEN["cue/class_attribute_percent"])
    counts = [[len(differing_parts(percent, NAMES, i, j)) for j in range(6)] for i in range(6)]
    assert counts == GOLDEN["cue/n_different_parts"].tolist()


def test_fifty_percent_is_present():
    percent = np.array([[50.0, 49.9], [49.0, 0.0]])
    assert differing_parts(percent, ["has_tail", "has_wing"], 0, 1) == {5}


@KINDS
def test_merged_points_and_mask_match_golden(kind):
    xy, ids = merge_parts(kind(GOLDEN["cue/part_ids"]), kind(GOLDEN["cue/part_xy"]), GOLDEN["cue/image_wh"])
    assert np.array_equal(xy, GOLDEN["cue/union_xy"])
    assert np.array_equal(ids, GOLDEN["cue/union_ids"])
    mask = cue_mask(xy, ids, kind(GOLDEN["cue/different_parts"]), kind(GOLDEN["cue/foreground"]))
    assert isinstance(mask, type(xy))
    assert np.array_equal(mask, GOLDEN["cue/mask"])
    assert np.asarray(mask).dtype == np.uint8


def test_parts_by_hand():
    # An image of 100 x 50, stretched to 10 x 10: x / 10, y / 5. The head is the mean of beak and throat, cut off.
    points = np.array([[10.0, 10], [99, 49], [30, 5], [50, 25], [35, 5]])
    xy, ids = merge_parts(np.array([2, 8, 9, 12, 15]), points, (100, 50), size=10)
    assert ids.tolist() == [1, 6, 6, 7]
    assert xy.tolist() == [[2, 1], [9, 9], [5, 5], [3, 1]]


def test_no_visible_part():
    xy, ids = merge_parts(np.zeros(0, dtype=np.int64), np.zeros((0, 2)), (100, 50))
    assert xy.shape == (0, 2)
    assert cue_mask(xy, ids, {1}, np.ones((4, 4), dtype=bool)) is None


def test_the_first_of_equally_near_points_wins():
    xy = np.array([[0, 0], [4, 0]])
    assert nearest_parts(xy, np.array([3, 5]), (1, 5)).tolist() == [[3, 3, 3, 5, 5]]
    assert nearest_parts(xy[::-1], np.array([5, 3]), (1, 5)).tolist() == [[3, 3, 5, 5, 5]]


def test_mask_keeps_to_the_foreground():
    xy, ids = np.array([[0, 0], [4, 0]]), np.array([3, 5])
    foreground = np.array([[0, 1, 1, 1, 1]])
    assert cue_mask(xy, ids, {3}, foreground).tolist() == [[0, 1, 1, 0, 0]]
    assert cue_mask(xy, ids, {3, 5}, foreground).tolist() == [[0, 1, 1, 1, 1]]
    assert cue_mask(xy, ids, {1, 2}, foreground) is None


IDS, POINTS = np.array([1, 2]), np.ones((2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: differing_parts(np.zeros((2, 3)), NAMES, 0, 1), r"percent must be \(C, A\) with A = 23"),
        (lambda: differing_parts(np.zeros((2, 23)), NAMES, 0, 2), r"i and j must lie in 0\.\.1, got 0 and 2"),
        (lambda: merge_parts(IDS, POINTS[:1], (9, 9)), r"part_xy \(V, 2\)"),
        (lambda: merge_parts(IDS[::-1], POINTS, (9, 9)), "must ascend within 1..15"),
        (lambda: merge_parts(IDS + 14, POINTS, (9, 9)), "must ascend within 1..15"),
        (lambda: merge_parts(IDS, POINTS, (0, 9)), "image_wh must be positive"),
        (lambda: nearest_parts(np.zeros((0, 2)), np.zeros(0), (3, 3)), "P at least 1"),
        (lambda: nearest_parts(POINTS, IDS[:1], (3, 3)), r"ids \(P,\)"),
        (lambda: cue_mask(POINTS, IDS, {1}, np.ones(4)), r"foreground must be \(H, W\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
