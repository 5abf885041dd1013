"""Probabilistic head of CALM, which replaces global pooling and the linear layer of a classifier."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.calm.attribution import Mode, attribution_map
from tenfold.methods.calm.checks import at_least_float32, check_label_shape
from tenfold.methods.calm.distributions import Prior, check_prior, log_class_likelihood, log_joint_at
from tenfold.methods.calm.losses import em_loss, ml_loss

Objective = Literal["em", "ml", "cam"]


class CalmHead(nn.Module):
    """Class scores and attention scores of every location, each by a 1x1 convolution.

    Weights are initialised Xavier-uniform, biases 0.

    Args:
        in_channels: Channels D of the feature map.
        num_classes: Classes C, at least 2.
        mode: Training objective: ``em``, ``ml``, or ``cam``, the baseline, which does not use the attention (its
            weights are frozen).
        prior: phi, ``softplus`` or ``relu``.
        detach_normalizer: Exclude the prior's normaliser from the gradient, as the released code does.

    Raises:
        ValueError: If mode or prior is unknown, or a size is too small.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        mode: Objective = "em",
        prior: Prior = "softplus",
        *,
        detach_normalizer: bool = False,
    ) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 2:
            raise ValueError(
                f"in_channels must be at least 1 and num_classes at least 2, got {in_channels} and {num_classes}"
            )
        if mode not in get_args(Objective):
            raise ValueError(f"mode must be one of {', '.join(get_args(Objective))}, got {mode!r}")
        check_prior(prior)
        self.mode, self.prior, self.detach_normalizer = mode, prior, detach_normalizer
        self.conv_last = nn.Conv2d(in_channels, num_classes, 1)
        self.attention = nn.Conv2d(in_channels, 1, 1)
        for layer in (self.conv_last, self.attention):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        # DDP would wait for weights that never receive a gradient.
        self.attention.requires_grad_(mode != "cam")

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores ``(B, C, H, W)`` and attention scores ``(B, 1, H, W)`` of features ``(B, D, H, W)``."""
        # One convolution for both reads the features, and writes their gradient, once.
        weight = torch.cat([self.conv_last.weight, self.attention.weight])
        assert self.conv_last.bias is not None
        assert self.attention.bias is not None
        bias = torch.cat([self.conv_last.bias, self.attention.bias])
        f, a = functional.conv2d(h, weight, bias).split((self.conv_last.out_channels, 1), dim=1)
        return f, a

    def loss(self, h: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of this head's mode, a scalar in nats.

        Args:
            h: Feature map ``(B, D, H, W)``.
            y: int64 ``(B,)``; values are not checked, to avoid synchronising with the device.

        Raises:
            ValueError: If labels are not int64 ``(B,)``.
        """
        check_label_shape(y, len(h), "y")
        if self.mode == "cam":
            return functional.cross_entropy(self._pooled_scores(h), y)
        f, a = self(h)
        log_joint = log_joint_at(f, a, y, self.prior, self.detach_normalizer)
        return em_loss(log_joint) if self.mode == "em" else ml_loss(log_joint)

    def logits(self, h: Tensor) -> Tensor:
        """Compute logits ``(B, C)`` of p(y|x), at least float32: log p(y|x), or for ``cam`` the mean of f."""
        if self.mode == "cam":
            return self._pooled_scores(h)
        f, a = self(h)
        return log_class_likelihood(f, a, self.prior)

    def probabilities(self, h: Tensor) -> Tensor:
        """Compute p(y|x) ``(B, C)`` in the dtype of h; for ``cam`` the softmax of the mean of f."""
        return self.logits(h).softmax(1).to(h.dtype)

    @torch.no_grad()
    def maps(self, h: Tensor, y: Tensor, mode: Mode, superclasses: Mapping[int, Sequence[int]] | None = None) -> Tensor:
        """Compute ``attribution_map`` of features ``(B, D, H, W)`` and classes int64 ``(B,)``, without gradient."""
        f, a = self(h)
        return attribution_map(f, a, y, mode, superclasses, self.prior)

    def _pooled_scores(self, h: Tensor) -> Tensor:
        """Compute the spatial mean of f from the mean features: f is linear, and this is H W times cheaper."""
        pooled = at_least_float32(h).mean((2, 3), keepdim=True)
        return at_least_float32(self.conv_last(pooled.to(h.dtype))).flatten(1)
