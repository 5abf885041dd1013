"""The realigner: a small network that updates the concepts that nobody has corrected yet.

Singhi, Kim, Roth and Akata, "Improving Intervention Efficacy via Concept Realignment in Concept Bottleneck Models",
ECCV 2024, section 3: ``u = mask * value + (1 - mask) * sigmoid(network(input))``.
Shapes: B images, T steps, K concepts.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

KINDS = ("mlp", "lstm", "gru", "rnn")
"""Networks: fully connected, or recurrent over the corrections."""
INPUT_FORMATS = ("original", "previous")
"""What the network reads: the predictions with all corrections so far, or its own last output with the newest."""

_ROWS_AT_ONCE = 512
"""Rows of a block of ``mlp`` in evaluation mode."""

_RECURRENT: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Realigner(Protocol):
    """Updates concepts after corrections; whatever has this call can stand in for the network.

    A realigner whose output depends on ``value`` only where ``mask`` is 1 says so with an attribute ``reads_previous``
    that is False: its rollouts then need no loop over the steps.
    """

    def __call__(self, value: Tensor, mask: Tensor, c_hat: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the concepts, in the shape of ``value``, equal to it where ``mask`` is 1, and the next state.

        Args:
            value: Concepts with all corrections so far, ``(B, K)`` or, for all steps at once, ``(B, T, K)``.
            mask: 1 where a concept is corrected, in the shape of ``value``.
            c_hat: Predictions ``(B, K)``, or in the shape of ``value``.
            state: What the call for the step before returned; None at the first step.
        """
        ...


class ConceptRealigner(nn.Module):
    """The network of the paper.

    Weights of two or more dimensions are initialised Xavier-uniform, biases 0. ``mlp`` has no memory: the steps of
    ``(B, T, K)`` are rows of one batch, over which training takes its batch statistics.

    Args:
        n_concepts: K.
        kind: ``mlp`` (blocks of linear layer, batch norm, ReLU and dropout, and a linear layer), ``lstm``, ``gru`` or
            ``rnn`` (a recurrent network, and a linear layer).
        hidden: Width of the hidden layers; None: 2 K.
        layers: Number of hidden layers, at least 1.
        dropout: Of the blocks of ``mlp``, in [0, 1).
        input_format: ``original``: predictions, replaced by ``value`` where corrected; ``previous``: ``value``.

    Raises:
        ValueError: An argument out of its range, or an unknown kind or format.
    """

    def __init__(
        self,
        n_concepts: int,
        kind: str = "mlp",
        hidden: int | None = None,
        layers: int = 2,
        dropout: float = 0.2,
        input_format: str = "original",
    ) -> None:
        super().__init__()
        hidden = 2 * n_concepts if hidden is None else hidden
        for name, number in (("n_concepts", n_concepts), ("hidden", hidden), ("layers", layers)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        for name, value, allowed in (("kind", kind, KINDS), ("input_format", input_format, INPUT_FORMATS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        self.n_concepts, self.kind, self.input_format = n_concepts, kind, input_format
        if kind == "mlp":
            blocks: list[nn.Module] = []
            for number in range(layers):
                width = n_concepts if number == 0 else hidden
                blocks += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            self.hidden: nn.Module = nn.Sequential(*blocks)
        else:
            self.hidden = _RECURRENT[kind](n_concepts, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, n_concepts)
        for name, weight in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(weight)
            elif weight.ndim >= 2:
                nn.init.xavier_uniform_(weight)

    @property
    def reads_previous(self) -> bool:
        """Whether the output depends on concepts that are not corrected, other than the predictions."""
        return self.input_format == "previous"

    def forward(self, value: Tensor, mask: Tensor, c_hat: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return realigned concepts in [0, 1], and the state of a recurrent network (None for ``mlp``).

        Args:
            value: Concepts with all corrections so far, ``(B, K)`` or ``(B, T, K)``.
            mask: 1 where a concept is corrected, in the shape of ``value``; the output equals ``value`` there.
            c_hat: Predictions ``(B, K)``, or in the shape of ``value``.
            state: State after the step before; None: zeros.

        Raises:
            ValueError: Another K, or shapes that don't fit.
        """
        c_hat = check_call(value, mask, c_hat, self.n_concepts)
        mask = mask.to(value.dtype)
        if self.kind != "mlp":
            inputs = value if self.reads_previous else pin(c_hat, value, mask)
            features, state = self.hidden(inputs[:, None] if value.ndim == 2 else inputs, state)
            return pin(self.output(features).view(value.shape).sigmoid(), value, mask), state
        # Batch statistics need all rows at once; without them, blocks whose features fit a cache are twice as fast.
        rows = len(value) if self.training else max(1, _ROWS_AT_ONCE * self.n_concepts // max(1, value[:1].numel()))
        if len(value) <= rows:
            return self._memoryless(value, mask, c_hat), None
        blocks = zip(value.split(rows), mask.split(rows), c_hat.split(rows), strict=True)
        return torch.cat([self._memoryless(*block) for block in blocks]), None

    def _memoryless(self, value: Tensor, mask: Tensor, c_hat: Tensor) -> Tensor:
        inputs = value if self.reads_previous else pin(c_hat, value, mask)
        features = self.hidden(inputs.reshape(-1, self.n_concepts))
        return pin(self.output(features).view(value.shape).sigmoid(), value, mask)


def pin(concepts: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return ``value`` where ``mask`` is 1, exactly, and ``concepts`` where it is 0; all finite, of one dtype.

    ``torch.where`` would need a boolean mask and is several times slower on a CPU.
    """
    return torch.lerp(concepts, value, mask)


def check_call(value: Tensor, mask: Tensor, c_hat: Tensor, num_concepts: int) -> Tensor:
    """Check the shapes of a realigner's arguments and return ``c_hat`` in a shape that broadcasts with ``value``.

    Raises:
        ValueError: Another K, or shapes that don't fit.
    """
    if value.ndim not in (2, 3) or value.shape[-1] != num_concepts:
        raise ValueError(f"value must be (B, K) or (B, T, K) with K = {num_concepts}, got {tuple(value.shape)}")
    if mask.shape != value.shape:
        raise ValueError(f"mask must be like value {tuple(value.shape)}, got {tuple(mask.shape)}")
    if c_hat.ndim == 2 and value.ndim == 3:
        c_hat = c_hat[:, None]
    if (
        c_hat.ndim != value.ndim
        or c_hat.shape[0] != len(value)
        or c_hat.shape[-1] != num_concepts
        or (value.ndim == 3 and c_hat.shape[1] not in (1, value.shape[1]))
    ):
        raise ValueError(f"c_hat must be (B, K) or like value {tuple(value.shape)}, got {tuple(c_hat.shape)}")
    return c_hat
