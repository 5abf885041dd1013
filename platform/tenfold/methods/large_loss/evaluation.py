"""Evaluation of a multi-label model: logits of a whole split and their mAP."""

from collections.abc import Callable

from torch import Tensor

from tenfold.data.images import shared_tensor
from tenfold.data.multilabel import MultiLabelData, MultiLabelSplit
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.metrics.average_precision import average_precision, group_mean_ap


def multilabel_metrics(
    logits: Tensor, split: MultiLabelSplit, prefix: str, train_counts: Tensor | None = None
) -> dict[str, float]:
    """Return ``{prefix}/mAP`` in percent against the true labels, ranked by logit.

    Entries without a ground-truth label (-1: OpenImages) are excluded, class by class. With ``train_counts (K,)``, the
    number of training annotations per class (``annotation_counts``), ``{prefix}/mAP_G1`` to ``_G5`` are the means over
    five groups of classes, from those with the fewest annotations to those with the most.
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
    """Number of training annotations per class ``(K,)`` for partially annotated data; None if all labels are known."""
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
    """Compute ``multilabel_metrics`` of a model in eval mode, or of any function from images to logits."""
    return multilabel_metrics(predict_images(run, model, split.images), split, prefix, train_counts)
