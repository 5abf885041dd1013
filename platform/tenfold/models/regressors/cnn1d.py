"""One-dimensional convolutional network with two heads, for time series."""

from functools import partial

from torch import nn

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, StackRegressor


class Cnn1dRegressor(StackRegressor):
    """``(B, C, T)`` to mean and log-variance ``(B, targets, T)``: padded convolutions of width 5, heads of width 1.

    Args:
        num_inputs: C.
        num_targets: Channels of the targets.
        widths: Channels of the layers.
        dropout: Dropout probability after each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: There is no layer, or a layer has no channel.
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
        super().__init__(
            (num_inputs, *widths),
            num_targets,
            layer=partial(nn.Conv1d, kernel_size=5, padding=2),
            head=partial(nn.Conv1d, kernel_size=1),
            activation=nn.ReLU(),
            dropout=dropout,
            log_variance_limit=log_variance_limit,
        )
