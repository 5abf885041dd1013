"""How unsure an ensemble of classifiers is, and how well that tells what it does not know.

Natural logarithms; K members, N inputs, C classes.
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
"""The fields of ``PredictiveUncertainty`` that order inputs by how little is known of them."""
_ROW_TOLERANCE = 1e-4


class PredictiveUncertainty(NamedTuple):
    """Scores of N inputs, each ``(N,)`` and of the probabilities' type."""

    predictive_entropy: Tensor
    """Of the mean of the members, in nats: all uncertainty."""
    expected_entropy: Tensor
    """Mean of the members' entropies: what they agree cannot be told."""
    mutual_information: Tensor
    """The difference, in [0, log K]: how much the members disagree."""
    variation_ratio: Tensor
    """1 less the highest mean probability."""


def predictive_uncertainty(probs: Tensor) -> PredictiveUncertainty:
    """Scores from the class probabilities of every member.

    Args:
        probs: ``(K, N, C)``.

    Raises:
        ValueError: Not three axes, nothing in one of them, a value that is negative or not finite, or a row whose sum
            is off 1 by more than 1e-4.
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
    """Mean over pairs of members of the share of inputs that they name differently; 0 for one member.

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
    """How well a score tells two sets apart; the set with the higher scores is the positive one."""

    auroc: float
    aupr: float
    """Average precision; that of chance is the positives' share."""
    fpr95: float
    """Share of the negatives above the threshold that finds 95 % of the positives."""


def detection_metrics(negative_scores: Tensor, positive_scores: Tensor) -> DetectionMetrics:
    """Of scores of known inputs ``(N,)`` and of those to be found ``(M,)``, which should be higher.

    Out of distribution, and ambiguous, counts as positive.

    Raises:
        ValueError: A set is empty, has more than one axis, or a score is not finite.
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
    """AUROC of a score for finding the inputs that are classified wrongly; nan if all or none are.

    Args:
        probs: Mean probabilities ``(N, C)``.
        labels: int64 ``(N,)``.
        scores: ``(N,)``, higher where less is known.
    """
    _check_labelled(probs, labels)
    if scores.shape != labels.shape:
        raise ValueError(f"scores must be {tuple(labels.shape)} as labels, got {tuple(scores.shape)}")
    wrong = probs.argmax(1) != labels
    if not wrong.any() or wrong.all():
        return math.nan
    return detection_metrics(scores[~wrong], scores[wrong]).auroc


class ProbabilityMetrics(NamedTuple):
    """How good probabilities are where the truth is known."""

    accuracy: float
    """In [0, 1]."""
    nll: float
    """Mean negative log probability of the label, in nats."""
    brier: float
    """Mean squared distance of the probabilities to the label's one-hot vector, in [0, 2]."""
    ece: float
    """Expected calibration error in 15 bins of confidence, in [0, 1]."""


def probability_metrics(probs: Tensor, labels: Tensor) -> ProbabilityMetrics:
    """Of mean probabilities ``(N, C)`` and labels int64 ``(N,)``.

    Raises:
        ValueError: Shapes that don't fit, no input, or a label that is no class.
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
    """The lowest threshold that at most this share of held-out known inputs is above.

    Args:
        held_out_scores: Of inputs of the known kind that nothing was trained on, ``(N,)``.
        false_positive_rate: Share in (0, 1) that may be flagged, an input being flagged if its score is above the
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
        raise ValueError(f"{what} must be finite, got nan or inf")


def _check_labelled(probs: Tensor, labels: Tensor) -> None:
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            f"probs must be (N, C) and labels (N,) with N at least 1, "
            f"got {tuple(probs.shape)} and {tuple(labels.shape)}"
        )
    check_label_range(labels, probs.shape[1])
