"""Residual U-Net with two heads for image-to-image translation, single or cascaded.

As in the public code of "Uncertainty Guided Progressive GANs for Medical Image Translation" (MICCAI 2021): every stage
is one residual block, the decoder upsamples bilinearly.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, Regressor, check_widths, zero_bias

WIDTHS = (64, 128, 256, 512, 512)
_VARIANCE_WIDTH = 128


class ResidualBlock(nn.Module):
    """Residual block A(x) + B(x): A is 3 x 3 convolution, BatchNorm and ReLU three times, B the same once.

    Args:
        in_channels, out_channels: Channels of the block's input and output.
        mid_channels: Channels within A; None: ``out_channels``.

    Raises:
        ValueError: A number of channels is below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, mid_channels: int | None = None) -> None:
        super().__init__()
        mid_channels = out_channels if mid_channels is None else mid_channels
        check_widths((in_channels, mid_channels, out_channels))
        self.double_conv = nn.Sequential(
            *_layer(in_channels, mid_channels), *_layer(mid_channels, mid_channels), *_layer(mid_channels, out_channels)
        )
        self.double_conv1 = nn.Sequential(*_layer(in_channels, out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, in, H, W)`` to ``(B, out, H, W)``."""
        return self.double_conv(features) + self.double_conv1(features)


class UNetRegressor(Regressor):
    """``(B, C, H, W)`` to mean ``(B, targets, H, W)`` and log-variance ``(B, 1, H, W)``.

    Args:
        num_inputs: C.
        num_targets: Channels of the targets.
        widths: Channels of the encoder's stages, each at half the resolution of the previous one.
        num_stages: Cascaded U-Nets; each but the first takes the previous mean plus the input, and only the last has a
            log-variance.
        dropout: Dropout probability after every stage.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: There are fewer than two widths, a width is below 1, there is no U-Net, or a cascade has different
            numbers of input and target channels.
    """

    def __init__(
        self,
        num_inputs: int,
        num_targets: int,
        *,
        widths: tuple[int, ...] = WIDTHS,
        num_stages: int = 1,
        dropout: float = 0.0,
        log_variance_limit: float = LOG_VARIANCE_LIMIT,
    ) -> None:
        super().__init__(num_inputs, log_variance_limit)
        if num_stages < 1:
            raise ValueError(f"num_stages must be at least 1, got {num_stages}")
        if num_stages > 1 and num_inputs != num_targets:
            raise ValueError(
                f"a cascade must have as many targets as input channels, got {num_targets} and {num_inputs}; "
                f"set num_stages=1"
            )
        self.trunks = nn.ModuleList(UNet(num_inputs, widths, dropout) for _ in range(num_stages))
        self.mean_heads = nn.ModuleList(nn.Conv2d(widths[0], num_targets, 1) for _ in range(num_stages))
        self.log_variance_head = nn.Sequential(
            nn.Conv2d(widths[0], _VARIANCE_WIDTH, 1), last := nn.Conv2d(_VARIANCE_WIDTH, 1, 1)
        )
        zero_bias(last)

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunks[0](standardised)
        for trunk, head in zip(list(self.trunks)[1:], self.mean_heads, strict=False):
            features = trunk(head(features) + standardised)
        return self.mean_heads[-1](features), self.log_variance_head(features)


class UNet(nn.Module):
    """``(B, C, H, W)`` to features ``(B, widths[0], H, W)``, both sides a multiple of 2^(stages - 1).

    Args:
        in_channels: C.
        widths: Channels of the encoder's stages; the decoder mirrors them, each stage ending with the width of the next
            skip connection (the last one with ``widths[0]``).
        dropout: Dropout probability after every stage.

    Raises:
        ValueError: There are fewer than two widths, or a width is below 1.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...] = WIDTHS, dropout: float = 0.0) -> None:
        super().__init__()
        check_widths(widths)
        if len(widths) < 2:
            raise ValueError(f"widths must be at least two, one for each resolution, got {widths}")
        self.multiple = 2 ** (len(widths) - 1)
        self.encoder = nn.ModuleList(ResidualBlock(*pair) for pair in itertools.pairwise((in_channels, *widths)))
        self.dropout = nn.Dropout(dropout)
        stages, below = [], widths[-1]
        for level in range(len(widths) - 2, -1, -1):
            wide = below + widths[level]
            below = widths[level - 1] if level else widths[0]
            stages.append(ResidualBlock(wide, below, mid_channels=wide // 2))
        self.decoder = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if images.ndim != 4 or height % self.multiple or width % self.multiple:
            raise ValueError(
                f"images must be (B, C, H, W) with sides that are multiples of {self.multiple}, got "
                f"{tuple(images.shape)}; crop or pad them"
            )
        skips: list[Tensor] = []
        features = images
        for number, stage in enumerate(self.encoder):
            features = self.dropout(stage(functional.max_pool2d(features, 2) if number else features))
            skips.append(features)
        skips.pop()
        for stage in self.decoder:
            features = functional.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
            features = self.dropout(stage(torch.cat([skips.pop(), features], dim=1)))
        return features


def _layer(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
