"""Learning-rate schedules with linear warm-up and cosine decay, one value for each step.

The two stages of DataDream count differently: the classifier's warm-up includes both end points and is counted in
epochs, the diffusion model's starts at 0 and is counted in steps. Neither decay reaches its limit within the steps run.
"""

import numpy as np
from numpy.typing import NDArray


def warmup_cosine(
    base: float, final: float, epochs: int, steps_per_epoch: int, warmup_epochs: int, start: float
) -> NDArray[np.float64]:
    """Learning rate of the classifier at each step.

    Args:
        base: Peak rate, > 0.
        final: Limit of the cosine decay.
        epochs: Number of epochs, warm-up included.
        steps_per_epoch: Steps of one epoch.
        warmup_epochs: Epochs of the linear warm-up, 0 to ``epochs``.
        start: Rate at the first step of the warm-up.

    Returns:
        float64 ``(epochs * steps_per_epoch,)``.

    Raises:
        ValueError: A rate is negative or not finite, a count is out of range, or the warm-up is longer than the
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
    """Learning rate of the diffusion model's adapters at each step, from 0 up to ``base_lr`` and down towards 0.

    A warm-up longer than the training is allowed, as in the reference; the rate then never reaches ``base_lr``.

    Returns:
        float64 ``(total_steps,)``.

    Raises:
        ValueError: The rate is negative or not finite, or a count is out of range.
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
            raise ValueError(f"{name} must be a finite rate of at least 0, got {rate}")
