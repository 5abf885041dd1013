"""What the members of a chain say of inputs, each by itself; their mean is the prediction."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

CPU_VECTORISED_ROWS = 8
"""On a CPU, up to this many inputs at once all members answer in one pass. Measured with 30 members on one core, one
pass is 1.0 to 2.2 times as fast as the members in turn at 4 inputs (least for ``DigitCNN``, whose arithmetic takes the
time, most for a network of 8 x 8 pictures), and slower for all at 256."""
_LOOP_ROWS = 256
_DEVICE_ROWS = 4096
"""Inputs times members in one pass elsewhere."""


def posterior_predictive(
    members: Sequence[Mapping[str, Tensor]] | Mapping[str, Tensor], module: nn.Module, inputs: Tensor
) -> Tensor:
    """Class probabilities of every member, the softmax of its logits.

    Args:
        members: Parameters of K members by name, or what ``stack_members`` made of them, which saves copying them at
            every call. Parameters and buffers that a member does not name are the module's.
        module: The network, which gives logits ``(N, C)``; it answers as in ``eval()`` and stays as it is.
        inputs: ``(N, ...)``.

    Returns:
        ``(K, N, C)`` on the device of the inputs; the mean over K is the posterior predictive.

    Raises:
        ValueError: No member, no input, or members that do not name the same parameters of the module.
    """
    if isinstance(members, Mapping):
        named, count = members, len(next(iter(members.values()), ()))
    else:
        _check_members(members)
        named, count = members[0], len(members)
    _check_names(named, module, count)
    if inputs.ndim == 0 or not len(inputs):
        raise ValueError(f"inputs must be (N, ...) with N at least 1, got {tuple(inputs.shape)}")
    network = copy.deepcopy(module).eval() if module.training else module

    def answer(parameters: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        return functional_call(network, dict(parameters), (rows,)).softmax(-1)

    with torch.no_grad():
        if inputs.is_cpu and len(inputs) > CPU_VECTORISED_ROWS:
            rows_of_inputs = inputs.split(_LOOP_ROWS)
            return torch.stack(
                [torch.cat([answer(member, rows) for rows in rows_of_inputs]) for member in _unstacked(members)]
            )
        stacked = members if isinstance(members, Mapping) else stack_members(members)
        at_once = CPU_VECTORISED_ROWS if inputs.is_cpu else max(1, _DEVICE_ROWS // count)
        vectorised = vmap(answer, in_dims=(0, None))
        return torch.cat([vectorised(dict(stacked), rows) for rows in inputs.split(at_once)], dim=1)


def stack_members(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters of all members by name, ``(K, ...)``.

    Raises:
        ValueError: No member, or members that differ in names.
    """
    _check_members(members)
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def _unstacked(members: Sequence[Mapping[str, Tensor]] | Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    if not isinstance(members, Mapping):
        yield from members
        return
    for values in zip(*members.values(), strict=True):
        yield dict(zip(members, values, strict=True))


def _check_members(members: Sequence[Mapping[str, Tensor]]) -> None:
    if not members:
        raise ValueError("a prediction needs at least one member, got none")
    names = set(members[0])
    for number, member in enumerate(members):
        if set(member) != names:
            raise ValueError(f"member {number} differs from member 0 in {sorted(names ^ set(member))}")


def _check_names(names: Mapping[str, Tensor], module: nn.Module, count: int) -> None:
    known = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    unknown = sorted(set(names) - known)
    if unknown or not names or count < 1:
        raise ValueError(f"members must name parameters of the module; got {len(names)} names, unknown: {unknown}")
