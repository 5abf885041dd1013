"""Class activation maps: the scores of a linear head before spatial averaging.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. A head that is linear in the mean of a
feature map returns the mean of these maps, so they show where in the image a logit comes from.
Shapes: B images, D channels, K classes, maps of H x W locations.
"""

import torch
from torch import Tensor

from tenfold.types import check_label_range


def class_activation_maps(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return A[n, k, i, j] = sum over d of weight[k, d] features[n, d, i, j], plus bias[k].

    Args:
        features: Last feature map, ``(B, D, H, W)``.
        weight: Weight of the linear head ``(K, D)``, or of a 1x1 convolution ``(K, D, 1, 1)``.
        bias: ``(K,)``, or None.

    Returns:
        ``(B, K, H, W)``; the spatial means are the logits of the plain head.

    Raises:
        ValueError: The shapes do not match, or the map is empty.
    """
    matrix = _matrix(features, weight, bias)
    batch, _, height, width = features.shape
    flat = features.flatten(2)
    maps = matrix @ flat if bias is None else torch.baddbmm(bias[:, None], matrix.expand(batch, -1, -1), flat)
    return maps.view(batch, len(matrix), height, width)


def class_map_at(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return the map of one class per image, without computing the other maps.

    Args:
        features, weight, bias: As in ``class_activation_maps``.
        labels: Class of each image, int64 ``(B,)``.

    Returns:
        ``(B, H, W)``.

    Raises:
        ValueError: As in ``class_activation_maps``; or ``labels`` have another shape or dtype or are not classes.
    """
    matrix = _matrix(features, weight, bias)
    check_class_labels(labels, len(features), len(matrix))
    maps = torch.einsum("bdhw,bd->bhw", features, matrix[labels])
    return maps if bias is None else maps + bias[labels, None, None]


def cam_logits(maps: Tensor) -> Tensor:
    """Return the spatial mean, ``(B, K, H, W)`` to ``(B, K)``, in at least float32 (boosted maps reach thousands).

    Raises:
        ValueError: The maps are not 4-D, or empty.
    """
    if maps.ndim != 4 or 0 in maps.shape[2:]:
        raise ValueError(f"maps must be (B, K, H, W) with H and W at least 1, got {tuple(maps.shape)}")
    return maps.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))


def check_class_labels(labels: Tensor, batch: int, num_classes: int) -> None:
    """Raise if labels are not one class per image.

    Raises:
        ValueError: The dtype or shape differs, or a value is outside 0..K-1.
    """
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"labels must be int64 ({batch},), one for each image, got {labels.dtype} {_shape(labels)}")
    if batch:
        check_label_range(labels, num_classes)


def _matrix(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if features.ndim != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features must be a map (B, D, H, W) with H and W at least 1, got {_shape(features)}")
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
