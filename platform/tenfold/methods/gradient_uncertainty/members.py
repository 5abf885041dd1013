"""What the members of a chain say of inputs, each by itself; their mean is the prediction."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tenfold.models.members import Members


def posterior_predictive(
    members: Sequence[Mapping[str, Tensor]] | Mapping[str, Tensor], module: nn.Module, inputs: Tensor
) -> Tensor:
    """Class probabilities of every member, the softmax of its logits.

    Who asks the same members again and again holds a ``Members``, which remembers how it answered.

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
    stacked = members if isinstance(members, Mapping) else stack_members(members)
    return Members(module, stacked)(inputs).softmax(-1)


def stack_members(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters of all members by name, ``(K, ...)``.

    Raises:
        ValueError: No member, or members that differ in names.
    """
    _check_members(members)
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def _check_members(members: Sequence[Mapping[str, Tensor]]) -> None:
    if not members:
        raise ValueError("a prediction needs at least one member, got none")
    names = set(members[0])
    for number, member in enumerate(members):
        if set(member) != names:
            raise ValueError(f"member {number} differs from member 0 in {sorted(names ^ set(member))}")
