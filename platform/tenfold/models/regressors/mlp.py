"""Multilayer perceptron with two heads, for tabular data."""

from typing import Literal

from torch import nn

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, StackRegressor

Activation = Literal["tanh", "relu"]


class MlpRegressor(StackRegressor):
    """``(B, F)`` to mean and log-variance ``(B, C)``.

    Args:
        num_inputs: F.
        num_targets: C.
        widths: Units of the hidden layers.
        activation: Activation after each of them.
        first_layer_range: Weights and biases of the first layer are initialised uniformly within plus and minus this;
            None: PyTorch's initialisation. A large range gives the initial network high frequencies of its input.
        dropout: Dropout probability after each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: There is no layer, or a layer has no unit.
    """

    def __init__(
        self,
        num_inputs: int,
        num_targets: int,
        *,
        widths: tuple[int, ...] = (64, 64),
        activation: Activation = "tanh",
        first_layer_range: float | None = None,
        dropout: float = 0.0,
        log_variance_limit: float = LOG_VARIANCE_LIMIT,
    ) -> None:
        super().__init__(
            (num_inputs, *widths),
            num_targets,
            layer=nn.Linear,
            head=nn.Linear,
            activation=nn.Tanh() if activation == "tanh" else nn.ReLU(),
            dropout=dropout,
            log_variance_limit=log_variance_limit,
        )
        if first_layer_range is not None:
            for parameter in self.layers[0].parameters():
                nn.init.uniform_(parameter, -first_layer_range, first_layer_range)
