"""Calibration of regression, at once and streamed: golden values, values by hand, laws, refusals."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.metrics.regression import calibration as module
from tenfold.metrics.regression.calibration import (
    calibration_bins,
    error_uncertainty_correlation,
    expected_normalized_calibration_error,
    quantile_calibration,
    uncertainty_calibration_error,
)
from tenfold.metrics.regression.recalibration import IsotonicCalibrator
from tenfold.metrics.regression.streaming import StreamingCalibration

GOLDEN = np.load(Path(__file__).parents[1] / "golden/posterior_annealing.npz")
ERROR, VARIANCE = (torch.from_numpy(GOLDEN[f"uce.{name}"]) for name in ("squared_error", "variance"))
BINS = int(GOLDEN["uce.n_bins"])
SEEDS = st.integers(0, 2**32 - 1)


def make_case(seed, num=300):
    """Draw errors whose predicted variances are right up to a random factor."""
    random = np.random.default_rng(seed)
    variance = random.gamma(2.0, 0.5, num)
    return variance * random.uniform(0.5, 2) * random.standard_normal(num) ** 2, variance


@pytest.mark.parametrize(
    ("options", "name", "tolerance"),
    [
        ({"include_min": False}, "reference", 1e-5),  # computed in float32 by the published code
        ({}, "closed", 1e-9),
        ({"strategy": "mass"}, "equal_mass", 1e-9),
    ],
)
def test_uncertainty_calibration_error_matches_golden(options, name, tolerance):
    expected = float(GOLDEN[f"uce.{name}"])
    assert uncertainty_calibration_error(ERROR, VARIANCE, n_bins=BINS, **options) == pytest.approx(
        expected, abs=tolerance
    )
    as_arrays = uncertainty_calibration_error(ERROR.numpy(), VARIANCE.numpy(), n_bins=BINS, **options)
    assert as_arrays == pytest.approx(expected, abs=tolerance)


def test_bins_of_the_reference_match_golden():
    bins = calibration_bins(ERROR, VARIANCE, n_bins=BINS, include_min=False)
    np.testing.assert_allclose(bins.error, GOLDEN["uce.reference.error_in_bin"], rtol=1e-5)
    np.testing.assert_allclose(bins.variance, GOLDEN["uce.reference.variance_in_bin"], rtol=1e-5)
    np.testing.assert_allclose(bins.proportion, GOLDEN["uce.reference.proportion"], atol=1e-5)
    assert bins._fields == ("error", "variance", "proportion")
    assert bins.proportion.sum() < 1


@pytest.mark.parametrize(("strategy", "name"), [("width", "equal_width"), ("mass", "equal_mass")])
def test_normalized_calibration_error_matches_golden(strategy, name):
    actual = expected_normalized_calibration_error(ERROR, VARIANCE, n_bins=BINS, strategy=strategy)
    assert actual == pytest.approx(float(GOLDEN[f"ence.{name}"]), rel=1e-9)


def test_correlations_match_golden():
    assert error_uncertainty_correlation(ERROR, VARIANCE) == pytest.approx(float(GOLDEN["ccoef.squared_variance"]))
    assert error_uncertainty_correlation(ERROR.sqrt(), VARIANCE.sqrt()) == pytest.approx(float(GOLDEN["ccoef.abs_std"]))
    assert error_uncertainty_correlation(ERROR, VARIANCE, "spearman") == pytest.approx(float(GOLDEN["ccoef.spearman"]))


def test_quantile_calibration_matches_golden():
    curve = quantile_calibration(*(torch.from_numpy(GOLDEN[f"quantile.{name}"]) for name in ("mean", "std", "target")))
    np.testing.assert_allclose(curve.expected, GOLDEN["quantile.expected"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.observed, GOLDEN["quantile.observed"], rtol=0, atol=1e-15)
    for field, name in (("mace", "mace"), ("rmsce", "rmsce"), ("area", "miscal_area")):
        assert getattr(curve, field) == pytest.approx(float(GOLDEN[f"quantile.{name}"]), rel=1e-9)
    assert curve._fields == ("expected", "observed", "mace", "rmsce", "area")


def test_bins_by_hand():
    # Edges 0, 1, 2, closed at the right: 1 is in the first bin, which is closed at the left too.
    error, variance = torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 1.5, 2.0])
    bins = calibration_bins(error, variance, n_bins=2)
    assert bins.error.tolist() == [2, 3]
    assert bins.variance.tolist() == [0.5, 1.75]
    assert bins.proportion.tolist() == [0.5, 0.5]
    assert uncertainty_calibration_error(error, variance, n_bins=2) == pytest.approx((1.5 + 1.25) / 2)
    left_out = calibration_bins(error, variance, n_bins=2, include_min=False)
    assert left_out.error.tolist() == [1, 3]
    assert left_out.proportion.tolist() == [0.25, 0.5]


def test_empty_bins_have_no_mean():
    error, variance = torch.tensor([1.0, 2.0, 7.0]), torch.tensor([0.0, 0.1, 10.0])
    bins = calibration_bins(error, variance, n_bins=5)
    assert bins.error.tolist() == [1.5, 7]
    assert bins.proportion.tolist() == pytest.approx([2 / 3, 0, 0, 0, 1 / 3])
    by_mass = calibration_bins(error, variance, n_bins=5, strategy="mass")
    assert by_mass.error.tolist() == [1, 2, 7]
    assert by_mass.proportion.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])


@pytest.mark.parametrize("include_min", [True, False])
@pytest.mark.parametrize("num", [1, 4])
def test_equal_variances_are_one_bin(include_min, num):
    error, variance = torch.arange(1.0, num + 1), torch.full((num,), 0.25)
    bins = calibration_bins(error, variance, include_min=include_min)
    assert bins.proportion.tolist() == [1] + [0] * 14
    assert bins.error.tolist() == [error.mean().item()]
    assert uncertainty_calibration_error(error, variance, include_min=include_min) == pytest.approx(error.mean() - 0.25)


def test_equal_masses_are_those_of_array_split():
    error, variance = make_case(0, 107)
    order = np.argsort(variance, kind="stable")
    parts = np.array_split(order, 10)
    bins = calibration_bins(error, variance, n_bins=10, strategy="mass")
    np.testing.assert_allclose(bins.error, [error[part].mean() for part in parts], rtol=1e-12)
    np.testing.assert_allclose(bins.variance, [variance[part].mean() for part in parts], rtol=1e-12)
    np.testing.assert_allclose(bins.proportion, [len(part) / 107 for part in parts], rtol=1e-12)


def test_normalized_error_where_a_variance_is_zero():
    zero = torch.zeros(3)
    assert expected_normalized_calibration_error(zero, zero) == 0
    assert expected_normalized_calibration_error(torch.ones(3), zero) == math.inf


@settings(max_examples=25)
@given(seed=SEEDS, strategy=st.sampled_from(("width", "mass")), n_bins=st.integers(1, 40))
def test_calibration_laws(seed, strategy, n_bins):
    error, variance = make_case(seed)
    options = {"n_bins": n_bins, "strategy": strategy}
    assert uncertainty_calibration_error(variance, variance, **options) == pytest.approx(0, abs=1e-12)
    value = uncertainty_calibration_error(error, variance, **options)
    assert value >= abs(np.mean(error) - np.mean(variance)) - 1e-12  # the error of a single bin
    assert uncertainty_calibration_error(4 * error, 4 * variance, **options) == pytest.approx(4 * value)
    normalized = expected_normalized_calibration_error(error, variance, **options)
    assert expected_normalized_calibration_error(4 * error, 4 * variance, **options) == pytest.approx(normalized)


def test_half_precision_is_binned_exactly():
    error, variance = (torch.from_numpy(each).half() for each in make_case(1))
    assert uncertainty_calibration_error(error, variance) == uncertainty_calibration_error(
        error.double(), variance.double()
    )


def test_constant_inputs_have_no_correlation():
    for kind in ("pearson", "spearman"):
        assert math.isnan(error_uncertainty_correlation(torch.ones(4), torch.rand(4), kind))
        assert math.isnan(error_uncertainty_correlation(torch.rand(4), torch.full((4,), 0.1), kind))
        assert math.isnan(error_uncertainty_correlation(torch.ones(1), torch.ones(1), kind))
    assert error_uncertainty_correlation(
        np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]), "spearman"
    ) == pytest.approx(1)


def test_quantile_calibration_by_hand():
    # Scores 0, 0.5 and 3: at level 1/2 the interval reaches 0.674.
    curve = quantile_calibration(torch.zeros(3), torch.tensor([2.0]), torch.tensor([0.0, -1.0, 6.0]), n_levels=3)
    assert curve.expected.tolist() == [0, 0.5, 1]
    assert curve.observed.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.mace == pytest.approx((1 / 3 + 1 / 6) / 3)
    assert curve.rmsce == pytest.approx(math.sqrt((1 / 9 + 1 / 36) / 3))
    assert curve.area == pytest.approx(0.5 * (1 / 3 + 1 / 6) / 2 + 0.5 * (1 / 6) / 2)


def test_the_area_is_that_between_the_curves_where_they_cross():
    random = np.random.default_rng(3)
    curve = quantile_calibration(np.zeros(40), np.ones(40), random.standard_normal(40), n_levels=11)
    fine = np.linspace(0, 1, 200001)
    gap = np.abs(np.interp(fine, curve.expected, curve.observed) - fine)
    assert curve.area == pytest.approx(np.trapezoid(gap, fine), rel=1e-6)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_quantile_calibration_does_not_depend_on_the_unit(seed):
    random = np.random.default_rng(seed)
    mean, target, std = random.standard_normal(50), random.standard_normal(50), random.uniform(0.1, 2, 50)
    curve = quantile_calibration(mean, std, target)
    moved = quantile_calibration(8 * mean + 2, 8 * std, 8 * target + 2)
    np.testing.assert_allclose(curve.observed, moved.observed, atol=0.021)  # rounding at an edge
    assert bool((curve.observed.diff() >= 0).all())
    assert curve.observed[-1] == 1


REFUSED = [
    ((torch.ones(3), torch.ones(4)), {}, "equally many values, got 3 and 4"),
    (
        (torch.tensor([1.0, -1.0]), torch.ones(2)),
        {},
        "squared_error must be finite and not negative, got values from -1.0",
    ),
    ((torch.ones(2), torch.tensor([1.0, -0.5])), {}, "variance must be finite and not negative"),
    ((torch.tensor([1.0, math.nan]), torch.ones(2)), {}, "squared_error must be finite"),
    ((torch.ones(2), torch.tensor([1.0, math.inf])), {}, "variance must be finite"),
    ((torch.ones(0), torch.ones(0)), {}, "squared_error must hold at least one value"),
    ((torch.ones(2), torch.ones(2)), {"n_bins": 0}, "n_bins must be at least 1, got 0"),
    ((torch.ones(2), torch.ones(2)), {"strategy": "size"}, "strategy must be one of width, mass, got 'size'"),
]


@pytest.mark.parametrize(("values", "options", "message"), REFUSED)
def test_refusals(values, options, message):
    for calibration in (uncertainty_calibration_error, expected_normalized_calibration_error):
        with pytest.raises(ValueError, match=re.escape(message)):
            calibration(*values, **options)
    if not options:
        with pytest.raises(ValueError, match=re.escape(message)):
            error_uncertainty_correlation(*values)
        with pytest.raises(ValueError, match=re.escape(message)):
            StreamingCalibration().update(*values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": torch.zeros(3)}, "std must be positive"),
        ({"std": torch.tensor([1.0, -1.0, 1.0])}, "std must be positive"),
        ({"std": torch.ones(2)}, "std must broadcast to the shape of mean"),
        ({"target": torch.zeros(3, 1)}, "mean and target must have the same shape"),
        ({"target": torch.tensor([1.0, math.nan, 0.0])}, "mean and target must be finite"),
        ({"n_levels": 1}, "n_levels must be at least 2, got 1"),
    ],
)
def test_quantile_calibration_refuses(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantile_calibration(**{"mean": torch.zeros(3), "std": torch.ones(3), "target": torch.zeros(3), **change})


def test_an_unknown_correlation_is_refused():
    with pytest.raises(ValueError, match="kind must be one of pearson, spearman, got 'kendall'"):
        error_uncertainty_correlation(torch.rand(3), torch.rand(3), "kendall")


def streamed(error, variance, batch, **options):
    calibration = StreamingCalibration(**options)
    for start in range(0, len(error), batch):
        calibration.update(error[start : start + batch], variance[start : start + batch])
    return calibration


@pytest.mark.parametrize("options", [{}, {"include_min": False}, {"strategy": "mass"}, {"n_bins": 4}, {"n_bins": 1000}])
def test_streamed_is_exact_while_cells_are_single_numbers(options):
    error, variance = make_case(4)
    variance = variance.astype(np.float32)
    calibration = streamed(error, variance, 37)
    assert calibration.exact
    assert calibration.count == len(error)
    expected = calibration_bins(error, variance, **options)
    actual = calibration.bins(**options)
    np.testing.assert_allclose(actual.proportion, expected.proportion, atol=1e-12)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-9)
    np.testing.assert_allclose(actual.variance, expected.variance, rtol=1e-9)


@pytest.mark.parametrize("strategy", ["width", "mass"])
@pytest.mark.parametrize("narrow", [False, True])
def test_streamed_stays_close_when_cells_are_shared(strategy, narrow):
    error, variance = make_case(5, 40_000)
    if narrow:
        variance = 1 + 0.01 * variance / variance.max()
    calibration = streamed(error, variance, 7000, max_cells=2048)
    assert not calibration.exact
    assert 0 < calibration.resolution < 0.01
    expected = uncertainty_calibration_error(error, variance, strategy=strategy)
    # At most 14 of at least 1,000 cells are cut.
    assert calibration.bins(strategy=strategy).calibration_error == pytest.approx(expected, rel=0.02)
    bins = calibration.bins(n_bins=1)
    assert bins.error.item() == pytest.approx(error.mean(), rel=1e-12)
    assert bins.variance.item() == pytest.approx(variance.mean(), rel=1e-12)


def test_parts_can_be_merged_in_any_order():
    error, variance = make_case(6, 9000)
    parts = [streamed(error[a:b], variance[a:b], 1500, max_cells=512) for a, b in ((0, 300), (300, 4000), (4000, 9000))]
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = StreamingCalibration(max_cells=512)
        for number in order:
            merged.merge(parts[number])
        merged.merge(StreamingCalibration())
        assert merged.count == 9000
        results.append(merged.bins(include_min=False))
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-9)
    whole = uncertainty_calibration_error(error, variance)
    assert merged.bins().calibration_error == pytest.approx(whole, rel=0.05)


def test_streamed_edge_cases():
    same = streamed(torch.ones(5), torch.full((5,), 0.5), 2)
    assert same.bins(include_min=False).proportion.tolist() == [1] + [0] * 14
    with pytest.raises(ValueError, match="at least one batch, got none"):
        StreamingCalibration().bins()
    with pytest.raises(ValueError, match="max_cells must be at least 256, got 10"):
        StreamingCalibration(max_cells=10)
    with pytest.raises(ValueError, match="strategy must be one of width, mass"):
        same.bins(strategy="size")


def test_a_recalibrated_model_is_judged_by_the_intervals_that_it_gives():
    """Errors are twice as large as predicted: an interval of coverage p needs a higher nominal level."""
    generator = torch.Generator().manual_seed(0)
    std = torch.ones(20_000, dtype=torch.float64)
    target = 2 * torch.randn(20_000, dtype=torch.float64, generator=generator)
    mean = torch.zeros_like(target)
    plain = quantile_calibration(mean, std, target)

    def nominal(levels):
        return 2 * torch.special.ndtr(2 * torch.special.ndtri(0.5 + levels / 2)) - 1

    right = quantile_calibration(mean, std, target, nominal=nominal)
    assert plain.mace > 0.1
    assert right.mace < 0.01
    torch.testing.assert_close(right.expected, plain.expected)
    fitted = IsotonicCalibrator().fit(plain.expected, plain.observed)
    assert quantile_calibration(mean, std, target, nominal=fitted.transform).mace < 0.02


@pytest.mark.parametrize("num_bins", [3, 15, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_variances_are_shared_out_in_their_order(num_bins, dtype, monkeypatch):
    monkeypatch.setattr(module, "PART", 100)
    random = np.random.default_rng(7)
    variance = torch.from_numpy(random.integers(0, 4, 1007) / 4).to(dtype)
    error = torch.from_numpy(random.random(1007))
    parts = np.array_split(np.argsort(variance.double().numpy(), kind="stable"), num_bins)
    bins = calibration_bins(error, variance, n_bins=num_bins, strategy="mass")
    np.testing.assert_allclose(bins.error, [error[part].mean() for part in parts], rtol=1e-12)
    np.testing.assert_allclose(bins.variance, [variance.double()[part].mean() for part in parts], rtol=1e-12)


def test_streamed_inputs_are_copied():
    error, variance = (torch.from_numpy(each) for each in make_case(8))
    changed = error.clone(), variance.clone()
    calibration = StreamingCalibration()
    calibration.update(*changed)
    for each in changed:
        each.zero_()
    assert calibration.count == 300
    assert calibration.bins(n_bins=1).error.item() == pytest.approx(error.mean().item(), rel=1e-12)
