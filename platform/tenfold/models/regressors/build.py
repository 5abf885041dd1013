"""The regressor that a configuration names."""

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
from tenfold.types import TensorSchema

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
    """Which network, how large."""

    name: RegressorName = "mlp"
    """``mlp`` for rows ``(F,)``; ``cnn1d`` for series ``(C, T)``; ``cnn2d_sr`` and ``cnn2d_sr_small`` for pictures
    ``(C, H, W)`` made larger; ``unet2d`` for pictures turned into others of their size; ``egnn`` for molecules."""
    widths: tuple[int, ...] | None = None
    """Units or channels of the layers (``cnn2d_sr`` and ``egnn`` have one number for all); None: the published size."""
    depth: int | None = None
    """Residual blocks of ``cnn2d_sr`` (16), layers of ``egnn`` (7), U-Nets in a row of ``unet2d`` (1); None: these."""
    dropout: float = 0.0
    """Share of activations that is dropped in training, and in MC dropout; in [0, 1)."""
    upscale: int = 4
    """How much larger, in each direction, ``cnn2d_sr`` and ``cnn2d_sr_small`` make a picture."""
    activation: Activation = "tanh"
    """Of ``mlp``."""
    first_layer_range: float | None = None
    """Of ``mlp``: its first layer begins uniform within plus and minus this; None: PyTorch's own initialisation."""
    attention: bool = True
    """Of ``egnn``: weigh messages."""
    log_variance_limit: float = LOG_VARIANCE_LIMIT
    """Log-variances of standardised targets are cut to plus and minus this."""

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
                f"depth must be at least 1, and null for mlp, cnn1d and cnn2d_sr_small (widths has one number for each "
                f"of their layers); got {self.depth} for {self.name}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.upscale < 1 or (self.name == "cnn2d_sr" and self.upscale & (self.upscale - 1)):
            raise ValueError(f"upscale must be at least 1, a power of two for cnn2d_sr; got {self.upscale}")
        for field in ("first_layer_range", "log_variance_limit"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field} must be positive and finite, got {value}")


def build_regressor(config: RegressorConfig, inputs: Sequence[TensorSchema], num_targets: int) -> nn.Module:
    """The network, with fresh weights.

    Args:
        config: Which.
        inputs: What it is called with, in this order.
        num_targets: Channels of the targets.

    Returns:
        Called with a batch of each input it gives mean ``(B, num_targets, ...)`` and log-variance, of the same shape or
        with one channel for all.

    Raises:
        ValueError: The network takes other inputs, or cannot answer with so many channels.
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
                f"cnn2d_sr_small corrects its enlarged input: input and targets must have as many channels, got "
                f"{num_inputs} and {num_targets}; take cnn2d_sr"
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


def _input_channels(name: str, inputs: Sequence[TensorSchema]) -> int:
    """Features or channels of what the network takes."""
    got = ", ".join(f"{each.name} {each.dtype} {each.shape}" for each in inputs) or "none"
    if name == "egnn":
        shapes = tuple(len(each.shape) for each in inputs)
        if tuple(each.name for each in inputs) != MOLECULE or shapes != (2, 2, 0) or inputs[0].shape[1] < 1:
            raise ValueError(f"egnn takes features (N, F), positions (N, 3) and n_atoms (), got {got}")
        return inputs[0].shape[1]
    axes = _AXES[name]
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != axes or inputs[0].shape[0] < 1:
        raise ValueError(
            f"{name} takes one float32 input with {axes} axes after the example's, the first of a known length; got "
            f"{got}"
        )
    return inputs[0].shape[0]
