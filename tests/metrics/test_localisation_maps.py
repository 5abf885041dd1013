"""Post-processing, erasing and pixel average precision of maps: golden values, laws, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.metrics.localisation.erasure import (
    random_erase_mask,
    random_erase_masks,
    remove_and_classify_ratio,
    topk_erase_mask,
    topk_erase_masks,
)
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map, score_thresholds
from tenfold.metrics.localisation.pixel_ap import PixelAveragePrecision

GOLDEN = np.load(Path(__file__).parents[1] / "golden/calm.npz")
KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
SEEDS = st.integers(0, 2**32 - 1)


def close(actual, name, tolerance=1e-9):
    """Relative to the largest value; both sides are float64."""
    expected = GOLDEN[name]
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))


@KINDS
def test_resizing_matches_golden(kind):
    # torch's own interpolation on both sides; another build may round otherwise.
    close(resize_score_map(kind(GOLDEN["norm/map"]), 32), "norm/resized", 1e-6)


def test_resizing_takes_maps_one_by_one_and_both_sizes():
    maps = torch.randn(3, 4, 5)
    together = resize_score_map(maps, (7, 9))
    assert together.shape == (3, 7, 9)
    for one, resized in zip(maps, together, strict=True):
        torch.testing.assert_close(resize_score_map(one, (7, 9)), resized)
    torch.testing.assert_close(resize_score_map(maps, (4, 5)), maps)


@KINDS
@pytest.mark.parametrize("name", ["max", "minmax", "clipping"])
def test_normalisation_matches_golden(name, kind):
    close(normalize_score_map(kind(GOLDEN["norm/map"]), name), f"norm/{name}")


@pytest.mark.parametrize("name", ["max", "minmax", "clipping"])
def test_constant_and_non_finite_maps_become_zero(name):
    assert not GOLDEN["norm/constant"].any()
    assert not GOLDEN["norm/nan"].any()
    broken = GOLDEN["norm/map"].copy()
    broken[0, 0] = np.nan
    endless = GOLDEN["norm/map"].copy()
    endless[1, 1] = np.inf
    for useless in (np.full((3, 4), 0.7), broken, endless):
        assert not normalize_score_map(useless, name).any()
    half = normalize_score_map(np.stack([broken, GOLDEN["norm/map"]]), name)
    close(half[1], f"norm/{name}")
    assert not half[0].any()


def test_a_map_without_positive_values_has_no_relative_maximum():
    maps = normalize_score_map(torch.tensor([[-1.0, 0.0], [-2.0, 0.0]]), "max")
    assert torch.isfinite(maps).all()
    assert not maps.any()


@given(seed=SEEDS, kind=st.sampled_from(["max", "minmax", "clipping"]))
def test_normalised_maps_lie_in_the_unit_interval_and_keep_their_order(seed, kind):
    raw = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed))
    maps = normalize_score_map(raw, kind)
    assert maps.min() >= 0
    assert maps.max() <= 1
    order = raw.flatten(1).argsort(1)
    if kind != "max" or (raw.flatten(1).amax(1) > 0).all():
        assert (maps.flatten(1).gather(1, order).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("kind", ["even", "log"])
def test_thresholds_match_golden(kind):
    thresholds = score_thresholds(0.01, kind)
    assert thresholds.dtype == torch.float64
    np.testing.assert_allclose(thresholds, GOLDEN[f"thr/{kind}"], rtol=1e-12)


@pytest.mark.parametrize("percent", [10, 30, 50, 70, 90])
def test_erasing_matches_golden(percent):
    maps = torch.from_numpy(GOLDEN["erase/maps"])
    mask = topk_erase_mask(maps, percent / 100)
    assert mask.dtype == maps.dtype
    assert np.array_equal(mask, GOLDEN[f"erase/mask_{percent}"])


def test_ratio_matches_golden():
    ratio = remove_and_classify_ratio(GOLDEN["erase/correct_top"], torch.from_numpy(GOLDEN["erase/correct_random"]))
    assert ratio == pytest.approx(float(GOLDEN["erase/ratio"]), rel=1e-9)


@given(seed=SEEDS, fraction=st.floats(0, 1), size=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_as_many_pixels_are_erased_as_asked_and_no_kept_one_is_higher(seed, fraction, size):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(5, (3, 1, *size), generator=generator).float()
    num_pixels = size[0] * size[1]
    top, random = topk_erase_mask(maps, fraction), random_erase_mask(maps.shape, fraction, generator)
    for mask in (top, random):
        assert mask.shape == maps.shape
        erased = (mask == 0).flatten(1).sum(1)
        assert (erased == erased[0]).all()
        assert fraction * num_pixels - 1 < erased[0] <= fraction * num_pixels + 1e-6
        assert ((mask == 0) | (mask == 1)).all()
    kept = maps.masked_fill(top == 0, -1).flatten(1).amax(1)
    assert (maps.masked_fill(top == 1, 9).flatten(1).amin(1) >= kept).all()


def test_the_number_of_erased_pixels_survives_rounding():
    # 0.29 x 100 = 28.999999999999996
    assert int((topk_erase_mask(torch.rand(1, 1, 10, 10), 0.29) == 0).sum()) == 29


def test_ties_erase_the_first_pixels():
    assert topk_erase_mask(torch.zeros(1, 1, 2, 3), 0.5).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_several_fractions_share_one_order():
    maps = torch.randn(2, 1, 5, 4)
    fractions = (0.1, 0.5, 0.9)
    together = topk_erase_masks(maps, fractions)
    assert together.shape == (3, 2, 1, 5, 4)
    for mask, fraction in zip(together, fractions, strict=True):
        assert torch.equal(mask, topk_erase_mask(maps, fraction))
    random = random_erase_masks(maps.shape, fractions, torch.Generator().manual_seed(0))
    again = random_erase_masks(maps.shape, fractions, torch.Generator().manual_seed(0))
    assert torch.equal(random, again)
    assert (random.diff(dim=0) <= 0).all()
    assert not torch.equal(random[1, 0], random[1, 1])


@KINDS
@pytest.mark.parametrize(("spacing", "interval"), [("even", 0.001), ("even", 0.01), ("log", 0.001)])
def test_pixel_ap_matches_golden(spacing, interval, kind):
    together = PixelAveragePrecision(score_thresholds(interval, spacing))
    together.update(kind(GOLDEN["pxap/maps"]), kind(GOLDEN["pxap/gt"]))
    assert together.compute() == pytest.approx(float(GOLDEN[f"pxap/{spacing}_{interval}"]), rel=1e-9)


@pytest.mark.parametrize("spacing", ["even", "log"])
def test_pixel_ap_after_every_map_matches_golden(spacing):
    metric = PixelAveragePrecision(score_thresholds(0.001, spacing))
    values = []
    for score, truth in zip(GOLDEN["pxap/maps"], GOLDEN["pxap/gt"], strict=True):
        metric.update(score, truth)
        values.append(metric.compute())
    np.testing.assert_allclose(values, GOLDEN[f"pxap/{spacing}_0.001_cumulative"], rtol=1e-9)


@given(seed=SEEDS, dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_scores_are_counted_as_numpy_counts_them(seed, dtype):
    # At, just below and just above every threshold, some of which nearly coincide, and elsewhere.
    rng = np.random.default_rng(seed)
    thresholds = np.unique(
        np.concatenate([rng.random(8), 10 ** (-7 * rng.random(8)), rng.random() + np.array([-1e-9, 0, 1e-9])])
    )
    thresholds = thresholds[(thresholds >= 0) & (thresholds <= 1)]
    near = [thresholds, np.nextafter(thresholds, 0), np.nextafter(thresholds, 1), rng.random(20), [0.0, -0.0, 1.0]]
    scores = torch.from_numpy(np.concatenate(near)).to(dtype).clamp(0, 1)[None]
    metric = PixelAveragePrecision(thresholds)
    metric.update(scores, torch.ones_like(scores))
    expected, _ = np.histogram(scores.double().numpy(), [*thresholds, 1, 2, 3])
    assert metric.counts[1].tolist() == expected.tolist()


def test_pixel_ap_by_hand():
    # From the top: 0.9 foreground, 0.6 background, 0.3 foreground: precision 1 and 2/3, half of the recall each.
    metric = PixelAveragePrecision([0.0, 0.5, 0.8])
    metric.update(np.array([[0.9, 0.6, 0.3, 0.7]]), np.array([[1, 0, 1, 255]]))
    assert metric.compute() == pytest.approx(100 * (0.5 * 1 + 0.5 * 2 / 3))
    metric.reset()
    with pytest.raises(RuntimeError, match="at least one foreground pixel"):
        metric.compute()


def by_threshold(scores, truth, thresholds):
    """Reference: one pass over all pixels per threshold, from the highest down."""
    total = (scores[truth == 1] >= thresholds[0]).sum()
    area, recall_before = 0.0, 0.0
    for threshold in [2.0, 1.0, *thresholds[::-1]]:
        found = scores >= threshold
        hits = (found & (truth == 1)).sum()
        if (found & (truth != 255)).any():
            recall = hits / total
            area += hits / (found & (truth != 255)).sum() * (recall - recall_before)
            recall_before = recall
    return 100 * area


@given(seed=SEEDS, spacing=st.sampled_from(["even", "log"]), levels=st.sampled_from([2, 7, 1000]))
def test_pixel_ap_is_that_of_a_loop_over_thresholds(seed, spacing, levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (2, 4, 5)) / (levels - 1)
    truth = rng.choice([0, 1, 255], (2, 4, 5))
    truth[0, 0, 0], scores[0, 0, 0] = 1, 1.0
    thresholds = score_thresholds(0.05, spacing)
    metric = PixelAveragePrecision(thresholds)
    metric.update(scores, truth)
    assert metric.compute() == pytest.approx(by_threshold(scores, truth, thresholds.numpy()))


@given(seed=SEEDS)
def test_merging_is_counting_together(seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.random((3, 4, 5), dtype=np.float32), rng.choice([0, 1, 255], (3, 4, 5))
    truth[0, 0, 0] = 1
    together, first, second = (PixelAveragePrecision(score_thresholds(0.1)) for _ in range(3))
    together.update(scores, truth)
    first.update(scores[:1], truth[:1])
    for score, gt in zip(scores[1:], truth[1:], strict=True):
        second.update(score, gt)
    first.merge(second)
    assert torch.equal(first.counts, together.counts)
    assert first.compute() == together.compute()


def metric():
    return PixelAveragePrecision(score_thresholds(0.1))


HALVES = np.full((2, 2), 0.5)
REFUSALS = [
    (lambda: resize_score_map(np.zeros(4), 3), r"must be \(H, W\) or \(B, H, W\)"),
    (lambda: resize_score_map(np.zeros((4, 4)), 0), "size must be at least 1"),
    (lambda: normalize_score_map(np.zeros((4, 4)), "l2"), "kind must be one of max, minmax, clipping, got 'l2'"),
    (lambda: normalize_score_map(np.zeros((1, 1, 4, 4))), r"must be \(H, W\) or \(B, H, W\)"),
    (lambda: normalize_score_map(np.zeros((0, 4))), "and not empty"),
    (lambda: score_thresholds(0.1, "cubic"), "kind must be one of even, log, got 'cubic'"),
    (lambda: score_thresholds(0.0), r"interval must lie in \(0, 1\), got 0.0"),
    (lambda: score_thresholds(1.0), r"interval must lie in \(0, 1\), got 1.0"),
    (lambda: topk_erase_mask(torch.zeros(2, 4, 4), 0.5), r"maps must be \(B, 1, H, W\)"),
    (lambda: topk_erase_mask(torch.zeros(2, 1, 4, 4), 1.5), r"fraction must lie in \[0, 1\], got 1.5"),
    (lambda: topk_erase_mask(torch.full((1, 1, 2, 2), torch.nan), 0.5), "must not contain NaN"),
    (lambda: random_erase_mask((2, 3, 4, 4), 0.5, torch.Generator()), r"maps must be \(B, 1, H, W\)"),
    (lambda: random_erase_mask((2, 1, 4, 4), -0.5, torch.Generator()), r"fraction must lie in \[0, 1\]"),
    (lambda: remove_and_classify_ratio(np.ones(3), np.zeros(3)), "at least one correct image, got none"),
    (lambda: remove_and_classify_ratio(np.ones(3), np.ones(2)), "must have the same shape"),
    (lambda: PixelAveragePrecision([]), "thresholds must ascend"),
    (lambda: PixelAveragePrecision([0.5, 0.1]), "thresholds must ascend"),
    (lambda: PixelAveragePrecision([0.5, 1.1]), r"within \[0, 1\]"),
    (lambda: metric().update(HALVES * np.nan, HALVES > 0), r"\[0, 1\] without NaN"),
    (lambda: metric().update(HALVES * 3, HALVES > 0), r"must lie in \[0, 1\] without NaN, got 1.5 to 1.5"),
    (lambda: metric().update(-HALVES, HALVES > 0), r"must lie in \[0, 1\]"),
    (lambda: metric().update(HALVES, np.ones((2, 3))), r"got \(2, 2\) and \(2, 3\)"),
    (lambda: metric().update(HALVES[0], HALVES[0] > 0), r"must both be \(H, W\) or \(B, H, W\)"),
    (lambda: metric().update(HALVES, np.full((2, 2), 7)), r"gt must be 0, 1 or 255, got \[7\]"),
    (lambda: metric().merge(PixelAveragePrecision([0.5])), "different thresholds"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_image_is_not_counted():
    counting = metric()
    with pytest.raises(ValueError, match="gt must be"):
        counting.update(HALVES, np.array([[0, 1], [1, 3]]))
    assert not counting.counts.any()
