"""Base classes of the regressors: standardisation of inputs, clamping of log-variances, a stack of layers."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

LOG_VARIANCE_LIMIT = 10.0
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


class Regressor(nn.Module, ABC):
    """Network that predicts mean and log-variance of standardised targets.

    The network standardises its input itself, with statistics stored among its weights, so that it takes the values of
    the data set; until ``standardise_inputs`` is called, they leave the input unchanged.

    Args:
        num_inputs: Channels of the input, its first axis after the batch axis.
        log_variance_limit: Log-variances are clamped to plus and minus this, so that exp(-log-variance) is finite.

    Raises:
        ValueError: ``num_inputs`` is below 1, or the limit is not positive and finite.
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
        """Set the mean that is subtracted from every input channel, and the std that it is divided by.

        Args:
            mean, std: One number for each channel; std positive.

        Raises:
            ValueError: The shape differs, a value is not finite, or a std is not positive.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.input_mean.shape or not bool(torch.isfinite(values).all()):
                raise ValueError(
                    f"{name} must be {tuple(self.input_mean.shape)} finite numbers, one per channel, got "
                    f"{tuple(values.shape)}"
                )
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive, got {float(std.min())}; use 1 for constant channels")
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of ``input (B, C, ...)``; a shared log-variance has one channel."""
        if input.ndim < 2 or input.shape[1] != len(self.input_mean):
            raise ValueError(f"input must be (B, {len(self.input_mean)}, ...), got {tuple(input.shape)}")
        channels = (-1, *(1,) * (input.ndim - 2))
        mean, log_variance = self.answer((input - self.input_mean.view(channels)) / self.input_std.view(channels))
        return mean, log_variance.clamp(-self.log_variance_limit, self.log_variance_limit)

    @abstractmethod
    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, not yet clamped, for a standardised input: the architecture itself."""


class StackRegressor(Regressor):
    """Stack of layers, each followed by activation and dropout, with a head for the mean and one for the log-variance.

    Args:
        channels: Channels of the input and of every layer.
        num_targets: Channels of the targets.
        layer: Builds a hidden layer from its input and output channels.
        head: Builds a head from its input and output channels.
        activation: Activation after each layer.
        dropout: Dropout probability after each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: There is no layer, a layer has no channel, or as in ``Regressor``.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        num_targets: int,
        *,
        layer: Callable[[int, int], nn.Module],
        head: Callable[[int, int], Layer],
        activation: nn.Module,
        dropout: float,
        log_variance_limit: float,
    ) -> None:
        super().__init__(channels[0], log_variance_limit)
        check_widths(channels[1:])
        self.layers = nn.ModuleList(layer(*pair) for pair in itertools.pairwise(channels))
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.mean_head = head(channels[-1], num_targets)
        self.log_variance_head = head(channels[-1], num_targets)
        zero_bias(self.log_variance_head)

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        hidden = standardised
        for layer in self.layers:
            hidden = self.dropout(self.activation(layer(hidden)))
        return self.mean_head(hidden), self.log_variance_head(hidden)


def zero_bias(layer: Layer) -> None:
    """Zero the bias, so that log-variances start near 0, the std of standardised targets."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def check_widths(widths: tuple[int, ...]) -> None:
    """Raise unless there is at least one width, and each is at least 1.

    Raises:
        ValueError: ``widths`` is empty, or a width is below 1.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be at least one number, each at least 1, got {widths}")
