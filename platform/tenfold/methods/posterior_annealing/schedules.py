"""Schedules of the weight of the prior, from 1 to 0 during training."""

import math
from collections.abc import Callable
from typing import Literal, get_args

ScheduleKind = Literal["cosine", "linear", "exponential", "staged"]
STAGES = ((0.2, 1.0), (0.4, 0.5), (1.0, 0.1))
"""Stages of ``staged``: the weight on the right applies up to the fraction of the schedule on the left."""


def annealing_weight(
    step: int,
    total_steps: int,
    *,
    kind: ScheduleKind = "cosine",
    hold: float = 0.0,
    end: float = 1.0,
    rate: float = 6.0,
) -> float:
    """Return the weight tau of the prior at a step.

    With v the fraction of the way from ``hold`` to ``end``: ``cosine`` (1 + cos(pi v)) / 2; ``linear`` 1 - v;
    ``exponential`` (exp(-k v) - exp(-k)) / (1 - exp(-k)); ``staged`` 1, 0.5 and 0.1 until v = 0.2, 0.4 and 1.

    Args:
        step: 0 (weight 1) to ``total_steps`` (weight 0).
        total_steps: Number of intervals, at least 1.
        kind: Shape of the curve.
        hold: Fraction of all steps before the weight starts to fall, at least 0.
        end: Fraction of all steps at which the weight reaches 0, at most 1: the prior alone is over-confident, so
            training must not end with it.
        rate: Decay rate k of ``exponential``, positive.

    Returns:
        A weight in [0, 1]; exactly 0 from ``end`` on.

    Raises:
        ValueError: A step outside 0..total, no steps, not 0 <= hold < end <= 1, a rate that is not positive, or an
            unknown kind.
    """
    if kind not in get_args(ScheduleKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(ScheduleKind))}, got {kind!r}")
    if not total_steps >= 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if not 0 <= step <= total_steps:
        raise ValueError(f"step must lie in 0..{total_steps}, got {step}")
    if not 0 <= hold < end <= 1:
        raise ValueError(
            f"hold and end must satisfy 0 <= hold < end <= 1, got {hold} and {end}; the weight has to reach 0 before "
            f"training ends, or the model stays over-confident"
        )
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be positive and finite, got {rate}")
    done = step / total_steps
    if done >= end:
        return 0.0
    way = max((done - hold) / (end - hold), 0.0)
    curves: dict[str, Callable[[], float]] = {
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * way)),
        "linear": lambda: 1 - way,
        "exponential": lambda: (math.exp(-rate * way) - math.exp(-rate)) / -math.expm1(-rate),
        "staged": lambda: next((weight for until, weight in STAGES if way < until), 0.0),
    }
    return min(max(curves[kind](), 0.0), 1.0)
