"""Accuracy of a classifier on a split, and distance of synthetic images to real ones in CLIP's feature space.

Shapes: N images, C classes, D features.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.data.images import SubsetImages, shared_tensor
from tenfold.engine.predict import predict_images
from tenfold.engine.run import Run
from tenfold.methods.datadream.image_store import ImageStore, image_source
from tenfold.metrics.classification import classification_metrics
from tenfold.models.clip import Clip
from tenfold.types import ImageSource


def split_metrics(
    run: Run, score: Callable[[Tensor], Tensor], split: ClassificationSplit, prefix: str
) -> tuple[dict[str, float], Tensor]:
    """Accuracies on a split, and the logits ``(N, C)``; ``score`` maps uint8 images ``(B, S, S, 3)`` to logits."""
    logits = predict_images(run, score, split.images)
    return classification_metrics(logits, shared_tensor(split.labels), prefix), logits


def store_distances(
    run: Run,
    data: ClassificationData,
    clip: Clip,
    stores: Mapping[str, ImageStore],
    labels: Sequence[int],
    count: int,
) -> dict[str, np.ndarray]:
    """Distance of class-mean features to those of real images, for the first ``count`` images of each store.

    Real images are those of the validation split, of the test split where there is none.
    """
    split = data.val if data.val is not None else data.test
    rows = np.flatnonzero(np.isin(split.labels, list(labels)))
    place = np.searchsorted(np.asarray(labels), split.labels[rows])
    real = class_means(run, clip, SubsetImages(split.images, rows), place, len(labels))
    distances = {}
    for name, store in stores.items():
        files = [path for label in labels for path in store.paths(label, count)]
        of_files = np.repeat(np.arange(len(labels)), count)
        synthetic = class_means(run, clip, image_source(files, clip.preprocessing), of_files, len(labels))
        distances[name] = feature_distances(synthetic, real)
    return distances


def class_means(run: Run, clip: Clip, images: ImageSource, labels: np.ndarray, num_classes: int) -> Tensor:
    """Mean feature of each class ``(C, D)`` under CLIP without adapters; NaN for a class without images.

    Every worker must call it.
    """
    features = predict_images(run, clip.embed_images, images)
    index = torch.from_numpy(labels)
    sums = torch.zeros(num_classes, features.shape[1]).index_add_(0, index, features)
    return sums / torch.bincount(index, minlength=num_classes)[:, None]


def feature_distances(synthetic: Tensor, real: Tensor) -> np.ndarray:
    """Euclidean distance of each class's mean feature to that of real images ``(C,)``."""
    return (synthetic - real).norm(dim=1).numpy()
