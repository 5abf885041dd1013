"""Gradient uncertainty and mean gradient of a batch without materialising per-example gradients ("ghost norms").

For a linear layer with input a and output gradient d the weight gradient is ``d a^T``, so its squared norm is
``|a|^2 |d|^2``. The gradient of a layer applied at T positions (convolutions: unfolded) is a sum of T such products.
Its norm follows from the two T x T Gram matrices, or from the summed products themselves, a few examples at a time,
whichever is cheaper. One forward and one backward pass yield a and d of every layer.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import vmap
from torch.nn import functional

from tenfold.methods.gradient_uncertainty.per_example import (
    Loss,
    check_independent,
    check_pairs,
    gradients_of,
    trained_names,
)
from tenfold.methods.gradient_uncertainty.uncertainty import GradientUncertainty, uncertainty_from_sums

CHUNK_BYTES = 8 * 2**20
"""Largest intermediate of a layer in bytes; larger batches are processed in chunks."""
_WRITE_COST = 8
"""Number of multiplications that cost as much as writing and squaring one element of a gradient."""
_CHECKED_EXAMPLES = 2


class BatchGradient(NamedTuple):
    """Gradient statistics of a batch of B examples, as a step of the sampler needs them."""

    loss: Tensor
    """Mean loss, shape ``()``."""
    mean: dict[str, Tensor]
    """Gradient of the mean loss, in the order of ``named_parameters()``."""
    uncertainty: GradientUncertainty
    squared_norms: Tensor
    """|g_i|^2, float64 ``(B,)``."""
    squares: dict[str, Tensor] | None
    """Element-wise sum over examples of the squared gradient; None if not requested."""


class _Call(NamedTuple):
    """One use of a layer in a forward pass."""

    name: str
    layer: nn.Module
    inputs: Tensor
    edge: GradientEdge
    outputs_shape: torch.Size


class _LayerSums(NamedTuple):
    """Gradient of one parameter: sum over examples, squared norm per example, sum of squares."""

    total: Tensor
    norms: Tensor
    squares: Tensor | None


class BatchGradients:
    """Computes ``BatchGradient`` for one network; its parameters may change between calls, its layers may not.

    Linear and 2-d convolution layers that are used once per pass take the fast path; all other parameters take
    per-example gradients in chunks (the slow path). On the first batch both paths are compared on two examples; layers
    for which they differ, because their weight is also used elsewhere, are moved to the slow path.

    Args:
        module: The network.
        loss_fn: Loss of one example.
        chunk_size: Examples per chunk on the slow path; None: as many as fit ``CHUNK_BYTES`` of gradients.

    Raises:
        ValueError: The network has batch normalisation, active dropout or no trainable parameter.
    """

    def __init__(
        self, module: nn.Module, loss_fn: Loss = functional.cross_entropy, chunk_size: int | None = None
    ) -> None:
        check_independent(module)
        self._module = module
        self._loss_fn = loss_fn
        self._chunk_size = chunk_size
        self._names = trained_names(module)
        self._layers = _own_layers(module)
        self.fast: frozenset[str] | None = None
        """Names of the parameters on the fast path; None before the first batch. The state of a chain includes them, so
        that a resumed chain rounds in the same way."""

    def __call__(self, inputs: Tensor, targets: Tensor, *, squares: bool = False) -> BatchGradient:
        """Compute the statistics of a batch, ``inputs (B, ...)`` and ``targets (B, ...)``, with squares if requested.

        Raises:
            ValueError: No example, or different numbers of inputs and targets.
        """
        check_pairs(inputs, targets)
        if self.fast is None:
            self.fast = self._agreeing(inputs[:_CHECKED_EXAMPLES], targets[:_CHECKED_EXAMPLES])
        loss, sums = self._fast_sums(inputs, targets, self.fast, squares)
        slow = [name for name in self._names if name not in sums]
        if slow:
            sums.update(self._slow_sums(inputs, targets, slow, squares))
        batch = len(inputs)
        norms = torch.stack([sums[name].norms for name in self._names]).sum(0)
        of_sum = torch.stack(
            [torch.linalg.vector_norm(sums[name].total, dtype=torch.float64).square() for name in self._names]
        ).sum()
        return BatchGradient(
            loss=loss / batch,
            mean={name: sums[name].total / batch for name in self._names},
            uncertainty=uncertainty_from_sums(of_sum, norms.sum(), batch),
            squared_norms=norms,
            squares={name: _present(sums[name].squares) for name in self._names} if squares else None,
        )

    def _agreeing(self, inputs: Tensor, targets: Tensor) -> frozenset[str]:
        """Return the parameters for which the fast and the slow path agree."""
        _, fast = self._fast_sums(inputs, targets, None, False)
        if not fast:
            return frozenset()
        exact = gradients_of(self._module, self._loss_fn, inputs, targets, fast, None)
        tolerance = 1e-3 if inputs.dtype != torch.float64 else 1e-9
        return frozenset(
            name
            for name, sums in fast.items()
            if torch.allclose(sums.norms, exact[name].flatten(1).double().square().sum(1), rtol=tolerance, atol=1e-30)
            and torch.allclose(sums.total, exact[name].sum(0), rtol=tolerance, atol=tolerance * _largest(exact[name]))
        )

    def _fast_sums(
        self, inputs: Tensor, targets: Tensor, allowed: frozenset[str] | None, squares: bool
    ) -> tuple[Tensor, dict[str, _LayerSums]]:
        calls, loss = self._forward(inputs, targets)
        wanted = [
            call
            for call in calls
            if any(allowed is None or name in allowed for name, _ in _parameters(call.name, call.layer))
        ]
        if not wanted:
            return loss.detach(), {}
        backward = torch.autograd.grad(loss, [call.edge for call in wanted])
        sums: dict[str, _LayerSums] = {}
        with torch.no_grad():
            for call, gradients in zip(wanted, backward, strict=True):
                of_layer = _layer_sums(call, gradients, squares)
                sums.update({name: value for name, value in of_layer.items() if allowed is None or name in allowed})
        return loss.detach(), sums

    def _forward(self, inputs: Tensor, targets: Tensor) -> tuple[list[_Call], Tensor]:
        """Run the forward pass; return the calls of layers used exactly once, and the sum of the losses."""
        seen: dict[str, list[_Call | None]] = {name: [] for name in self._layers}
        batch = len(inputs)

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
                taken = arguments[0] if len(arguments) == 1 else None
                fits = taken is not None and _fits(layer, taken, outputs, batch)
                # The edge still refers to this output after an in-place activation has overwritten it.
                seen[name].append(
                    _Call(name, layer, taken.detach(), get_gradient_edge(outputs), outputs.shape)
                    if fits and taken is not None
                    else None
                )

            return hook

        handles = [layer.register_forward_hook(watch(name)) for name, layer in self._layers.items()]
        try:
            with torch.enable_grad():
                outputs = self._module(inputs)
                loss = _example_losses(self._loss_fn, outputs, targets).sum()
        finally:
            for handle in handles:
                handle.remove()
        return [calls[0] for calls in seen.values() if len(calls) == 1 and calls[0] is not None], loss

    def _slow_sums(self, inputs: Tensor, targets: Tensor, names: Sequence[str], squares: bool) -> dict[str, _LayerSums]:
        values = dict(self._module.named_parameters())
        bytes_each = sum(values[name].numel() * values[name].element_size() for name in names)
        chunk = self._chunk_size or max(1, CHUNK_BYTES // bytes_each)
        parts: dict[str, list[_LayerSums]] = {name: [] for name in names}
        for at in range(0, len(inputs), chunk):
            rows = slice(at, at + chunk)
            grads = gradients_of(self._module, self._loss_fn, inputs[rows], targets[rows], names, None)
            for name in names:
                parts[name].append(_sums_of(grads[name], squares))
        return {name: _joined(parts[name]) for name in names}


def _own_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers supported by the fast path whose parameters are not shared."""
    uses: dict[int, int] = {}
    for _, value in module.named_parameters(remove_duplicate=False):
        uses[id(value)] = uses.get(id(value), 0) + 1
    found = {}
    for name, layer in module.named_modules():
        # A subclass that overrides forward, or a reparametrised weight, is not supported.
        linear = type(layer).forward is nn.Linear.forward
        convolution = (
            type(layer).forward is nn.Conv2d.forward
            and isinstance(layer, nn.Conv2d)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
        own = list(layer.parameters(recurse=False))
        plain = isinstance(layer._parameters.get("weight"), nn.Parameter)
        alone = all(uses[id(value)] == 1 for value in own)
        if (linear or convolution) and plain and alone and any(value.requires_grad for value in own):
            found[name] = layer
    return found


def _fits(layer: nn.Module, inputs: Tensor, outputs: Tensor, batch: int) -> bool:
    axes = inputs.ndim == 4 if isinstance(layer, nn.Conv2d) else inputs.ndim >= 2
    return axes and len(inputs) == batch and outputs.requires_grad and outputs.grad_fn is not None


def _example_losses(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    if loss_fn is functional.cross_entropy:
        return functional.cross_entropy(outputs, targets, reduction="none")
    return vmap(loss_fn)(outputs.unsqueeze(1), targets.unsqueeze(1))


def _parameters(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for own, value in layer.named_parameters(recurse=False):
        if value.requires_grad:
            yield (f"{name}.{own}" if name else own), value


def _layer_sums(call: _Call, gradients: Tensor, squares: bool) -> dict[str, _LayerSums]:
    """Return the sums for weight and bias of one layer from its input and the gradient of its output."""
    wanted = dict(_parameters(call.name, call.layer))
    prefix = f"{call.name}." if call.name else ""
    sums: dict[str, _LayerSums] = {}
    convolution = isinstance(call.layer, nn.Conv2d)
    if f"{prefix}bias" in wanted:
        of_example = gradients if gradients.ndim == 2 else gradients.flatten(2).sum(2)
        if gradients.ndim > 2 and not convolution:  # channels last
            of_example = gradients.flatten(1, -2).sum(1)
        sums[f"{prefix}bias"] = _sums_of(of_example, squares)
    if f"{prefix}weight" in wanted:
        if convolution:
            weight = _convolution_sums(call.layer, call.inputs, gradients, squares)
        elif gradients.ndim == 2:
            weight = _linear_sums(call.inputs, gradients, squares)
        else:
            of_inputs, of_outputs = call.inputs.flatten(1, -2), gradients.flatten(1, -2)  # (B, T, in), (B, T, out)
            weight = _joined(
                [
                    _position_sums(a.mT, d.mT, squares)
                    for a, d in _chunks(of_inputs, of_outputs, of_inputs.shape[2] * of_outputs.shape[2])
                ]
            )
        shape = wanted[f"{prefix}weight"].shape
        sums[f"{prefix}weight"] = _LayerSums(
            weight.total.reshape(shape),
            weight.norms,
            None if weight.squares is None else weight.squares.reshape(shape),
        )
    return sums


def _linear_sums(inputs: Tensor, gradients: Tensor, squares: bool) -> _LayerSums:
    """Return the sums for one position: inputs ``(B, in)``, output gradients ``(B, out)``."""
    norms = (
        torch.linalg.vector_norm(inputs, dim=1, dtype=torch.float64)
        * torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
    ).square()
    return _LayerSums(
        gradients.mT @ inputs, norms, (gradients.square().mT @ inputs.square()).double() if squares else None
    )


def _convolution_sums(layer: nn.Module, inputs: Tensor, gradients: Tensor, squares: bool) -> _LayerSums:
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer.padding, str)
    groups, batch = layer.groups, len(inputs)
    positions = gradients.shape[2] * gradients.shape[3]
    fan_in = layer.weight[0].numel()  # (in / groups) * kernel
    each = max(layer.weight.numel(), groups * fan_in * positions)
    parts = []
    for a, d in _chunks(inputs, gradients, each):
        columns = functional.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        columns = columns.reshape(len(a) * groups, fan_in, positions)
        d = d.reshape(len(a) * groups, -1, positions)
        if groups == 1:
            parts.append(_position_sums(columns, d, squares))
        else:
            weight = (d @ columns.mT).reshape(len(a), -1, fan_in)
            parts.append(_sums_of(weight, squares))
    assert sum(len(part.norms) for part in parts) == batch
    return _joined(parts)


def _position_sums(inputs: Tensor, gradients: Tensor, squares: bool) -> _LayerSums:
    """Return the sums for T positions and a chunk of b examples: ``(b, in, T)`` and ``(b, out, T)``."""
    (_, fan_in, positions), fan_out = inputs.shape, gradients.shape[1]
    if not squares and positions**2 * (fan_in + fan_out) < _WRITE_COST * fan_in * fan_out:
        norms = ((inputs.mT @ inputs) * (gradients.mT @ gradients)).sum((1, 2), dtype=torch.float64)
        # Rounding can make the norm of a vanishing gradient slightly negative.
        return _LayerSums(torch.einsum("bot,bit->oi", gradients, inputs), norms.clamp(min=0), None)
    return _sums_of(gradients @ inputs.mT, squares)


def _sums_of(grads: Tensor, squares: bool) -> _LayerSums:
    """Return the sums from per-example gradients ``(b, ...)``."""
    norms = torch.linalg.vector_norm(grads.flatten(1), dim=1).double().square()
    return _LayerSums(grads.sum(0), norms, grads.square().sum(0, dtype=torch.float64) if squares else None)


def _joined(parts: Sequence[_LayerSums]) -> _LayerSums:
    total = parts[0].total
    for part in parts[1:]:
        total = total + part.total
    squares = [part.squares for part in parts if part.squares is not None]
    return _LayerSums(
        total, torch.cat([part.norms for part in parts]), torch.stack(squares).sum(0) if squares else None
    )


def _chunks(inputs: Tensor, gradients: Tensor, numbers_each: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both in chunks of examples such that ``numbers_each`` elements per example fit in ``CHUNK_BYTES``."""
    size = max(1, CHUNK_BYTES // (numbers_each * inputs.element_size()))
    for at in itertools.count(0, size):
        if at >= len(inputs):
            return
        yield inputs[at : at + size], gradients[at : at + size]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
