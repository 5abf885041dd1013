"""Networks that make a picture larger and say where they guess.

``SuperResolver`` is the generator of SRGAN (Ledig et al., CVPR 2017) with the heads of BayesCap (Upadhyay et al., ECCV
2022); ``SmallSuperResolver`` corrects a bicubic enlargement and trains in seconds.
"""

import itertools

from torch import Tensor, nn
from torch.nn import functional

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, Regressor, check_widths, zero_bias


class SuperResolver(Regressor):
    """``(B, C, H, W)`` to mean ``(B, targets, sH, sW)`` and log-variance ``(B, 1, sH, sW)``.

    Args:
        num_inputs: C.
        num_targets: Channels of the targets.
        upscale: s, a power of two.
        width: Channels throughout.
        num_blocks: Residual blocks.
        dropout: After each residual block.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: An upscale that is no power of two, no block, no channel.
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


class SmallSuperResolver(Regressor):
    """Bicubic enlargement plus a correction: mean and log-variance ``(B, C, sH, sW)`` of ``(B, C, H, W)``.

    Inputs must be standardised like the targets, for an enlarged input to be a first guess of them.

    Args:
        num_channels: C, of input and targets.
        upscale: s, at least 1.
        widths: Of the layers of 3 x 3 taps.
        dropout: After each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: An upscale below 1, no layer, a layer without a channel.
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
        super().__init__(num_channels, log_variance_limit)
        check_widths(widths)
        if upscale < 1:
            raise ValueError(f"upscale must be at least 1, got {upscale}")
        self.upscale = upscale
        self.layers = nn.ModuleList(
            nn.Conv2d(*pair, kernel_size=3, padding=1) for pair in itertools.pairwise((num_channels, *widths))
        )
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.mean_head = nn.Conv2d(widths[-1], num_channels, kernel_size=1)
        self.log_variance_head = nn.Conv2d(widths[-1], num_channels, kernel_size=1)
        zero_bias(self.log_variance_head)

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        size = (standardised.shape[2] * self.upscale, standardised.shape[3] * self.upscale)
        enlarged = functional.interpolate(standardised, size, mode="bicubic")
        hidden = enlarged
        for layer in self.layers:
            hidden = self.dropout(self.activation(layer(hidden)))
        return enlarged + self.mean_head(hidden), self.log_variance_head(hidden)


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
