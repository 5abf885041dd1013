"""Uncertainty scores and detection metrics: values by hand, laws, other libraries, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_auroc

from tenfold.figures.uncertainty import figure_reliability, figure_scores
from tenfold.metrics.uncertainty import (
    detection_metrics,
    misclassification_auroc,
    pairwise_disagreement,
    predictive_uncertainty,
    probability_metrics,
    threshold_at,
)

SEEDS = st.integers(0, 2**32 - 1)


def make_probs(seed, shape, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)


def test_certain_members_that_disagree_know_everything_but_the_truth():
    scores = predictive_uncertainty(torch.eye(2, dtype=torch.float64)[:, None])
    assert float(scores.predictive_entropy) == pytest.approx(math.log(2))
    assert float(scores.expected_entropy) == 0
    assert float(scores.mutual_information) == pytest.approx(math.log(2))
    assert float(scores.variation_ratio) == pytest.approx(0.5)


@settings(max_examples=30)
@given(seed=SEEDS, members=st.integers(1, 5), classes=st.integers(1, 4))
def test_laws_of_the_scores(seed, members, classes):
    probs = make_probs(seed, (members, 3, classes), scale=8.0)
    scores = predictive_uncertainty(probs)
    mean = probs.mean(0).numpy()
    np.testing.assert_allclose(scores.predictive_entropy, entropy(mean, axis=1), atol=1e-12)
    np.testing.assert_allclose(scores.expected_entropy, entropy(probs.numpy(), axis=2).mean(0), atol=1e-12)
    assert (scores.mutual_information >= 0).all()
    assert (scores.mutual_information <= math.log(members) + 1e-12).all()
    parts = scores.expected_entropy + scores.mutual_information
    torch.testing.assert_close(scores.predictive_entropy, parts, rtol=1e-9, atol=1e-9)
    for score, mixed in zip(scores, predictive_uncertainty(probs.flip(0).repeat(2, 1, 1)), strict=True):
        torch.testing.assert_close(score, mixed, rtol=1e-9, atol=1e-9)


def test_members_that_agree_share_no_information():
    probs = make_probs(0, (1, 4, 3)).expand(5, 4, 3)
    torch.testing.assert_close(predictive_uncertainty(probs).mutual_information, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (torch.full((2, 2), 0.5), r"\(K, N, C\)"),
        (torch.zeros(0, 1, 2), r"\(K, N, C\)"),
        (torch.tensor([[[1.5, -0.5]]]), "at least 0, got -0.5"),
        (torch.tensor([[[0.5, 0.6]]]), "row off by 0.1"),
        (torch.tensor([[[float("nan"), 1.0]]]), "at least 0"),
    ],
)
def test_probabilities_that_are_refused(probs, message):
    with pytest.raises(ValueError, match=message):
        predictive_uncertainty(probs)


def test_disagreement_by_hand():
    sure = torch.eye(3, dtype=torch.float64)
    probs = torch.stack([sure[[0, 1]], sure[[0, 2]], sure[[0, 1]]])  # the second input divides one of three members
    assert pairwise_disagreement(probs) == pytest.approx((0 + 2 / 3) / 2)
    assert pairwise_disagreement(probs[:1]) == 0
    with pytest.raises(ValueError, match=r"\(K, N, C\)"):
        pairwise_disagreement(probs[0])


def test_detection_by_hand():
    metrics = detection_metrics(torch.tensor([0.1, 0.2, 0.3, 2.5]), torch.tensor([0.25, 3.0]))
    assert metrics.auroc == pytest.approx(6 / 8)
    assert metrics.aupr == pytest.approx((1 + 2 / 4) / 2)
    assert metrics.fpr95 == pytest.approx(2 / 4)
    perfect = detection_metrics(torch.tensor([0.0, 0.5]), torch.tensor([0.6, 4.0]))
    assert perfect == (1.0, 1.0, 0.0)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_detection_laws(seed):
    generator = torch.Generator().manual_seed(seed)
    negative = torch.rand(7, generator=generator)
    positive = torch.rand(5, generator=generator)
    metrics = detection_metrics(negative, positive)
    assert detection_metrics(positive, negative).auroc == pytest.approx(1 - metrics.auroc)
    assert detection_metrics(10 * negative + 3, 10 * positive + 3).auroc == pytest.approx(metrics.auroc)
    truth = torch.tensor([0] * 7 + [1] * 5)
    assert float(binary_auroc(torch.cat([negative, positive]), truth)) == pytest.approx(metrics.auroc, abs=1e-6)


@pytest.mark.parametrize(
    ("negative", "message"),
    [(torch.zeros(0), "N at least 1"), (torch.zeros(2, 2), "N at least 1"), (torch.tensor([math.nan]), "finite")],
)
def test_scores_that_are_refused(negative, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(negative, torch.ones(2))


def test_misclassification_is_found_by_a_score_that_knows():
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    assert misclassification_auroc(probs, labels, 1 - probs.max(1).values) == 1
    assert misclassification_auroc(probs, labels, probs.max(1).values) == 0
    assert math.isnan(misclassification_auroc(probs, torch.tensor([0, 0, 0, 1]), torch.zeros(4)))
    with pytest.raises(ValueError, match="of the labels"):
        misclassification_auroc(probs, labels, torch.zeros(3))


def test_probability_metrics_are_those_of_scikit_learn():
    probs = make_probs(1, (40, 3))
    labels = torch.arange(40) % 3
    metrics = probability_metrics(probs, labels)
    assert metrics.nll == pytest.approx(log_loss(labels, probs), rel=1e-9)
    assert metrics.brier == pytest.approx(brier_score_loss(labels, probs, scale_by_half=False), rel=1e-9)
    assert metrics.accuracy == pytest.approx(float((probs.argmax(1) == labels).double().mean()))


def test_calibration_error_by_hand():
    probs = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1])
    expected = (abs(0.9 - 0.75) + abs(0.6 - 0.5)) / 2
    assert probability_metrics(probs, labels).ece == pytest.approx(expected, abs=1e-6)


def test_impossible_labels_cost_a_finite_loss():
    assert math.isfinite(probability_metrics(torch.eye(2), torch.tensor([1, 0])).nll)


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (torch.ones(2, 2), torch.tensor([0]), r"probs must be \(N, C\)"),
        (torch.ones(1, 2), torch.tensor([2]), r"0\.\.1, got 2\.\.2"),
    ],
)
def test_labels_that_are_refused(probs, labels, message):
    with pytest.raises(ValueError, match=message):
        probability_metrics(probs, labels)


@settings(max_examples=30)
@given(seed=SEEDS, size=st.integers(1, 60), rate=st.floats(0.01, 0.99), ties=st.booleans())
def test_threshold_flags_at_most_the_rate(seed, size, rate, ties):
    scores = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if ties:
        scores = (4 * scores).round()
    threshold = threshold_at(scores, rate)
    assert float((scores > threshold).double().mean()) <= rate
    lower = scores[scores < threshold]
    if len(lower):  # no lower score would do
        assert float((scores > lower.max()).double().mean()) > rate - 1e-12


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_rates_that_are_refused(rate):
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        threshold_at(torch.ones(3), rate)


def test_figures_show_every_set_and_classifier():
    figure = figure_scores({"digits": torch.rand(9), "letters": torch.rand(4) + 1}, "entropy, nats", "test", 0.7)
    legend = [text.get_text().split(",")[0] for text in figure.axes[0].get_legend().get_texts()]
    assert sorted(legend) == ["digits", "letters", "threshold 0.70"]
    heights = sum(patch.get_path().vertices[:, 1].max() > 0 for patch in figure.axes[0].patches)
    assert heights == 2
    with pytest.raises(ValueError, match="at least one score per set"):
        figure_scores({"digits": torch.rand(0)}, "entropy", "test")
    probs = make_probs(0, (50, 3))
    shown = figure_reliability({"one": probs, "mean": probs}, probs.argmax(1), "test")
    line = shown.axes[0].get_lines()[1]
    assert (line.get_ydata() == 1).all()
