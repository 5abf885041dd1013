"""Dropout that goes on dropping when a network answers (Gal and Ghahramani, ICML 2016), one mask for a whole batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


@contextmanager
def shared_dropout(network: nn.Module) -> Iterator[None]:
    """Within it every ``nn.Dropout`` of a network drops units, the same ones for all examples of a batch.

    So a pass is one draw of the network's weights, and what an example is answered does not depend on its neighbours.
    Masks come from torch's global generator, a new one at every call of a layer. Nothing else is in training mode.

    Args:
        network: In ``eval()``; the first axis of what its dropout layers see is the example.

    Raises:
        ValueError: The network has no dropout layer that drops anything.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    if not layers:
        raise ValueError("mc_dropout needs a network with dropout: set model.dropout, for example to 0.1")
    for layer in layers:
        layer.forward = partial(_drop, layer.p)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # what the class has


def _drop(probability: float, inputs: Tensor) -> Tensor:
    kept = torch.empty((1, *inputs.shape[1:]), dtype=inputs.dtype, device=inputs.device).bernoulli_(1 - probability)
    return inputs * kept.div_(1 - probability)
