"""Checks of concept values, masks and groups, shared by the room.

Shapes: B images, K concepts, G groups.
"""

from torch import Tensor


def check_concepts(name: str, concepts: Tensor) -> None:
    """Refuse values outside [0, 1], or NaN.

    Raises:
        ValueError: Naming the first such value.
    """
    outside = ~((concepts >= 0) & (concepts <= 1))
    if outside.any():
        raise ValueError(
            f"{name} must lie in [0, 1], got {float(concepts[outside][0])} and {int(outside.sum()) - 1} more; "
            f"concepts are probabilities, not logits"
        )


def check_alike(**tensors: Tensor) -> None:
    """Refuse tensors that are not all ``(B, K)``.

    Raises:
        ValueError: Naming the shapes.
    """
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must be (B, K), one shape for all, got {found}")


def check_mask(mask: Tensor, name: str = "mask") -> None:
    """Refuse a mask with other values than 0 and 1.

    Raises:
        ValueError: Naming the first other value.
    """
    other = (mask != 0) & (mask != 1)
    if other.any():
        raise ValueError(f"{name} must be 0 or 1, got {float(mask[other][0])}")


def check_groups(groups: Tensor, num_concepts: int) -> None:
    """Refuse a matrix that is not a partition of the concepts, as ``concept_group_matrix`` makes it.

    Raises:
        ValueError: Another shape, other values than 0 and 1, an empty group, or a concept in two groups or in none.
    """
    if groups.ndim != 2 or groups.shape[1] != num_concepts:
        raise ValueError(f"groups must be (G, K) with K = {num_concepts}, got {tuple(groups.shape)}")
    check_mask(groups, "groups")
    if (groups.sum(0) != 1).any() or (groups.sum(1) == 0).any():
        raise ValueError("groups must hold every concept once and none be empty; make them with concept_group_matrix")
