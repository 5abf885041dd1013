"""Learning rates for every step, both with a linear rise and half a cosine down.

The two stages of DataDream count differently: the classifier's rise includes both its ends and is counted in epochs,
the diffusion model's starts at 0 and is counted in steps. The fall of neither reaches its limit within the steps run.
"""

import numpy as np
from numpy.typing import NDArray


def warmup_cosine(
    base: float, final: float, epochs: int, steps_per_epoch: int, warmup_epochs: int, start: float
) -> NDArray[np.float64]:
    """Learning rate of the classifier at each step.

    Args:
        base: Highest rate, > 0.
        final: Rate that the cosine tends to.
        epochs: All epochs, warm-up included.
        steps_per_epoch: Steps of one epoch.
        warmup_epochs: Epochs of the linear rise, 0 to ``epochs``.
        start: Rate of the first step of the rise.

    Returns:
        float64 ``(epochs * steps_per_epoch,)``.

    Raises:
        ValueError: If a rate is negative or not finite, a count is out of range, or the warm-up is longer than the
            training.
    """
    _check_rates(base=base, final=final, start=start)
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"epochs and steps_per_epoch must be at least 1, got {epochs} and {steps_per_epoch}")
    if not 0 <= warmup_epochs <= epochs:
        raise ValueError(f"warmup_epochs must lie in 0..{epochs}, the number of epochs, got {warmup_epochs}")
    rise = np.linspace(start, base, warmup_epochs * steps_per_epoch)
    remaining = (epochs - warmup_epochs) * steps_per_epoch
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(remaining) / max(1, remaining)))
    return np.concatenate([rise, fall])


def diffusion_warmup_cosine(base_lr: float, warmup_steps: int, total_steps: int) -> NDArray[np.float64]:
    """Learning rate of the diffusion model's adapters at each step: from 0 up to ``base_lr``, then down towards 0.

    A warm-up longer than the training is allowed, as in the reference; the rate then never reaches ``base_lr``.

    Returns:
        float64 ``(total_steps,)``.

    Raises:
        ValueError: If the rate is negative or not finite, or a count out of range.
    """
    _check_rates(base_lr=base_lr)
    if warmup_steps < 0 or total_steps < 1:
        raise ValueError(
            f"warmup_steps must be at least 0 and total_steps at least 1, got {warmup_steps} and {total_steps}"
        )
    step = np.arange(total_steps, dtype=np.float64)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    fall = np.maximum(0.0, 0.5 * (1 + np.cos(np.pi * progress)))
    return base_lr * np.where(step < warmup_steps, step / max(1, warmup_steps), fall)


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < np.inf:
            raise ValueError(f"{name} must be a rate of at least 0, got {rate}")
