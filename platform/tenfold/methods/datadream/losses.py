"""CLIP logits from text prototypes, and the weighted loss of real and synthetic images.

Kim et al., "DataDream", ECCV 2024. Shapes: B images, C classes, P prompts of a class, D embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.types import check_label_range


def real_synth_cross_entropy(
    logits: Tensor, targets: Tensor, is_real: Tensor, real_weight: float, *, validate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies of the real and of the synthetic rows, averaged separately and then weighted.

    Args:
        logits: ``(B, C)``.
        targets: Integer ``(B,)``, or class probabilities ``(B, C)``.
        is_real: bool ``(B,)``; False for a synthetic image.
        real_weight: Weight lambda of the real part in [0, 1]; the synthetic part has 1 - lambda.
        validate: Check the values of integer targets. This synchronises with the device in every step, so a loop that
            has checked its labels once passes False; shapes are always checked.

    Returns:
        Total, real part and synthetic part, each ``()`` in the dtype of the logits. In a batch without one of the two,
        the other keeps its weight; the missing part adds 0 to the total and is reported as NaN.

    Raises:
        ValueError: The batch is empty, shapes or dtypes do not fit, the weight is outside [0, 1], or a label is outside
            0..C-1.
    """
    if not 0 <= real_weight <= 1:  # also false for NaN
        raise ValueError(f"real_weight must lie in [0, 1], got {real_weight}")
    if logits.ndim != 2 or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating and (B, C), not empty, got {logits.dtype} {tuple(logits.shape)}")
    batch, num_classes = logits.shape
    if is_real.shape != (batch,) or is_real.dtype != torch.bool:
        raise ValueError(f"is_real must be bool ({batch},), got {is_real.dtype} {tuple(is_real.shape)}")
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise ValueError(f"soft targets must be {tuple(logits.shape)}, got {tuple(targets.shape)}")
        targets = targets.to(logits.dtype)
    else:
        if targets.shape != (batch,) or targets.dtype == torch.bool or targets.is_complex():
            raise ValueError(f"targets must be integer ({batch},), got {targets.dtype} {tuple(targets.shape)}")
        if validate:
            check_label_range(targets, num_classes)
        targets = targets.to(torch.int64)
    losses = functional.cross_entropy(logits, targets, reduction="none")  # (B,)
    sums, counts = [], []
    for mask in (is_real, ~is_real):
        # Not losses[mask], whose length would have to be known on the host.
        sums.append(torch.where(mask, losses, 0).sum())
        counts.append(mask.sum())
    shares = [total / count.clamp(min=1) for total, count in zip(sums, counts, strict=True)]
    total = real_weight * shares[0] + (1 - real_weight) * shares[1]
    return total, sums[0] / counts[0], sums[1] / counts[1]  # 0 / 0 is the NaN promised


def text_prototypes(features: Tensor, *, validate: bool = True) -> Tensor:
    """Unit vector of each class: the normalised mean of its prompts' unit vectors.

    Args:
        features: Output of the text tower, ``(C, P, D)``, not normalised.
        validate: Check for zero vectors, which synchronises with the device.

    Returns:
        ``(C, D)``, with gradients to the features.

    Raises:
        ValueError: ``features`` is not ``(C, P, D)`` or is empty, or a feature or a class mean is zero.
    """
    if features.ndim != 3 or features.numel() == 0:
        raise ValueError(f"features must be (C, P, D) and not empty, got {tuple(features.shape)}")
    means = _unit(features, "features", validate).mean(dim=1)
    return _unit(means, "the mean over a class's prompts", validate)


def clip_logits(image: Tensor, prototypes: Tensor, log_scale: Tensor, *, validate: bool = True) -> Tensor:
    """Cosine similarity of each image to each class, times CLIP's inverse temperature.

    Args:
        image: Output of the image tower, ``(B, D)``, not normalised.
        prototypes: Unit vectors ``(C, D)`` from ``text_prototypes``.
        log_scale: Natural logarithm of the inverse temperature (about log 100), ``()``.
        validate: Check for zero vectors, which synchronises with the device.

    Returns:
        ``(B, C)``.

    Raises:
        ValueError: Shapes do not fit, or an image or a prototype is the zero vector.
    """
    if image.ndim != 2 or prototypes.ndim != 2 or image.shape[1] != prototypes.shape[1] or log_scale.ndim != 0:
        shapes = ", ".join(str(tuple(part.shape)) for part in (image, prototypes, log_scale))
        raise ValueError(f"image, prototypes and log_scale must be (B, D), (C, D) and (), got {shapes}")
    if validate:
        _refuse_zeros(prototypes.norm(dim=-1), "prototypes")
    return log_scale.exp() * _unit(image, "image", validate) @ prototypes.T


def _unit(vectors: Tensor, what: str, validate: bool) -> Tensor:
    lengths = vectors.norm(dim=-1, keepdim=True)
    if validate:
        _refuse_zeros(lengths, what)
    return vectors / lengths


def _refuse_zeros(lengths: Tensor, what: str) -> None:
    if (lengths == 0).any():
        raise ValueError(f"{what} must have no zero vector, which has no direction to compare")
