"""Evaluation of a posterior: accuracy and calibration in distribution, uncertainty out of distribution."""

import numpy as np
import torch
from torch import Tensor

from tenfold.data.classification import Split
from tenfold.data.uncertainty import UncertaintyData
from tenfold.methods.gradient_uncertainty.predictor import PosteriorPredictor
from tenfold.metrics.uncertainty import (
    SCORES,
    PredictiveUncertainty,
    detection_metrics,
    misclassification_auroc,
    pairwise_disagreement,
    predictive_uncertainty,
    probability_metrics,
)
from tenfold.types import ImageSource

AT_ONCE = 512


def member_probs(predictor: PosteriorPredictor, images: ImageSource) -> Tensor:
    """Return the class probabilities of every member for all images, ``(K, N, C)`` on the CPU."""
    starts = range(0, len(images), AT_ONCE)
    parts = [
        predictor.member_probs(images.read(np.arange(start, min(start + AT_ONCE, len(images))))).cpu()
        for start in starts
    ]
    return torch.cat(parts, dim=1)


def all_scores(predictor: PosteriorPredictor, data: UncertaintyData) -> dict[str, PredictiveUncertainty]:
    """Return the scores of the test images (``test``) and of every other set, by name."""
    sets = {"test": data.inside.test.images, **data.sets()}
    return {name: predictive_uncertainty(member_probs(predictor, images)) for name, images in sets.items()}


def measure(predictor: PosteriorPredictor, data: UncertaintyData) -> dict[str, float]:
    """Compute all reported metrics of a posterior.

    Returns:
        ``val/`` and ``test/``: accuracy in percent, NLL in nats, Brier score, ECE; ``test/`` also the misclassification
        AUROC of each score. For each other set: mean scores, AUROC, AUPR and FPR95 of each score against the test
        images (for a subset of these, against the rest), and the flagged fraction (``flagged``, also for val and test).
    """
    metrics: dict[str, float] = {}
    of_test: PredictiveUncertainty | None = None
    parts: tuple[Split, ...] = ("val", "test")
    for part in parts:
        split = data.inside.split(part)
        probs = member_probs(predictor, split.images)
        labels = torch.from_numpy(split.labels.copy())
        found = probability_metrics(probs.mean(0), labels)
        of_test = predictive_uncertainty(probs)
        metrics |= {f"{part}/{name}": float(value) for name, value in found._asdict().items()}
        metrics[f"{part}/accuracy"] *= 100
        metrics[f"{part}/flagged"] = float((getattr(of_test, predictor.score) > predictor.threshold).double().mean())
        if part == "test":
            metrics["test/disagreement"] = pairwise_disagreement(probs)
            for name in SCORES:
                scores = getattr(of_test, name)
                metrics[f"test/{name}"] = float(scores.mean())
                metrics[f"test/mistakes_auroc_{name}"] = misclassification_auroc(probs.mean(0), labels, scores)
    assert of_test is not None
    for name, images in data.sets().items():
        known = np.ones(len(data.inside.test), dtype=bool)
        known[data.confusing.get(name, [])] = False
        scores_of = predictive_uncertainty(member_probs(predictor, images))
        metrics[f"{name}/flagged"] = float((getattr(scores_of, predictor.score) > predictor.threshold).double().mean())
        for score in SCORES:
            values = getattr(scores_of, score)
            found_by = detection_metrics(getattr(of_test, score)[torch.from_numpy(known)], values)
            metrics[f"{name}/{score}"] = float(values.mean())
            metrics |= {f"{name}/{kind}_{score}": value for kind, value in found_by._asdict().items()}
    return metrics
