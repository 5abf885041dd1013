"""Memory-efficient boosted pooling: logits without storing the maps, for thousands of classes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def boosted_logits(features: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
    """Compute the spatial mean of ``boostlu(maps, alpha)`` for the class activation maps of a linear head.

    Equal to ``cam_logits(class_activation_maps(features, weight, bias, alpha))``, which stores two tensors of the size
    of the maps for the backward pass; this stores one boolean per score (its sign). Means are computed in at least
    float32: boosted scores reach thousands.

    Args:
        features: ``(B, D, H, W)``.
        weight: ``(K, D)``.
        bias: ``(K,)``.
        alpha: Positive and finite.

    Returns:
        ``(B, K)``, at least float32.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        # Autocast does not apply inside a custom Function: cast the saved tensors here.
        dtype = torch.get_autocast_dtype(device)
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
    logits: Tensor = _BoostedMean.apply(features.flatten(2), weight, bias, alpha)
    return logits


class _BoostedMean(Function):
    """Boosted mean over the P locations of ``(B, D, P)`` features; twice differentiable."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, alpha: float) -> Tensor:
        maps = torch.baddbmm(bias[:, None], weight.expand(len(features), -1, -1), features)  # (B, K, P)
        ctx.save_for_backward(features, weight, maps > 0)
        ctx.alpha = alpha
        dtype = torch.promote_types(maps.dtype, torch.float32)
        plain = maps.mean(2, dtype=dtype)
        # z = z_plain + (alpha - 1) mean(relu(A)): the maps are overwritten in place.
        return plain.add(maps.relu_().mean(2, dtype=dtype), alpha=alpha - 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, positive = ctx.saved_tensors
        share = (grads[0] / features.shape[2]).to(features.dtype).unsqueeze(2)  # per location, (B, K, 1)
        of_maps = torch.where(positive, ctx.alpha * share, share)  # (B, K, P)
        needs_features, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            weight.T.expand(len(features), -1, -1).bmm(of_maps) if needs_features else None,
            _weight_gradient(of_maps, features) if needs_weight else None,
            of_maps.sum((0, 2)) if needs_bias else None,
            None,
        )


def _weight_gradient(of_maps: Tensor, features: Tensor) -> Tensor:
    """Sum over images and locations, ``(K, D)``, without a ``(K, D)`` matrix per image."""
    if features.is_cuda:  # one product of copies is cheaper than one kernel launch per image
        return torch.einsum("bkp,bdp->kd", of_maps, features)
    return torch.addbmm(features.new_zeros(()), of_maps, features.transpose(1, 2), beta=0)
