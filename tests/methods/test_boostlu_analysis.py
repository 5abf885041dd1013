"""Metrics of BoostLU, of maps and of treated labels: published values, values by hand, laws, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tenfold.methods.boostlu.evaluation import false_negative_detection
from tenfold.metrics.map_agreement import cam_extreme_means, cam_rank_correlation, centre_gaussian

GOLDEN = np.load(Path(__file__).parents[1] / "golden/boostlu.npz")
UNHURRIED = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def make_maps(seed, count=4, size=(3, 5), levels=None):
    """Return random maps; with levels, of few distinct values, so that many locations tie."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, *size, generator=generator, dtype=torch.float64)
    return maps if levels is None else (maps * levels).round()


# -- rank correlation


def test_rank_correlation_matches_golden():
    correlation = cam_rank_correlation(golden("cam_a"), golden("cam_b"))
    assert correlation.dtype == torch.float64
    torch.testing.assert_close(correlation, golden("cam_spearman"), rtol=1e-7, atol=1e-7)


def test_correlation_with_the_centre_matches_golden():
    gaussian = centre_gaussian(*GOLDEN["cam_gaussian"].shape)
    torch.testing.assert_close(gaussian, golden("cam_gaussian"), rtol=1e-9, atol=1e-9)
    correlation = cam_rank_correlation(golden("cam_a"), gaussian)
    torch.testing.assert_close(correlation, golden("cam_gaussian_spearman"), rtol=1e-7, atol=1e-7)


@UNHURRIED
@given(SEEDS, st.sampled_from([None, 1, 2]), st.sampled_from([(3, 5), (1, 2), (6, 6)]))
def test_ties_share_the_mean_of_their_ranks(seed, levels, size):
    a, b = make_maps(seed, size=size, levels=levels), make_maps(seed + 1, size=size, levels=levels)
    for other in (b, b[0]):
        found = cam_rank_correlation(a, other)
        for row, each in enumerate(found):
            x, y = a[row].flatten().numpy(), (other[row] if other.ndim == 3 else other).flatten().numpy()
            if len(set(x)) == 1 or len(set(y)) == 1:
                assert each.isnan()
            else:
                assert float(each) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_rank_correlation_by_hand():
    a = torch.tensor([[[1.0, 2.0], [2.0, 3.0]]])  # ranks 1, 2.5, 2.5, 4
    b = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float(cam_rank_correlation(a, b)) == pytest.approx(4.5 / (4.5 * 5) ** 0.5, abs=1e-12)


def test_ranks_ignore_a_rising_scale_and_turn_with_a_falling_one():
    a, b = make_maps(0), make_maps(1)
    expected = cam_rank_correlation(a, b)
    assert torch.equal(cam_rank_correlation(a.exp(), b), expected)
    assert torch.equal(cam_rank_correlation(-a, b), -expected)
    torch.testing.assert_close(cam_rank_correlation(a, a), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_constant_map_has_no_correlation(size):
    varied, constant = make_maps(0, size=size), torch.zeros(4, *size)
    for a, b in ((varied, constant), (constant, varied), (constant, constant), (varied, constant[0])):
        assert cam_rank_correlation(a, b).isnan().all()


def test_only_the_constant_map_is_left_out():
    a = make_maps(0)
    a[2] = 7
    assert cam_rank_correlation(a, make_maps(1)).isnan().tolist() == [False, False, True, False]


def test_no_maps_have_no_correlations():
    assert cam_rank_correlation(torch.zeros(0, 3, 3), torch.zeros(3, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3, 3), (2, 3, 4)), ((2, 3, 3), (3, 3, 3)), ((2, 3, 3), (3,)), ((3, 3), (3, 3)), ((2, 0, 3), (2, 0, 3))],
)
def test_maps_of_other_shapes_are_refused(a, b):
    with pytest.raises(ValueError, match="maps must be"):
        cam_rank_correlation(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_that_are_not_finite_are_refused(value):
    good, bad = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)
    bad[0, 1, 1] = value
    for a, b, name in ((bad, good, "a"), (good, bad, "b"), (good, bad[0], "b")):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            cam_rank_correlation(a, b)


