"""How good is a multi-label model: scores of a whole split, their mAP, and pictures a person can judge."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.data.images import shared_tensor
from tenfold.data.multilabel import MultiLabelData, MultiLabelSplit
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.metrics.average_precision import average_precision, group_mean_ap


def multilabel_metrics(
    logits: Tensor, split: MultiLabelSplit, prefix: str, train_counts: Tensor | None = None
) -> dict[str, float]:
    """``{prefix}/mAP`` in percent against the true labels, ranked by logit.

    Where some entries have no truth (-1: OpenImages) they are left out, class by class. With ``train_counts (K,)``, the
    annotations of each class in training (``annotation_counts``), ``{prefix}/mAP_G1`` to ``_G5`` give the mean over
    five groups of classes, from those with the fewest to those with the most.
    """
    truth = shared_tensor(split.full)
    known = truth >= 0
    ap = average_precision(logits, truth.clamp(min=0), None if bool(known.all()) else known)
    metrics = {f"{prefix}/mAP": 100 * float(ap.nanmean())}
    if train_counts is not None and len(train_counts) >= 5:
        groups = group_mean_ap(ap, train_counts, num_groups=5)
        metrics.update({f"{prefix}/mAP_G{number}": float(value) for number, value in enumerate(groups, 1)})
    return metrics


def annotation_counts(data: MultiLabelData) -> Tensor | None:
    """Annotations of each class in training ``(K,)`` where data are born partial; None where all is known."""
    if bool((data.val.full >= 0).all()):
        return None
    return (shared_tensor(data.train.observed) != 0).sum(0)


def model_metrics(
    run: Run,
    model: Callable[[Tensor], Tensor],
    split: MultiLabelSplit,
    prefix: str,
    train_counts: Tensor | None = None,
) -> dict[str, float]:
    """``multilabel_metrics`` of a model in eval mode, or of any function from pictures to logits."""
    return multilabel_metrics(predict_images(run, model, split.images), split, prefix, train_counts)


_COLOURS = {1: "tab:green", 0: "tab:red", -1: "tab:blue"}
"""Of a label that the model gives, by the truth."""


def figure_predictions(
    images: np.ndarray, probs: np.ndarray, truth: np.ndarray, classes: Sequence[str], num_columns: int = 6
) -> Figure:
    """Pictures with the labels a model gives them: green where right, red wrong, blue unknown, grey where missed.

    Args:
        images: uint8 ``(P, S, S, 3)``.
        probs: ``(P, K)`` in [0, 1]; a label is given at 0.5.
        truth: ``(P, K)`` in {0, 1}, -1 where unknown.
        classes: K names.
    """
    num_rows = -(-len(images) // num_columns)
    figure = Figure(figsize=(2.1 * num_columns, 2.75 * num_rows + 0.3))
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.2 / num_rows, bottom=0.2 / num_rows, hspace=0.38)
    panels = np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, image, prob, true in zip(panels, images, probs, truth, strict=False):
        panel.imshow(image)
        given = np.flatnonzero(prob >= 0.5).tolist()
        missed = np.flatnonzero((prob < 0.5) & (true == 1)).tolist()
        words = [(f"{classes[k]} {prob[k]:.2f}", _COLOURS[int(true[k])]) for k in given]
        words += [(f"({classes[k]} {prob[k]:.2f})", "tab:gray") for k in missed]
        for at, (word, colour) in enumerate(words[:6]):
            panel.text(
                0.5 * (at % 2) + 0.02, -0.06 - 0.11 * (at // 2), word,
                transform=panel.transAxes, color=colour, fontsize=7.5, va="top",
            )  # fmt: skip
        if not words:
            panel.text(0.02, -0.06, "no label", transform=panel.transAxes, color="tab:gray", fontsize=7.5, va="top")
    legend = "green: given and true · red: given, not true · blue: given, unknown · (grey): true, not given"
    figure.suptitle(legend, fontsize=9)
    return figure
