"""Accuracies of a single-label classifier."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from tenfold.figures.labels import figure_confusion
from tenfold.metrics.classification import classification_metrics

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 2.0, 0.0], [0.0, 1.0, 5.0]])


def test_by_hand():
    metrics = classification_metrics(LOGITS, torch.tensor([0, 1, 0, 0]), "val")
    assert metrics == {
        "val/accuracy": pytest.approx(50.0),
        "val/macro_accuracy": pytest.approx((100 / 3 + 100) / 2),  # class 2 never occurs and does not count
    }


def test_as_scikit_learn_says():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 12, generator=generator), torch.randint(0, 9, (200,), generator=generator)
    metrics = classification_metrics(logits, labels, "test")
    named = logits.argmax(1)
    assert metrics["test/accuracy"] == pytest.approx(100 * accuracy_score(labels, named))
    assert metrics["test/macro_accuracy"] == pytest.approx(100 * balanced_accuracy_score(labels, named), rel=1e-5)
    expected = top_k_accuracy_score(labels, logits.numpy(), k=5, labels=np.arange(12))
    assert metrics["test/top5"] == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS, torch.tensor([0, 1]), r"labels \(N,\)"),
        (LOGITS[:0], torch.zeros(0, dtype=torch.int64), "N at least 1"),
        (LOGITS, torch.tensor([0, 1, 2, 3]), r"0\.\.2, got 0\.\.3"),
        (LOGITS, torch.tensor([0, -1, 2, 0]), r"got -1\.\.2"),
    ],
)
def test_refusals(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(logits, labels, "val")


@pytest.mark.parametrize("num_classes", [3, 20, 60])
def test_confusion_can_be_drawn_for_few_and_many_classes(num_classes, tmp_path):
    labels = torch.arange(num_classes).repeat(2)
    logits = torch.eye(num_classes)[labels]
    figure = figure_confusion(logits, labels, [f"c{k}" for k in range(num_classes)], "title")
    figure.savefig(tmp_path / "confusion.png")
    assert len(figure.axes[0].get_xticklabels()) == (
        num_classes if num_classes <= 40 else len(figure.axes[0].get_xticks())
    )
