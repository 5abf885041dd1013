"""MC dropout with one mask per batch (Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


@contextmanager
def shared_dropout(network: nn.Module) -> Iterator[None]:
    """Enable MC dropout within the context: every ``nn.Dropout`` drops the same units for all examples of a batch.

    A forward pass is then one sample of the network's weights, and the output of an example does not depend on the rest
    of its batch. Masks come from torch's global generator, a new one at every call of a layer. All other modules stay
    in evaluation mode.

    Args:
        network: Network in ``eval()``; the first axis of its dropout layers' inputs is the example.

    Raises:
        ValueError: The network has no dropout layer with a positive probability.
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
            del layer.forward  # back to the method of the class


def _drop(probability: float, inputs: Tensor) -> Tensor:
    kept = torch.empty((1, *inputs.shape[1:]), dtype=inputs.dtype, device=inputs.device).bernoulli_(1 - probability)
    return inputs * kept.div_(1 - probability)
