"""What every regressor does besides its own architecture."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

LOG_VARIANCE_LIMIT = 10.0


class Regressor(nn.Module, ABC):
    """Mean and log-variance of standardised targets.

    The input is standardised by statistics that the network carries, so that it takes what the data set gives; before
    ``standardise_inputs`` they change nothing.

    Args:
        num_inputs: Channels of the input, its first axis after the example's.
        log_variance_limit: Log-variances are cut to plus and minus this, for exp(-log-variance) not to overflow.

    Raises:
        ValueError: No channel, or a limit that is not positive.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(self, num_inputs: int, log_variance_limit: float = LOG_VARIANCE_LIMIT) -> None:
        super().__init__()
        if num_inputs < 1:
            raise ValueError(f"num_inputs must be at least 1, got {num_inputs}")
        if not 0 < log_variance_limit < math.inf:
            raise ValueError(f"log_variance_limit must be positive and finite, got {log_variance_limit}")
        self.log_variance_limit = log_variance_limit
        self.register_buffer("input_mean", torch.zeros(num_inputs))
        self.register_buffer("input_std", torch.ones(num_inputs))

    def standardise_inputs(self, mean: Tensor, std: Tensor) -> None:
        """Have every input reduced by its channel's mean and divided by its std.

        Args:
            mean, std: One number for each channel; std positive.

        Raises:
            ValueError: Another number of them, NaN or infinity, a std that is not positive.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.input_mean.shape or not bool(torch.isfinite(values).all()):
                raise ValueError(
                    f"{name} must be {tuple(self.input_mean.shape)} finite numbers, one a channel, got "
                    f"{tuple(values.shape)}"
                )
        if not bool((std > 0).all()):
            raise ValueError("std must be positive: divide channels that never change by 1")
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of ``input (B, C, ...)``; the log-variance has one channel where all share it."""
        if input.ndim < 2 or input.shape[1] != len(self.input_mean):
            raise ValueError(f"input must be (B, {len(self.input_mean)}, ...), got {tuple(input.shape)}")
        channels = (-1, *(1,) * (input.ndim - 2))
        mean, log_variance = self.answer((input - self.input_mean.view(channels)) / self.input_std.view(channels))
        return mean, log_variance.clamp(-self.log_variance_limit, self.log_variance_limit)

    @abstractmethod
    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, not yet clamped, of a standardised input: the architecture itself."""


def zero_bias(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    """Begin with a log-variance of about 0: the std of standardised targets."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_widths(widths: tuple[int, ...]) -> None:
    """Refuse layers without a unit, and no layer at all.

    Raises:
        ValueError: Either.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be at least one number, each at least 1, got {widths}")
