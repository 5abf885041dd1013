"""How good is a model that names one class: accuracies of a whole split, and pictures a person can judge."""

from typing import Literal

from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

TOP = 5


def classification_metrics(logits: Tensor, labels: Tensor, prefix: str) -> dict[str, float]:
    """Accuracies in percent, counted over pictures.

    ``{prefix}/accuracy`` is top-1, ``{prefix}/top5`` top-5 (where there are more than five classes), and
    ``{prefix}/macro_accuracy`` the mean over the classes that occur.

    Args:
        logits: ``(N, K)``, K at least 2.
        labels: Class of each picture, int64 ``(N,)``.
        prefix: Of the metrics' names: the split.

    Raises:
        ValueError: Shapes that don't fit together, no picture, or a label outside 0..K - 1.
    """
    if logits.ndim != 2 or labels.shape != (len(logits),) or not len(labels):
        raise ValueError(
            f"logits must be (N, K) and labels (N,) with N at least 1, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    num_classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")

    def accuracy(average: Literal["micro", "none"], top: int = 1) -> Tensor:
        return 100 * multiclass_accuracy(logits, labels, num_classes, average=average, top_k=top)

    of_class = accuracy("none")[labels.unique()]
    metrics = {f"{prefix}/accuracy": float(accuracy("micro")), f"{prefix}/macro_accuracy": float(of_class.mean())}
    if num_classes > TOP:
        metrics[f"{prefix}/top5"] = float(accuracy("micro", TOP))
    return metrics
