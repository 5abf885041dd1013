"""Attribution maps: the evidence for a class at every location.

Shapes: B images, C classes, H x W locations; f: class scores, a: attention scores before phi.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.methods.calm.checks import at_least_float32, check_labels, check_scores
from tenfold.methods.calm.distributions import Prior, check_prior, class_map, log_joint_at, log_location_prior

Mode = Literal[
    "jointll",
    "gtcond",
    "saliency",
    "jointll-superclass",
    "jointll-superclass-mean",
    "gtcond-superclass",
    "gtcond-superclass-mean",
    "vanilla",
    "vanilla-superclass",
    "vanilla-saliency",
]
MODES: tuple[Mode, ...] = get_args(Mode)


def attribution_map(
    f: Tensor,
    a: Tensor | None,
    labels: Tensor,
    mode: Mode,
    superclasses: Mapping[int, Sequence[int]] | None = None,
    prior: Prior = "softplus",
) -> Tensor:
    """Compute the attribution map of one class per image.

    Args:
        f: Class scores ``(B, C, H, W)``.
        a: Attention scores before phi, ``(B, 1, H, W)``; may be None for the vanilla modes.
        labels: int64 ``(B,)`` in 0..C - 1.
        mode: ``jointll`` p(y,z|x), the CALM map; ``gtcond`` p(z|x,y), sums to 1; ``saliency`` p(z|x), class-free;
            ``jointll-superclass`` and ``gtcond-superclass`` the sum over the classes of y's superclass (``-mean``: the
            mean); ``vanilla`` f at the label (CAM); ``vanilla-superclass`` and ``vanilla-saliency`` the sum of min-max
            normalised class maps over the superclass or over all classes.
        superclasses: Maps each class to the classes of its superclass, itself included.
        prior: phi, ``softplus`` or ``relu``.

    Returns:
        ``(B, H, W)`` in the dtype of f: probabilities, or raw scores for the vanilla modes.

    Raises:
        ValueError: If shapes or labels don't match, mode or prior is unknown, ``a`` is missing, or a superclass mode
            has no ``superclasses`` or lacks the class of a label.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    _check(f, a, labels, mode, prior)
    members = _members(superclasses, labels, f.shape[1], mode) if "superclass" in mode else None
    return _map(f, a, labels, mode, members, prior).to(f.dtype)


def counterfactual_map(
    f: Tensor,
    a: Tensor | None,
    label: Tensor,
    other: Tensor,
    mode: Literal["jointll", "vanilla"] = "jointll",
    prior: Prior = "softplus",
) -> Tensor:
    """Compute the counterfactual map "why A and not B": p(A,z|x) - p(B,z|x), or f_A - f_B for CAM.

    Args:
        f: Class scores ``(B, C, H, W)``.
        a: Attention scores before phi, ``(B, 1, H, W)``; may be None for ``vanilla``.
        label: Class A, int64 ``(B,)``.
        other: Class B, int64 ``(B,)``.
        mode: ``jointll`` or ``vanilla``.
        prior: phi, ``softplus`` or ``relu``.

    Returns:
        Signed ``(B, H, W)`` in the dtype of f.

    Raises:
        ValueError: As in ``attribution_map``, or for another mode.
    """
    if mode not in ("jointll", "vanilla"):
        raise ValueError(f"mode must be jointll or vanilla, got {mode!r}")
    _check(f, a, label, mode, prior, "label")
    check_labels(other, f.shape[0], f.shape[1], "other")
    difference = _map(f, a, label, mode, None, prior) - _map(f, a, other, mode, None, prior)
    return difference.to(f.dtype)


def _check(f: Tensor, a: Tensor | None, labels: Tensor, mode: str, prior: str, name: str = "labels") -> None:
    check_scores(f, a)
    check_prior(prior)
    check_labels(labels, f.shape[0], f.shape[1], name)
    if a is None and not mode.startswith("vanilla"):
        raise ValueError(f"a must be given for mode {mode}, got None; choose a vanilla mode")


def _map(f: Tensor, a: Tensor | None, labels: Tensor, mode: str, members: Tensor | None, prior: Prior) -> Tensor:
    """Compute the maps; ``members`` 0/1 ``(B, C)`` are the classes to sum over in the superclass modes."""
    f = at_least_float32(f)
    if mode == "vanilla":
        return class_map(f, labels)
    if mode.startswith("vanilla"):
        stretched = _stretched(f)
        return stretched.sum(1) if members is None else _sum_over(members, stretched)
    assert a is not None, "checked by the callers"
    if mode == "saliency":
        return log_location_prior(a, prior).exp().squeeze(1)
    if members is None:
        log_joint = log_joint_at(f, a, labels, prior)
        if mode == "gtcond":
            log_joint = log_joint - log_joint.logsumexp((1, 2), keepdim=True)
        return log_joint.exp()
    log_joint = functional.log_softmax(f, dim=1) + log_location_prior(a, prior)
    if mode.startswith("gtcond"):
        log_joint = log_joint - log_joint.logsumexp((2, 3), keepdim=True)
    total = _sum_over(members, log_joint.exp())
    return total / members.sum(1).view(-1, 1, 1) if mode.endswith("-mean") else total


def _sum_over(members: Tensor, maps: Tensor) -> Tensor:
    return torch.einsum("bc,bchw->bhw", members.to(maps.dtype), maps)


def _stretched(f: Tensor) -> Tensor:
    """Min-max normalise every class map to [0, 1]; a constant map becomes 0."""
    low, high = f.amin((2, 3), keepdim=True), f.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (f - low) / torch.where(span > 0, span, 1), 0.0)


def _members(superclasses: Mapping[int, Sequence[int]] | None, labels: Tensor, num_classes: int, mode: str) -> Tensor:
    if superclasses is None:
        raise ValueError(f"superclasses must be given for mode {mode}, got None; choose another mode")
    of_label: dict[int, list[int]] = {}
    for label in labels.unique().tolist():
        if label not in superclasses:
            raise ValueError(f"superclasses must have every class, but class {label} is missing")
        of_label[label] = sorted({int(member) for member in superclasses[label]})
        if label not in of_label[label]:
            raise ValueError(f"superclass of class {label} must include it, got {of_label[label]}")
        if of_label[label][0] < 0 or of_label[label][-1] >= num_classes:
            raise ValueError(f"superclass of class {label} must lie in 0..{num_classes - 1}, got {of_label[label]}")
    members = torch.zeros(len(labels), num_classes, device=labels.device)
    for row, label in enumerate(labels.tolist()):
        members[row, of_label[label]] = 1
    return members
