"""Draw of the shots, and their number of repetitions beside the synthetic images.

Names are in natural order, as in the DataDream reference. How it drew its shots was not published; here they are drawn
as in DISEF (da Costa et al., 2023), its code base for CLIP.
"""

import random
import re
import warnings
from collections.abc import Iterable, Sequence

_DIGITS = re.compile(r"(\d+)")


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort names with runs of digits compared as numbers ("img2" before "img10"); the sort is stable."""

    def key(name: str) -> list[str | int]:
        # The split alternates between text and digits and begins with text, so equal types are compared.
        return [int(part) if position % 2 else part for position, part in enumerate(_DIGITS.split(name))]

    return sorted(names, key=key)


def sample_k_shot(labels: Sequence[int], n_shot: int, seed: int) -> list[int]:
    """Draw ``n_shot`` samples of each class without replacement.

    Args:
        labels: Class of every sample.
        n_shot: Samples of each class, at least 1.
        seed: Seed of Python's generator; the draw depends on the order of the samples, too.

    Returns:
        Indices into ``labels``, class by class in order of first appearance, within a class in the order drawn.

    Raises:
        ValueError: ``n_shot`` is below 1, there are no labels, or a class has fewer samples than ``n_shot``.
    """
    if n_shot < 1:
        raise ValueError(f"n_shot must be at least 1, got {n_shot}")
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    if not members:
        raise ValueError("labels must hold at least one sample, got none")
    scarce = {label: len(indices) for label, indices in members.items() if len(indices) < n_shot}
    if scarce:
        label, count = next(iter(scarce.items()))
        raise ValueError(
            f"every class needs at least {n_shot} samples for {n_shot} shots, but class {label} has {count}"
            + (f" and {len(scarce) - 1} more have too few" if len(scarce) > 1 else "")
        )
    generator = random.Random(seed)
    return [index for indices in members.values() for index in generator.sample(indices, n_shot)]


def pool_repeats(n_images: int, n_shot: int) -> int:
    """Number of repetitions of each shot in a pool with ``n_images`` synthetic images of its class.

    Returns:
        ``n_images // n_shot``. It is 0, with a warning, if there are fewer synthetic images than shots: the pool then
        has no real image.

    Raises:
        ValueError: ``n_images`` is negative or ``n_shot`` below 1.
    """
    if n_images < 0:
        raise ValueError(f"n_images must be at least 0, got {n_images}")
    if n_shot < 1:
        raise ValueError(f"n_shot must be at least 1, got {n_shot}")
    if n_images < n_shot:
        warnings.warn(
            f"{n_images} synthetic images of a class are fewer than {n_shot} shots: the pool will hold no real image",
            stacklevel=2,
        )
    return n_images // n_shot
