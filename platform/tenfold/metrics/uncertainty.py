"""Predictive uncertainty of an ensemble of classifiers, and its use for out-of-distribution detection.

Logarithms are natural. Shapes: K members, N inputs, C classes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from tenfold.types import check_label_range

CALIBRATION_BINS = 15
SCORES = ("predictive_entropy", "mutual_information", "variation_ratio")
"""Fields of ``PredictiveUncertainty`` that serve as uncertainty scores of an input."""
_ROW_TOLERANCE = 1e-4


class PredictiveUncertainty(NamedTuple):
    """Uncertainty scores of N inputs, each ``(N,)`` in the dtype of the probabilities."""

    predictive_entropy: Tensor
    """Entropy of the members' mean, in nats: total uncertainty."""
    expected_entropy: Tensor
    """Mean of the members' entropies: aleatoric uncertainty."""
    mutual_information: Tensor
    """Difference of the two, in [0, log K]: disagreement of the members, epistemic uncertainty."""
    variation_ratio: Tensor
    """1 minus the highest mean probability."""


def predictive_uncertainty(probs: Tensor) -> PredictiveUncertainty:
    """Compute uncertainty scores from the members' class probabilities.

    Args:
        probs: ``(K, N, C)``.

    Raises:
        ValueError: Not three axes, an empty axis, a negative or non-finite value, or a row whose sum differs from 1 by
            more than 1e-4.
    """
    if probs.ndim != 3 or 0 in probs.shape:
        raise ValueError(f"probs must be (K, N, C), each at least 1, got {tuple(probs.shape)}")
    if not (probs >= 0).all():
        raise ValueError(f"probs must be at least 0, got {float(probs.min())}")
    off = float((probs.sum(-1) - 1).abs().max())
    if not off <= _ROW_TOLERANCE:
        raise ValueError(f"probs must sum to 1 over the classes, got a row off by {off:.2g}; apply a softmax first")
    mean = probs.mean(0)
    total = _entropy(mean)
    expected = _entropy(probs).mean(0)
    # Rounding alone can leave the difference below zero.
    information = (total - expected).clamp(0, math.log(len(probs)))
    return PredictiveUncertainty(total, expected, information, 1 - mean.max(-1).values)


def _entropy(probs: Tensor) -> Tensor:
    return -torch.special.xlogy(probs, probs).sum(-1)


def pairwise_disagreement(probs: Tensor) -> float:
    """Share of inputs that two members classify differently, averaged over pairs; 0 for a single member.

    Args:
        probs: ``(K, N, C)``.
    """
    if probs.ndim != 3 or 0 in probs.shape:
        raise ValueError(f"probs must be (K, N, C), each at least 1, got {tuple(probs.shape)}")
    members, num_inputs, num_classes = probs.shape
    if members == 1:
        return 0.0
    votes = torch.nn.functional.one_hot(probs.argmax(-1), num_classes).sum(0).double()  # (N, C)
    agreeing = (votes * (votes - 1)).sum() / (num_inputs * members * (members - 1))
    return float(1 - agreeing)


class DetectionMetrics(NamedTuple):
    """Separation of two sets by a score; the positive set should have the higher scores."""

    auroc: float
    aupr: float
    """Average precision; chance level is the share of positives."""
    fpr95: float
    """False positive rate at a true positive rate of 95 %."""


def detection_metrics(negative_scores: Tensor, positive_scores: Tensor) -> DetectionMetrics:
    """Measure how well a score detects positive inputs: out-of-distribution, ambiguous or misclassified ones.

    Args:
        negative_scores: Scores of known inputs ``(N,)``.
        positive_scores: Scores of the inputs to detect ``(M,)``, which should be higher.

    Raises:
        ValueError: An empty set, more than one axis, or a non-finite score.
    """
    for what, scores in (("negative_scores", negative_scores), ("positive_scores", positive_scores)):
        _check_scores(what, scores)
    scores_of_both = torch.cat([negative_scores.double(), positive_scores.double()]).cpu().numpy()
    truth = np.repeat([0, 1], [len(negative_scores), len(positive_scores)])
    false_positive, true_positive, _ = roc_curve(truth, scores_of_both, drop_intermediate=False)
    return DetectionMetrics(
        float(roc_auc_score(truth, scores_of_both)),
        float(average_precision_score(truth, scores_of_both)),
        float(false_positive[np.argmax(true_positive >= 0.95)]),
    )


