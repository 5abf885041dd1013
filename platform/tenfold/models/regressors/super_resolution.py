"""Super-resolution networks with a log-variance per pixel.

``SuperResolver`` is the generator of SRGAN (Ledig et al., CVPR 2017) with the heads of BayesCap (Upadhyay et al., ECCV
2022); ``SmallSuperResolver`` corrects a bicubic upsampling and trains in seconds.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, Regressor, StackRegressor, check_widths, zero_bias


class SuperResolver(Regressor):
    """``(B, C, H, W)`` to mean ``(B, targets, sH, sW)`` and log-variance ``(B, 1, sH, sW)``.

    Args:
        num_inputs: C.
        num_targets: Channels of the targets.
        upscale: s, a power of two.
        width: Channels of all layers.
        num_blocks: Number of residual blocks.
        dropout: Dropout probability after each residual block.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: ``upscale`` is not a power of two, or there is no block or no channel.
    """

    def __init__(
        self,
        num_inputs: int,
        num_targets: int,
        *,
        upscale: int = 4,
        width: int = 64,
        num_blocks: int = 16,
        dropout: float = 0.0,
        log_variance_limit: float = LOG_VARIANCE_LIMIT,
    ) -> None:
        super().__init__(num_inputs, log_variance_limit)
        check_widths((width,))
        if upscale < 1 or upscale & (upscale - 1):
            raise ValueError(f"upscale must be a power of two, got {upscale}")
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.stem = nn.Sequential(nn.Conv2d(num_inputs, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.trunk = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.dropout = nn.Dropout(dropout)
        doublings = upscale.bit_length() - 1
        self.enlarge = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
                for _ in range(doublings)
            )
        )
        self.mean_head = nn.Conv2d(width, num_targets, 9, padding=4)
        self.log_variance_head = nn.Sequential(
            nn.Conv2d(width, width, 9, padding=4),
            nn.PReLU(),
            nn.Conv2d(width, width, 9, padding=4),
            nn.PReLU(),
            nn.Conv2d(width, 1, 9, padding=4),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                zero_bias(module)

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        first = self.stem(standardised)
        hidden = first
        for block in self.blocks:
            hidden = self.dropout(block(hidden))
        large = self.enlarge(first + self.trunk(hidden))
        return self.mean_head(large), self.log_variance_head(large)


class SmallSuperResolver(StackRegressor):
    """Bicubic upsampling plus a learned correction: mean and log-variance ``(B, C, sH, sW)`` of ``(B, C, H, W)``.

    Inputs must be standardised like the targets, so that the upsampled input is a first estimate of them.

    Args:
        num_channels: C, of input and targets.
        upscale: s, at least 1.
        widths: Channels of the 3 x 3 convolutions.
        dropout: Dropout probability after each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: ``upscale`` is below 1, there is no layer, or a layer has no channel.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        upscale: int = 4,
        widths: tuple[int, ...] = (32, 32, 32),
        dropout: float = 0.0,
        log_variance_limit: float = LOG_VARIANCE_LIMIT,
    ) -> None:
        super().__init__(
            (num_channels, *widths),
            num_channels,
            layer=partial(nn.Conv2d, kernel_size=3, padding=1),
            head=partial(nn.Conv2d, kernel_size=1),
            activation=nn.ReLU(),
            dropout=dropout,
            log_variance_limit=log_variance_limit,
        )
        if upscale < 1:
            raise ValueError(f"upscale must be at least 1, got {upscale}")
        self.upscale = upscale

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        size = (standardised.shape[2] * self.upscale, standardised.shape[3] * self.upscale)
        upsampled = functional.interpolate(standardised, size, mode="bicubic")
        correction, log_variance = super().answer(upsampled)
        return upsampled + correction, log_variance


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)
