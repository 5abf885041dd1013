"""A perceptron with two heads, for rows of a table."""

import itertools
from typing import Literal

from torch import Tensor, nn

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, Regressor, check_widths, zero_bias

Activation = Literal["tanh", "relu"]


class MlpRegressor(Regressor):
    """``(B, F)`` to mean and log-variance ``(B, C)``.

    Args:
        num_inputs: F.
        num_targets: C.
        widths: Of the hidden layers.
        activation: After each of them.
        first_layer_range: Weights and biases of the first layer are uniform within plus and minus this; None: PyTorch's
            own. A large range lets the network begin with high frequencies of its input.
        dropout: After each activation.
        log_variance_limit: As in ``Regressor``.

    Raises:
        ValueError: No layer, or a layer without a unit.
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
        super().__init__(num_inputs, log_variance_limit)
        check_widths(widths)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise((num_inputs, *widths)))
        self.activation = nn.Tanh() if activation == "tanh" else nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.mean_head = nn.Linear(widths[-1], num_targets)
        self.log_variance_head = nn.Linear(widths[-1], num_targets)
        zero_bias(self.log_variance_head)
        if first_layer_range is not None:
            for parameter in self.layers[0].parameters():
                nn.init.uniform_(parameter, -first_layer_range, first_layer_range)

    def answer(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        hidden = standardised
        for layer in self.layers:
            hidden = self.dropout(self.activation(layer(hidden)))
        return self.mean_head(hidden), self.log_variance_head(hidden)