def misclassification_auroc(probs: Tensor, labels: Tensor, scores: Tensor) -> float:
    """AUROC of a score for detecting misclassified inputs; NaN if all inputs or none are misclassified.

    Args:
        probs: Mean probabilities ``(N, C)``.
        labels: int64 ``(N,)``.
        scores: ``(N,)``, higher for more uncertain inputs.
    """
    _check_labelled(probs, labels)
    if scores.shape != labels.shape:
        raise ValueError(f"scores must have the shape {tuple(labels.shape)} of the labels, got {tuple(scores.shape)}")
    wrong = probs.argmax(1) != labels
    if not wrong.any() or wrong.all():
        return math.nan
    return detection_metrics(scores[~wrong], scores[wrong]).auroc


class ProbabilityMetrics(NamedTuple):
    """Quality of class probabilities on labelled inputs."""

    accuracy: float
    """Top-1 accuracy, in [0, 1]."""
    nll: float
    """Mean negative log probability of the label, in nats."""
    brier: float
    """Mean squared distance from the probabilities to the one-hot label, in [0, 2]."""
    ece: float
    """Expected calibration error over 15 confidence bins, in [0, 1]."""


def probability_metrics(probs: Tensor, labels: Tensor) -> ProbabilityMetrics:
    """Compute accuracy, likelihood, Brier score and calibration error.

    Args:
        probs: Mean probabilities ``(N, C)``.
        labels: int64 ``(N,)``.

    Raises:
        ValueError: Mismatched shapes, no inputs, or a label outside 0..C - 1.
    """
    _check_labelled(probs, labels)
    of_label = probs.gather(1, labels[:, None])[:, 0]
    one_hot = torch.nn.functional.one_hot(labels, probs.shape[1])
    return ProbabilityMetrics(
        accuracy=float((probs.argmax(1) == labels).double().mean()),
        nll=float(-of_label.clamp(min=torch.finfo(probs.dtype).tiny).log().mean()),
        brier=float((probs - one_hot).square().sum(1).mean()),
        ece=float(multiclass_calibration_error(probs, labels, probs.shape[1], n_bins=CALIBRATION_BINS, norm="l1")),
    )


def threshold_at(held_out_scores: Tensor, false_positive_rate: float) -> float:
    """Return the lowest threshold that keeps the false positive rate on held-out inputs at or below a limit.

    Args:
        held_out_scores: Scores of in-distribution inputs not used for training, ``(N,)``.
        false_positive_rate: Largest share of them to flag, in (0, 1); an input is flagged if its score exceeds the
            threshold.

    Raises:
        ValueError: A rate outside (0, 1), or scores that ``detection_metrics`` refuses.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must lie in (0, 1), got {false_positive_rate}")
    _check_scores("held_out_scores", held_out_scores)
    ordered = held_out_scores.double().sort(descending=True).values
    return float(ordered[math.floor(false_positive_rate * len(ordered))])


def _check_scores(what: str, scores: Tensor) -> None:
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{what} must be (N,) with N at least 1, got {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError(f"{what} must be finite, got NaN or infinity")


def _check_labelled(probs: Tensor, labels: Tensor) -> None:
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            f"probs must be (N, C) and labels (N,) with N at least 1, "
            f"got {tuple(probs.shape)} and {tuple(labels.shape)}"
        )
    check_label_range(labels, probs.shape[1])
