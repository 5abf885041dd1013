"""Convolutions along time with two heads, for trajectories."""

import itertools

from torch import Tensor, nn

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, Regressor, check_widths, zero_bias


class Cnn1dRegressor(Regressor):
    """``(B, C, T)`` to mean and log-variance ``(B, targets, T)``: layers of five taps, padded, and heads of one tap.

    Args:
        num_inputs: C.
        num_targets: Channels of the targets.
        widths: Of the layers.
        dropout: After each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: No layer, or a layer without a channel.
    """

    def __init__(
        self,
        num_inputs: int,
        num_targets: int,
        *,
        widths: tuple[int, ...] = (128, 128, 128),
        dropout: float = 0.0,
        log_variance_limit: float = LOG_VARIANCE_LIMIT,
    ) -> None:
        super().__init__(num_inputs, log_variance_limit)
        check_widths(widths)
        self.layers = nn.ModuleList(
            nn.Conv1d(*pair, kernel_size=5, padding=2) for pair in itertools.pairwise((num_inputs, *widths))
        )
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.mean_head = nn.Conv1d(widths[-1], num_targets, kernel_size=1)
        self.log_variance_head = nn.Conv1d(widths[-1], num_targets, kernel_size=1)
        zero_bias(self.log_variance_head)

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        hidden = standardised
        for layer in self.layers:
            hidden = self.dropout(self.activation(layer(hidden)))
        return self.mean_head(hidden), self.log_variance_head(hidden)
