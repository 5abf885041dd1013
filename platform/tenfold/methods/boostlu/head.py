"""Boosted CAM head, which replaces global pooling and the linear layer of a classifier."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.boostlu.boost import boostlu, check_alpha
from tenfold.methods.boostlu.pooling import boosted_logits
from tenfold.models import activation_maps

Mode = Literal["both", "train", "inference", "none"]
MODES: tuple[Mode, ...] = get_args(Mode)


class BoostedCAMHead(nn.Module):
    """Class activation maps by a 1x1 convolution, with boosted positive scores, averaged over space to logits.

    Parameters are ``weight`` ``(K, D)`` and ``bias`` ``(K,)``, initialised as in ``nn.Linear``. Factor and mode are
    part of the state dict, as one tensor: with another factor the same weights are a different model.

    Args:
        in_channels: Channels D of the feature map.
        num_classes: Classes K.
        alpha: Factor of positive scores, positive and finite.
        mode: Phases in which the boost applies: ``both`` (the method), only ``train`` or ``inference``, or ``none``.

    Raises:
        ValueError: If a size is below 1, alpha is out of range, or the mode is unknown.
    """

    alpha: float
    mode: Mode

    def __init__(self, in_channels: int, num_classes: int, alpha: float = 5.0, mode: Mode = "both") -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 1:
            raise ValueError(f"in_channels and num_classes must be at least 1, got {in_channels} and {num_classes}")
        self.set_boost(alpha, mode)
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels))
        self.bias = nn.Parameter(torch.empty(num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise weight and bias, uniform within 1 / sqrt(D)."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def set_boost(self, alpha: float, mode: Mode) -> None:
        """Set factor and mode.

        Raises:
            ValueError: If alpha is out of range or the mode is unknown.
        """
        check_alpha(alpha)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.alpha, self.mode = float(alpha), mode

    @property
    def effective_alpha(self) -> float:
        """Factor used by ``forward`` in the current phase (training or evaluation); 1 if the boost does not apply."""
        applies = self.mode == "both" or self.mode == ("train" if self.training else "inference")
        return self.alpha if applies else 1.0

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits ``(B, K)``, at least float32, of a feature map ``(B, D, H, W)``.

        Raises:
            ValueError: If the shape is wrong or the map has no locations.
        """
        channels = self.weight.shape[1]
        if features.ndim != 4 or features.shape[1] != channels or 0 in features.shape[2:]:
            raise ValueError(
                f"features must be a map (B, {channels}, H, W) with at least one location, got {tuple(features.shape)}"
            )
        alpha = self.effective_alpha
        if alpha == 1:
            dtype = torch.promote_types(features.dtype, torch.float32)
            pooled = features.mean((2, 3), dtype=dtype).to(features.dtype)
            return functional.linear(pooled, self.weight, self.bias).to(dtype)
        return boosted_logits(features, self.weight, self.bias, alpha)

    def cam(self, features: Tensor, boosted: bool = True, include_bias: bool = True) -> Tensor:
        """Compute the class activation maps of all classes.

        Args:
            features: ``(B, D, H, W)``.
            boosted: The maps that ``forward`` would average in the current phase; False: the raw maps.
            include_bias: Whether the bias is added (before the boost). Without it the mean differs from the logits.

        Returns:
            ``(B, K, H, W)``.

        Raises:
            ValueError: If the shape is wrong or the map has no locations.
        """
        maps = activation_maps.class_activation_maps(features, self.weight, self.bias if include_bias else None)
        return self._boost(maps) if boosted else maps

    def cam_at(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute ``cam(features)`` for one class per image, without the maps of the others.

        Args:
            features: ``(B, D, H, W)``.
            labels: int64 ``(B,)``.

        Returns:
            ``(B, H, W)``.

        Raises:
            ValueError: If the shape is wrong, the map has no locations, or a label is not a class.
        """
        return self._boost(activation_maps.class_map_at(features, self.weight, self.bias, labels))

    def get_extra_state(self) -> Tensor:
        """Return factor and mode index as one tensor, since weight files hold only tensors."""
        return torch.tensor([self.alpha, MODES.index(self.mode)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state of ``get_extra_state``.

        Raises:
            ValueError: If it is not a factor and a mode.
        """
        if not isinstance(state, Tensor) or state.shape != (2,) or state[1] not in range(len(MODES)):
            raise ValueError(f"state must be a tensor (2,) of factor and mode 0..{len(MODES) - 1}, got {state}")
        self.set_boost(float(state[0]), MODES[int(state[1])])

    def extra_repr(self) -> str:
        classes, channels = self.weight.shape
        return f"in_channels={channels}, num_classes={classes}, alpha={self.alpha:g}, mode={self.mode}"

    def _boost(self, maps: Tensor) -> Tensor:
        alpha = self.effective_alpha
        return maps if alpha == 1 else boostlu(maps, alpha)
