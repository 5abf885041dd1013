"""Class activation maps: the scores of a linear head before they are averaged over space.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. A head that is linear on the mean of
a feature map gives the mean of these maps, so they say from where a logit comes.
Shapes: B pictures, D channels, K classes, maps of H x W places.
"""

import torch
from torch import Tensor

from tenfold.types import check_label_range


def class_activation_maps(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A[n, k, i, j] = sum over d of weight[k, d] features[n, d, i, j], plus bias[k].

    Args:
        features: Last feature map, ``(B, D, H, W)``.
        weight: Of the linear head ``(K, D)``, or of the 1x1 convolution ``(K, D, 1, 1)``.
        bias: ``(K,)``; None leaves it out.

    Returns:
        ``(B, K, H, W)``; its mean over space is the logits of the plain head.

    Raises:
        ValueError: Shapes that don't fit together, or a map without places.
    """
    matrix = _matrix(features, weight, bias)
    batch, _, height, width = features.shape
    flat = features.flatten(2)
    maps = matrix @ flat if bias is None else torch.baddbmm(bias[:, None], matrix.expand(batch, -1, -1), flat)
    return maps.view(batch, len(matrix), height, width)


def class_map_at(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The map of one class for each picture, without the maps of the others.

    Args:
        features, weight, bias: As in ``class_activation_maps``.
        labels: Class of each picture, int64 ``(B,)``.

    Returns:
        ``(B, H, W)``.

    Raises:
        ValueError: As in ``class_activation_maps``; labels of another shape or dtype, or that are no class.
    """
    matrix = _matrix(features, weight, bias)
    check_class_labels(labels, len(features), len(matrix))
    maps = torch.einsum("bdhw,bd->bhw", features, matrix[labels])
    return maps if bias is None else maps + bias[labels, None, None]


def cam_logits(maps: Tensor) -> Tensor:
    """Mean over space: ``(B, K, H, W)`` to ``(B, K)``, in at least float32 (boosted maps reach thousands).

    Raises:
        ValueError: Not 4-D, or without places.
    """
    if maps.ndim != 4 or 0 in maps.shape[2:]:
        raise ValueError(f"maps must be (B, K, H, W) with at least one place, got {tuple(maps.shape)}")
    return maps.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


def check_class_labels(labels: Tensor, batch: int, num_classes: int) -> None:
    """Refuse labels that are not one class for each picture.

    Raises:
        ValueError: Another dtype or shape, or a value outside 0..K-1.
    """
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"labels must be int64 ({batch},), one for each picture, got {labels.dtype} {_shape(labels)}")
    if batch:
        check_label_range(labels, num_classes)


def _matrix(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if features.ndim != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features must be a map (B, D, H, W) with at least one place, got {_shape(features)}")
    matrix = weight.flatten(1) if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight
    if matrix.ndim != 2 or matrix.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must be (K, {features.shape[1]}) or (K, {features.shape[1]}, 1, 1) for a map of "
            f"{features.shape[1]} channels, got {_shape(weight)}"
        )
    if bias is not None and bias.shape != (len(matrix),):
        raise ValueError(f"bias must be ({len(matrix)},), one for each class, got {_shape(bias)}")
    return matrix


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
