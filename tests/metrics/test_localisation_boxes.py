"""Boxes of score maps: golden values, and a reference that traces contours one threshold at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tenfold.metrics.localisation.boxes import (
    box_fits,
    box_iou_inclusive,
    max_box_accuracy,
    resize_box,
    score_map_boxes,
)
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map, score_thresholds

GOLDEN = np.load(Path(__file__).parents[1] / "golden/calm.npz")
THRESHOLDS = GOLDEN["box/thresholds"]
KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
EIGHT = np.ones((3, 3))
CLOCKWISE = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)]


def rows(boxes):
    return sorted(map(tuple, np.asarray(boxes).tolist()))


def outer_contour(component):
    """Trace the outer border pixels (row, column), in order, with the outside on the left."""
    padded = np.pad(component, 1)
    start = tuple(int(i) for i in np.argwhere(padded)[0])
    place, came_from = start, 0
    contour, first_move = [start], None
    while True:
        for turn in range(8):
            direction = (came_from + turn) % 8
            following = place[0] + CLOCKWISE[direction][0], place[1] + CLOCKWISE[direction][1]
            if padded[following]:
                break
        else:
            return contour  # a single pixel
        if (place, direction) == first_move:
            return contour[:-1]
        first_move = first_move or (place, direction)
        place, came_from = following, (direction + 5 if direction % 2 == 0 else direction + 6) % 8
        contour.append(place)


def enclosed_area(contour):
    """Shoelace formula."""
    y, x = np.array(contour, dtype=float).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def boxes_by_tracing(s, threshold, multi):
    levels = (s * 255).astype(np.uint8)
    height, width = levels.shape
    foreground = levels > int(threshold * levels.max())
    if not foreground.any():
        return np.zeros((1, 4), dtype=int)
    labels, count = ndimage.label(foreground, EIGHT)
    components = [labels == label for label in range(1, count + 1)]
    if multi:
        outside, num_holes = ndimage.label(np.pad(~foreground, 1, constant_values=True))
        holes = [outside == label for label in range(1, num_holes + 1) if label != outside[0, 0]]
        # The border of a hole: the foreground that touches it at a side.
        components += [(ndimage.binary_dilation(hole) & ~hole)[1:-1, 1:-1] for hole in holes]
    else:
        # Ties go to the last to start in row-major order; labels are in that order.
        areas = [enclosed_area(outer_contour(component)) for component in components]
        components = [components[max(range(count), key=lambda i: (areas[i], i))]]
    boxes = []
    for component in components:
        y, x = component.nonzero()
        boxes.append([x.min(), y.min(), min(x.max() + 1, width - 1), min(y.max() + 1, height - 1)])
    return np.array(boxes)


def make_map(seed, kind):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 13, 2)
    if kind == "smooth":
        coarse = torch.from_numpy(rng.random((rng.integers(2, 5), rng.integers(2, 5))))
        return normalize_score_map(resize_score_map(coarse, (int(height), int(width)))).numpy()
    if kind == "noise":
        return rng.random((height, width))
    return rng.integers(0, kind, (height, width)) / (kind - 1)


@KINDS
def test_the_largest_contours_match_golden(kind):
    for s, expected in zip(GOLDEN["box/maps"], GOLDEN["box/single"], strict=True):
        boxes = score_map_boxes(kind(s), kind(THRESHOLDS))
        assert [np.asarray(box).tolist() for box in boxes] == [[box] for box in expected.tolist()]


def test_all_contours_match_golden():
    ends = GOLDEN["box/n_multi"].cumsum().reshape(GOLDEN["box/n_multi"].shape)
    for i, s in enumerate(GOLDEN["box/maps"]):
        for t, boxes in enumerate(score_map_boxes(s, THRESHOLDS, multi=True)):
            start = ends[i, t] - GOLDEN["box/n_multi"][i, t]
            assert rows(boxes) == rows(GOLDEN["box/multi"][start : ends[i, t]])


def test_iou_matches_golden():
    for boxes, truth, expected in zip(GOLDEN["box/single"], GOLDEN["box/gt"], GOLDEN["box/iou_single"], strict=True):
        np.testing.assert_allclose(box_iou_inclusive(boxes, truth), expected, rtol=1e-9)


@KINDS
def test_accuracies_match_golden(kind):
    maps, truth = kind(GOLDEN["box/maps"]), list(kind(GOLDEN["box/gt"]))
    single = max_box_accuracy(maps, truth, THRESHOLDS)
    assert single == {0.5: pytest.approx(float(GOLDEN["box/maxboxacc"])), "mean": single[0.5]}
    several = max_box_accuracy(maps, truth, THRESHOLDS, (0.3, 0.5, 0.7), multi=True)
    assert list(several.values())[:3] == pytest.approx(GOLDEN["box/maxboxacc_v2_per_iou"].tolist())
    assert several["mean"] == pytest.approx(float(GOLDEN["box/maxboxacc_v2"]))


@KINDS
def test_resized_boxes_match_golden(kind):
    for box, expected in zip(kind(GOLDEN["box/resize_in"]), GOLDEN["box/resize_out"], strict=True):
        assert resize_box(box, (500, 375), (224, 224)).tolist() == expected.tolist()
    assert resize_box([10, 20, 300, 150], (500, 375), (224, 224)).tolist() == [4, 11, 134, 89]


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from([2, 3, 6, "noise", "smooth"]), multi=st.booleans())
def test_boxes_are_those_of_contours_traced_one_by_one(seed, kind, multi):
    s = make_map(seed, kind)
    thresholds = [0.0, 0.2, 0.45, 0.5, 0.77, 0.999, 1.0]
    for threshold, boxes in zip(thresholds, score_map_boxes(s, thresholds, multi), strict=True):
        assert rows(boxes) == rows(boxes_by_tracing(s, threshold, multi))


def test_a_ring_encloses_its_hole():
    s = np.zeros((12, 20))
    s[1:8, 1:8] = 1.0
    s[2:7, 2:7] = 0.0  # 24 pixels around 36 units of area
    s[2:7, 12:18] = 1.0  # 30 pixels, 20 units
    s[4, 4] = 1.0  # inside the ring: no contour of its own is larger
    assert score_map_boxes(s, [0.5])[0].tolist() == [[1, 1, 8, 8]]
    # With all contours: ring, its hole, the point inside, the block.
    expected = [(1, 1, 8, 8), (1, 1, 8, 8), (4, 4, 5, 5), (12, 2, 18, 7)]
    assert rows(score_map_boxes(s, [0.5], multi=True)[0]) == expected


def test_lines_have_no_area():
    s = np.zeros((6, 9))
    s[5, :] = 1.0
    s[0:2, 0:2] = 1.0
    assert score_map_boxes(s, [0.0])[0].tolist() == [[0, 0, 2, 2]]


def test_an_empty_map_has_an_empty_box():
    for multi in (False, True):
        boxes = score_map_boxes(torch.zeros(4, 5), score_thresholds(0.1), multi)
        assert len(boxes) == 10
        assert all(box.tolist() == [[0, 0, 0, 0]] for box in boxes)


def test_boxes_do_not_share_memory():
    first, second = score_map_boxes(GOLDEN["box/maps"][0], [0.5, 0.5])
    first += 1
    assert not np.array_equal(first, second)


def test_iou_by_hand():
    boxes = box_iou_inclusive(np.array([[0, 0, 1, 1], [5, 5, 5, 5]]), np.array([[1, 1, 2, 2], [0, 0, 1, 1]]))
    np.testing.assert_allclose(boxes, [[1 / 7, 1], [0, 0]])


@pytest.mark.parametrize("multi", [False, True])
def test_accuracy_is_that_of_a_loop(multi):
    rng = np.random.default_rng(0)
    maps = np.stack([make_map(seed, "smooth") for seed in (3,)] * 2 + [make_map(3, "smooth")[::-1]])
    corners = rng.integers(0, 5, (3, 2, 2))
    truth = [np.concatenate([corner, corner + rng.integers(1, 6, (2, 2))], axis=1) for corner in corners]
    thresholds = score_thresholds(0.02).numpy()
    correct = {iou: np.zeros(len(thresholds)) for iou in (0.2, 0.4)}
    for s, boxes in zip(maps, truth, strict=True):
        for t, threshold in enumerate(thresholds):
            best = float(box_iou_inclusive(boxes_by_tracing(s, threshold, multi), boxes).max())
            for iou, counts in correct.items():
                counts[t] += best >= iou
    actual = max_box_accuracy(maps, truth, thresholds, (0.2, 0.4), multi)
    expected = {iou: 100 * counts.max() / 3 for iou, counts in correct.items()}
    assert actual == pytest.approx({**expected, "mean": sum(expected.values()) / 2})
    assert 0 < actual["mean"] < 100
    halves = [box_fits(maps[:1], truth[:1], thresholds, multi), box_fits(maps[1:], truth[1:], thresholds, multi)]
    np.testing.assert_array_equal(np.concatenate(halves), box_fits(maps, truth, thresholds, multi))


MAP, BOX = np.eye(4), np.array([[0, 0, 1, 1]])
REFUSALS = [
    (lambda: score_map_boxes(MAP[None], [0.5]), r"s must be one map \(H, W\), got \(1, 4, 4\)"),
    (lambda: score_map_boxes(MAP * 2, [0.5]), r"s must lie in \[0, 1\] without NaN, got 0.0 to 2.0"),
    (lambda: score_map_boxes(MAP * np.nan, [0.5]), "without NaN"),
    (lambda: score_map_boxes(MAP, []), "thresholds must be one or more"),
    (lambda: score_map_boxes(MAP, [1.5]), r"thresholds must be one or more values in \[0, 1\]"),
    (lambda: box_iou_inclusive(BOX, BOX[0]), r"b must be boxes \(n, 4\)"),
    (lambda: box_iou_inclusive(BOX - 1, BOX), "a must have 0 <= x0 <= x1"),
    (lambda: box_iou_inclusive(BOX, BOX[:, [2, 1, 0, 3]]), "b must have 0 <= x0 <= x1"),
    (lambda: box_iou_inclusive(BOX, BOX[:, [0, 3, 2, 1]]), "0 <= y0 <= y1"),
    (lambda: resize_box([3, 0, 1, 1], (9, 9), (9, 9)), "box must have 0 <= x0 <= x1"),
    (lambda: resize_box([0, 0, 1], (9, 9), (9, 9)), r"box must be boxes \(n, 4\)"),
    (lambda: resize_box([0, 0, 1, 1], (0, 9), (9, 9)), "at least 1"),
    (lambda: max_box_accuracy(MAP[None], [BOX - 1], [0.5]), r"gt_boxes\[0\] must have 0 <= x0"),
    (lambda: max_box_accuracy(MAP[None], [BOX[:0]], [0.5]), r"gt_boxes\[0\] must hold at least one box"),
    (lambda: max_box_accuracy(MAP[None], [BOX, BOX], [0.5]), r"got \(1, 4, 4\) and 2"),
    (lambda: max_box_accuracy(MAP, [BOX] * 4, [0.5]), r"maps must be \(N, H, W\)"),
    (lambda: max_box_accuracy(MAP[None], [BOX], [0.5], ()), "iou must hold at least one level"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