@pytest.mark.parametrize("size", [(6, 6), (5, 3), (1, 4), (1, 1)])
def test_the_gaussian_is_symmetric_about_its_centre(size):
    gaussian = centre_gaussian(*size)
    assert gaussian.shape == size
    assert torch.equal(gaussian, gaussian.flip(0))
    assert torch.equal(gaussian, gaussian.flip(1))
    middle = gaussian[(size[0] - 1) // 2, (size[1] - 1) // 2]
    assert middle == gaussian.max()
    if size[0] == size[1]:
        assert torch.equal(gaussian, gaussian.T)


def test_the_gaussian_by_hand():
    # Places -1.5, -0.5, 0.5, 1.5 from the centre, standard deviation 1.
    expected = [round(float(np.exp(-(x**2) / 2)), 12) for x in (-1.5, -0.5, 0.5, 1.5)]
    assert centre_gaussian(1, 4)[0].tolist() == expected
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        centre_gaussian(0, 3)


# -- extreme means


def test_extreme_means_match_golden():
    top, bottom = cam_extreme_means(golden("cam_a"), float(GOLDEN["cam_fraction"]))
    torch.testing.assert_close(top, golden("cam_top5"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bottom, golden("cam_bottom5"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("fraction", "top", "bottom"),
    [(0.05, 19, 0), (0.1, 18.5, 0.5), (0.11, 18, 1), (0.001, 19, 0), (0.15, 18, 1), (1, 9.5, 9.5)],
)
def test_extreme_means_by_hand(fraction, top, bottom):
    """Scores 0 to 19 at 20 locations; a product that is an integer up to rounding is not rounded up."""
    cam = torch.arange(20.0).flip(0).view(1, 4, 5)
    found = cam_extreme_means(cam, fraction)
    assert [each.dtype for each in found] == [torch.float64, torch.float64]
    assert (float(found[0]), float(found[1])) == pytest.approx((top, bottom))


def test_one_place_is_highest_and_lowest():
    top, bottom = cam_extreme_means(torch.tensor([[[3.0]], [[-1.0]]]))
    assert torch.equal(top, bottom)
    assert top.tolist() == [3, -1]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
        cam_extreme_means(torch.zeros(2, 3, 3), fraction)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 0), (1, 2, 3, 3)])
def test_what_is_no_map_has_no_extremes(shape):
    with pytest.raises(ValueError, match="cam must be"):
        cam_extreme_means(torch.zeros(shape))


# -- detection


def test_detection_matches_golden():
    found = false_negative_detection(golden("det_mask"), golden("det_labels"), golden("det_true"))
    counts = [found[name] for name in ("rejected_fn", "rejected_tn", "total_fn")]
    assert counts == GOLDEN["det_counts"].tolist()
    assert found["precision"] == pytest.approx(float(GOLDEN["det_precision"]), rel=1e-9, abs=1e-9)
    assert found["recall"] == pytest.approx(float(GOLDEN["det_recall"]), rel=1e-9, abs=1e-9)


TRUE = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1]])
LABELS = torch.tensor([[1, 0, 0, -1], [0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_detection_by_hand(dtype):
    mask = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    found = false_negative_detection(mask, LABELS.to(dtype), TRUE.to(dtype))
    expected = {"rejected_fn": 2, "rejected_tn": 1, "total_fn": 3, "precision": 2 / 3, "recall": 2 / 3}
    assert found == expected
    assert all(isinstance(found[name], int) for name in ("rejected_fn", "rejected_tn", "total_fn"))


def test_nothing_treated_or_nothing_to_find():
    none = torch.zeros(2, 4, dtype=torch.bool)
    found = false_negative_detection(none, LABELS, TRUE)
    assert (found["precision"], found["recall"], found["total_fn"]) == (0, 0, 3)
    known = 2 * TRUE - 1
    found = false_negative_detection(none, known, TRUE)
    assert found == {"rejected_fn": 0, "rejected_tn": 0, "total_fn": 0, "precision": 0, "recall": 0}


def changed(tensor, value):
    tensor = tensor.clone()
    tensor[0, 0] = value
    return tensor


@pytest.mark.parametrize(
    ("mask", "labels", "true", "message"),
    [
        (LABELS == 0, LABELS[:1], TRUE, r"must all be \(B, K\)"),
        ((LABELS == 0)[0], LABELS[0], TRUE[0], r"must all be \(B, K\)"),
        (LABELS == 0, LABELS, TRUE[:, :3], r"must all be \(B, K\)"),
        ((LABELS == 0).int(), LABELS, TRUE, "mask must be boolean"),
        (LABELS == 0, LABELS, changed(TRUE, 2), "true must be 0 or 1"),
        (LABELS == 0, LABELS, changed(TRUE, -1), "true must be 0 or 1"),
        (LABELS == 0, changed(LABELS, 2), TRUE, "labels must be -1"),
        (LABELS == 0, LABELS.float().where(LABELS != 1, float("nan")), TRUE, "labels must be -1"),
        (LABELS == 0, LABELS, changed(TRUE, 0), "labels must agree with true"),
        (LABELS == 0, changed(LABELS, -1), TRUE, "labels must agree with true"),
        (LABELS != -1, LABELS, TRUE, "mask must select unobserved entries"),
        (LABELS != 1, LABELS, TRUE, "mask must select unobserved entries"),
    ],
)
def test_what_can_not_be_counted_is_refused(mask, labels, true, message):
    with pytest.raises(ValueError, match=message):
        false_negative_detection(mask, labels, true)
