"""Regression scores, moment matching, recalibration, image quality, figures: golden values, laws, refusals."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.autograd import gradcheck

from tenfold.figures.regression import (
    figure_calibration,
    figure_error_scatter,
    figure_reliability,
)
from tenfold.metrics.regression.calibration import calibration_bins, quantile_calibration
from tenfold.metrics.regression.image_quality import image_psnr, image_ssim
from tenfold.metrics.regression.likelihoods import gaussian_nll
from tenfold.metrics.regression.moments import predictive_moments
from tenfold.metrics.regression.recalibration import IsotonicCalibrator, SigmaScaler
from tenfold.metrics.regression.scores import gaussian_crps, sharpness

GOLDEN = np.load(Path(__file__).parents[1] / "golden/posterior_annealing.npz")


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def golden_predictions():
    return golden("quantile.mean"), golden("quantile.std"), golden("quantile.target")


def test_scores_match_golden():
    mean, std, target = golden_predictions()
    assert gaussian_crps(mean, std, target).item() == pytest.approx(float(GOLDEN["quantile.crps"]), rel=1e-9)
    assert sharpness(std) == pytest.approx(float(GOLDEN["quantile.sharpness"]), rel=1e-9)
    nll = gaussian_nll(mean, 2 * std.log(), target, full=True)
    assert nll.item() == pytest.approx(float(GOLDEN["quantile.nll"]), rel=1e-9)


def test_recalibration_matches_golden():
    error, variance = golden("uce.squared_error"), golden("uce.variance")
    for method, name in (("nll", "nll"), ("ratio", "ratio_init")):
        scaler = SigmaScaler(method).fit(torch.zeros_like(error), variance.sqrt(), error.sqrt())
        assert scaler.scale == pytest.approx(float(GOLDEN[f"sigma_scale.{name}"]), rel=1e-9)
    calibrator = IsotonicCalibrator().fit(GOLDEN["isotonic.expected"], GOLDEN["isotonic.observed"])
    np.testing.assert_allclose(calibrator.transform(GOLDEN["isotonic.query"]), GOLDEN["isotonic.value"], atol=1e-9)
    same = IsotonicCalibrator().fit(golden("isotonic.expected"), golden("isotonic.observed"))
    torch.testing.assert_close(same.transform(golden("isotonic.query")), golden("isotonic.value"))


def test_moments_match_golden():
    moments = predictive_moments(golden("moments.means"), golden("moments.variances"))
    assert moments._fields == ("mean", "aleatoric", "epistemic", "total")
    for name in moments._fields:
        torch.testing.assert_close(getattr(moments, name), golden(f"moments.{name}"), rtol=1e-9, atol=1e-9)


def test_image_quality_matches_golden():
    first, second = golden("image.a"), golden("image.b")
    assert image_psnr(first, second) == pytest.approx(float(GOLDEN["image.psnr"]), rel=1e-9)
    assert image_ssim(first, second) == pytest.approx(float(GOLDEN["image.ssim"]), rel=1e-9)
    assert (first - second).abs().mean().item() == pytest.approx(float(GOLDEN["image.mae"]), rel=1e-9)


def test_crps_is_the_integral_over_thresholds():
    mean, std, target = (torch.tensor([value], dtype=torch.float64) for value in (0.3, 0.8, -0.9))
    grid = torch.linspace(-12, 12, 480001, dtype=torch.float64)
    below = torch.special.ndtr((grid - mean) / std)
    integral = torch.trapezoid((below - (grid >= target).double()).square(), grid)
    assert gaussian_crps(mean, std, target).item() == pytest.approx(integral.item(), abs=1e-4)


def test_crps_of_a_certain_prediction_is_the_absolute_error():
    mean, target = torch.zeros(2, 3, 4, dtype=torch.float64), torch.full((2, 3, 4), -2.0, dtype=torch.float64)
    crps = gaussian_crps(mean, torch.full((2, 1, 4), 1e-9, dtype=torch.float64), target, reduction="none")
    torch.testing.assert_close(crps, torch.full((2, 3, 4), 2.0, dtype=torch.float64), atol=1e-8, rtol=0)
    assert gaussian_crps(mean.half(), torch.ones(4).half(), target.half()).dtype == torch.float32


def test_crps_gradient():
    generator = torch.Generator().manual_seed(0)
    mean, std, target = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    std = std.abs() + 0.2
    assert gradcheck(lambda *given: gaussian_crps(*given, target), (mean.requires_grad_(), std.requires_grad_()))


def test_scaling_is_the_best_of_all_factors():
    mean, std, target = golden_predictions()
    scaler = SigmaScaler().fit(mean, std, target)
    best = gaussian_nll(mean, 2 * scaler.transform(std).log(), target)
    for factor in (0.97, 1.03):
        assert gaussian_nll(mean, 2 * (factor * scaler.transform(std)).log(), target) > best
    doubled = SigmaScaler().fit(mean, scaler.transform(std), target)
    assert doubled.scale == pytest.approx(1)
    assert isinstance(scaler.transform(std.numpy()), np.ndarray)


def test_isotonic_recalibration_corrects_the_coverage():
    random = np.random.default_rng(0)
    target = random.standard_normal(4000)
    mean, too_wide = np.zeros(4000), np.full(4000, 2.0)
    curve = quantile_calibration(mean, too_wide, target)
    levels = IsotonicCalibrator().fit(curve.expected, curve.observed).transform(np.array([0.5, 0.9, 2.0, -1.0]))
    for wanted, level in zip((0.5, 0.9), levels, strict=False):
        reach = 2 * torch.special.ndtri(torch.tensor(0.5 + level / 2)).item()
        assert np.mean(np.abs(target) <= reach) == pytest.approx(wanted, abs=0.02)
    assert 0.9 < levels[2] <= 1  # clipped beyond the fitted points
    assert levels[3] == 0


def test_moments_by_hand_and_of_a_single_answer():
    moments = predictive_moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.5], [1.5]]))
    assert [field.item() for field in moments] == [2, 1, 1, 2]
    single = predictive_moments(torch.tensor([[5.0, 6.0]]), torch.tensor([[0.2, 0.3]]))
    assert single.epistemic.tolist() == [0, 0]
    torch.testing.assert_close(single.total, torch.tensor([0.2, 0.3]))


def test_moments_broadcast_and_keep_full_precision():
    means = torch.randn(4, 2, 3, 5).half()
    moments = predictive_moments(means, torch.ones(4, 2, 1, 5).half())
    assert {field.shape for field in moments} == {(2, 3, 5)}
    assert {field.dtype for field in moments} == {torch.float32}
    far = predictive_moments(1e6 + torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.zeros(2, 1).double())
    assert far.epistemic.item() == pytest.approx(0.25, rel=1e-9)


def test_psnr_by_hand_is_averaged_over_images():
    prediction = torch.zeros(2, 1, 4, 4)
    target = torch.zeros(2, 1, 4, 4)
    target[0], target[1] = 0.1, 0.01
    assert image_psnr(prediction, target) == pytest.approx((20 + 40) / 2, rel=1e-6)
    assert image_psnr(255 * prediction, 255 * target, max_value=255) == pytest.approx(30, rel=1e-6)
    assert image_psnr(target, target) == math.inf


def test_ssim_laws():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, 3, 2, 9, 7, generator=generator)
    assert image_ssim(first, first) == pytest.approx(1, abs=1e-9)
    value = image_ssim(first, second)
    assert -1 <= value < 0.9
    assert image_ssim(second, first) == pytest.approx(value)
    assert image_ssim(255 * first, 255 * second, max_value=255) == pytest.approx(value)
    assert np.mean([image_ssim(*pair) for pair in zip(first, second, strict=True)]) == pytest.approx(value)
    flat = torch.full((1, 3, 3), 0.5)
    assert image_ssim(flat, flat) == pytest.approx(1)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 8, 8), (3, 8, 9)), {}, "of the same shape and not empty, got (3, 8, 8) and (3, 8, 9)"),
        (((8, 8), (8, 8)), {}, "must be (C, H, W) or (B, C, H, W)"),
        (((3, 8, 8), (3, 8, 8)), {"max_value": 0.0}, "max_value must be positive"),
    ],
)
def test_images_that_are_refused(shapes, options, message):
    for quality in (image_psnr, image_ssim):
        with pytest.raises(ValueError, match=re.escape(message)):
            quality(*(torch.zeros(shape) for shape in shapes), **options)


def test_images_that_are_too_small_or_not_finite_are_refused():
    with pytest.raises(ValueError, match="at least 3 pixels high and wide"):
        image_ssim(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
    with pytest.raises(ValueError, match="must be finite"):
        image_psnr(torch.full((1, 4, 4), math.nan), torch.zeros(1, 4, 4))


def test_scores_and_recalibration_refuse():
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="std must be positive"):
        gaussian_crps(ones, torch.zeros(3), ones)
    with pytest.raises(ValueError, match="target must be finite"):
        gaussian_crps(ones, ones, torch.tensor([1.0, math.nan, 1.0]))
    with pytest.raises(ValueError, match="reduction must be one of"):
        gaussian_crps(ones, ones, ones, reduction="max")
    with pytest.raises(ValueError, match="std must be positive"):
        sharpness(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="std must hold at least one value"):
        sharpness(torch.ones(0))
    with pytest.raises(ValueError, match="method must be one of nll, ratio, got 'mle'"):
        SigmaScaler("mle")
    for early in (lambda: SigmaScaler().transform(ones), lambda: IsotonicCalibrator().transform(ones)):
        with pytest.raises(ValueError, match="not fitted; call fit first"):
            early()
    with pytest.raises(ValueError, match="nothing to scale by"):
        SigmaScaler().fit(ones, ones, ones)
    with pytest.raises(ValueError, match="std must be positive"):
        SigmaScaler().fit(ones, -ones, 2 * ones)
    with pytest.raises(ValueError, match="1-D and equally long, got \\(3,\\) and \\(2,\\)"):
        IsotonicCalibrator().fit(ones, ones[:2])
    with pytest.raises(ValueError, match="observed must lie in \\[0, 1\\]"):
        IsotonicCalibrator().fit(ones, 2 * ones)
    with pytest.raises(ValueError, match="got NaN"):
        IsotonicCalibrator().fit(ones, ones).transform(np.array([math.nan]))


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 2), "variances must have the shape of means"),
        (torch.zeros(2, 3), torch.zeros(3), "variances must have the shape of means"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "K at least 1, got (0, 3)"),
        (torch.zeros(1), torch.tensor([-1.0]), "variances must not be negative"),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1), "means must be floating point"),
    ],
)
def test_moments_refuse(means, variances, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        predictive_moments(means, variances)


def test_figures_show_what_they_are_given():
    mean, std, target = golden_predictions()
    error = (mean - target).square()
    reliability = figure_reliability({"one": quantile_calibration(mean, std, target)})
    diagram = figure_calibration({"one": calibration_bins(error, std**2)})
    scatter = figure_error_scatter(error, std**2)
    for figure in (reliability, diagram, scatter):
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    assert "MACE 0.014" in reliability.axes[0].get_legend().get_texts()[0].get_text()
    assert len(scatter.axes[0].collections[0].get_offsets()) == 400
    with pytest.raises(ValueError, match="at least one entry to draw"):
        figure_reliability({})
