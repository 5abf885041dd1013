"""Predictions of the members of a posterior; their mean is the posterior predictive."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tenfold.models.members import Members


def posterior_predictive(
    members: Sequence[Mapping[str, Tensor]] | Mapping[str, Tensor], module: nn.Module, inputs: Tensor
) -> Tensor:
    """Return the class probabilities of every member, the softmax of its logits.

    For repeated predictions with the same members use ``Members``, which records the pass once and replays it.

    Args:
        members: Parameters of K members by name, or the result of ``stack_members``, which avoids a copy per call.
            Parameters and buffers that a member does not name are taken from the module.
        module: Network with logits ``(N, C)``; evaluated in ``eval()`` mode and left unchanged.
        inputs: ``(N, ...)``.

    Returns:
        ``(K, N, C)`` on the device of the inputs; the mean over K is the posterior predictive.

    Raises:
        ValueError: No member, no input, or members that do not name the same parameters of the module.
    """
    stacked = members if isinstance(members, Mapping) else stack_members(members)
    return Members(module, stacked)(inputs).softmax(-1)


def stack_members(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the parameters of all members by name, ``(K, ...)``.

    Raises:
        ValueError: No member, or members with different names.
    """
    _check_members(members)
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def _check_members(members: Sequence[Mapping[str, Tensor]]) -> None:
    if not members:
        raise ValueError("members must hold at least one member, got none")
    names = set(members[0])
    for number, member in enumerate(members):
        if set(member) != names:
            raise ValueError(
                f"members must name the same parameters, got member {number} that differs from member 0 in "
                f"{sorted(names ^ set(member))}"
            )
