"""Construction of the regressor that a configuration selects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, check_widths
from tenfold.models.regressors.cnn1d import Cnn1dRegressor
from tenfold.models.regressors.egnn import EgnnRegressor
from tenfold.models.regressors.mlp import Activation, MlpRegressor
from tenfold.models.regressors.super_resolution import SmallSuperResolver, SuperResolver
from tenfold.models.regressors.unet import WIDTHS, UNetRegressor
from tenfold.tasks import Slot

RegressorName = Literal["mlp", "cnn1d", "cnn2d_sr", "cnn2d_sr_small", "unet2d", "egnn"]
_REFERENCE_WIDTHS: dict[str, tuple[int, ...]] = {
    "mlp": (64, 64),
    "cnn1d": (128, 128, 128),
    "cnn2d_sr": (64,),
    "cnn2d_sr_small": (32, 32, 32),
    "unet2d": WIDTHS,
    "egnn": (128,),
}
_AXES = {"mlp": 1, "cnn1d": 2, "cnn2d_sr": 3, "cnn2d_sr_small": 3, "unet2d": 3}
MOLECULE = ("features", "positions", "n_atoms")
"""Inputs of ``egnn``."""


@dataclass(frozen=True, kw_only=True)
class RegressorConfig:
    """Architecture and size of the network."""

    name: RegressorName = "mlp"
    """``mlp`` for rows ``(F,)``; ``cnn1d`` for series ``(C, T)``; ``cnn2d_sr`` and ``cnn2d_sr_small`` for images
    ``(C, H, W)`` in super-resolution; ``unet2d`` for image-to-image translation at one size; ``egnn`` for molecules."""
    widths: tuple[int, ...] | None = None
    """Units or channels of each layer (one number for all in ``cnn2d_sr`` and ``egnn``); None: the published size."""
    depth: int | None = None
    """Residual blocks of ``cnn2d_sr`` (16), layers of ``egnn`` (7), cascaded U-Nets of ``unet2d`` (1); None: these."""
    dropout: float = 0.0
    """Dropout probability, in training and in MC dropout; in [0, 1)."""
    upscale: int = 4
    """Upscaling factor per axis of ``cnn2d_sr`` and ``cnn2d_sr_small``."""
    activation: Activation = "tanh"
    """Activation of ``mlp``."""
    first_layer_range: float | None = None
    """First layer of ``mlp``: initialised uniformly within plus and minus this; None: PyTorch's initialisation."""
    attention: bool = True
    """Attention weights on the messages of ``egnn``."""
    log_variance_limit: float = LOG_VARIANCE_LIMIT
    """Log-variances of standardised targets are clamped to plus and minus this."""

    def __post_init__(self) -> None:
        if self.name not in _REFERENCE_WIDTHS:
            raise ValueError(f"name must be one of {', '.join(_REFERENCE_WIDTHS)}, got {self.name!r}")
        if self.widths is not None:
            check_widths(tuple(self.widths))
            if self.name in ("cnn2d_sr", "egnn") and len(self.widths) != 1:
                raise ValueError(f"widths must be one number for {self.name}, got {tuple(self.widths)}")
            if self.name == "unet2d" and len(self.widths) < 2:
                raise ValueError(f"widths must be at least two for unet2d, got {tuple(self.widths)}")
        if self.depth is not None and (self.depth < 1 or self.name not in ("cnn2d_sr", "unet2d", "egnn")):
            raise ValueError(
                f"depth must be at least 1, and null for mlp, cnn1d and cnn2d_sr_small, "
                f"got {self.depth} for {self.name}; widths has one number for each of their layers"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.upscale < 1 or (self.name == "cnn2d_sr" and self.upscale & (self.upscale - 1)):
            raise ValueError(f"upscale must be at least 1, and a power of two for cnn2d_sr, got {self.upscale}")
        for field in ("first_layer_range", "log_variance_limit"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field} must be positive and finite, got {value}")


def build_regressor(config: RegressorConfig, inputs: Sequence[Slot], num_targets: int) -> nn.Module:
    """Build the network with random weights.

    Args:
        config: Settings of the network.
        inputs: Schemas of its inputs, in the order of the call.
        num_targets: Channels of the targets.

    Returns:
        Module that maps a batch of each input to mean ``(B, num_targets, ...)`` and log-variance, of the same shape or
        with one channel for all targets.

    Raises:
        ValueError: The network takes other inputs, or cannot have so many targets.
    """
    if num_targets < 1:
        raise ValueError(f"num_targets must be at least 1, got {num_targets}")
    num_inputs = _input_channels(config.name, inputs)
    widths = _REFERENCE_WIDTHS[config.name] if config.widths is None else tuple(config.widths)
    dropout, limit = config.dropout, config.log_variance_limit
    if config.name == "mlp":
        return MlpRegressor(
            num_inputs,
            num_targets,
            widths=widths,
            activation=config.activation,
            first_layer_range=config.first_layer_range,
            dropout=dropout,
            log_variance_limit=limit,
        )
    if config.name == "cnn1d":
        return Cnn1dRegressor(num_inputs, num_targets, widths=widths, dropout=dropout, log_variance_limit=limit)
    if config.name == "cnn2d_sr":
        return SuperResolver(
            num_inputs,
            num_targets,
            upscale=config.upscale,
            width=widths[0],
            num_blocks=config.depth or 16,
            dropout=dropout,
            log_variance_limit=limit,
        )
    if config.name == "cnn2d_sr_small":
        if num_inputs != num_targets:
            raise ValueError(
                f"cnn2d_sr_small must have as many targets as input channels, got {num_targets} and {num_inputs}; "
                f"use cnn2d_sr"
            )
        return SmallSuperResolver(
            num_inputs, upscale=config.upscale, widths=widths, dropout=dropout, log_variance_limit=limit
        )
    if config.name == "unet2d":
        return UNetRegressor(
            num_inputs,
            num_targets,
            widths=widths,
            num_stages=config.depth or 1,
            dropout=dropout,
            log_variance_limit=limit,
        )
    return EgnnRegressor(
        num_inputs,
        num_targets,
        width=widths[0],
        num_layers=config.depth or 7,
        attention=config.attention,
        dropout=dropout,
        log_variance_limit=limit,
    )


def _input_channels(name: str, inputs: Sequence[Slot]) -> int:
    """Return the features or channels of the network's input."""
    got = ", ".join(f"{each.name} {each.dtype} {each.shape}" for each in inputs) or "none"
    if name == "egnn":
        shapes = tuple(len(each.shape) for each in inputs)
        if tuple(each.name for each in inputs) != MOLECULE or shapes != (2, 2, 0) or inputs[0].shape[1] < 1:
            raise ValueError(f"egnn takes features (N, F), positions (N, 3) and n_atoms (), got {got}")
        return inputs[0].shape[1]
    axes = _AXES[name]
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != axes or inputs[0].shape[0] < 1:
        raise ValueError(
            f"{name} takes one float32 input with {axes} axes after the batch axis, the first of fixed length, "
            f"got {got}"
        )
    return inputs[0].shape[0]
