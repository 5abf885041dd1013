"""How fast a training got there."""

from collections.abc import Sequence


def first_at_most(values: Sequence[float], threshold: float) -> int | None:
    """Number of the first value (counting from 1) that is no larger than the threshold.

    Give the validation error after every epoch, and c times the best one of the method to compare with.

    Args:
        values: One after each epoch, or after each step at which it was measured.
        threshold: What to reach.

    Returns:
        How many epochs (or measurements) it took; None if it was never reached.
    """
    return next((number for number, value in enumerate(values, 1) if value <= threshold), None)
