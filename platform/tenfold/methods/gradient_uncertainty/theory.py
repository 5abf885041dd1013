"""Stationary distribution of the Langevin samplers on a Gaussian posterior."""

from tenfold.methods.gradient_uncertainty.steps import check_positive


def stationary_variance(
    precision: float, step_size: float, grad_noise_variance: float, temperature: float, corrected: bool
) -> float:
    """Return the stationary variance of ``langevin_step`` on the potential ``precision / 2 theta^2``.

    A step multiplies theta by ``a = 1 - eps precision / 2`` and adds noise of variance ``injected + eps^2 S / 4``; the
    stationary variance is that sum over ``1 - a^2``. The posterior itself has variance ``temperature / precision``.

    Args:
        precision: Precision of the Gaussian, positive.
        step_size: eps.
        grad_noise_variance: S, variance of the gradient of the potential over minibatches, at least 0.
        temperature: Temperature of the posterior, at least 0.
        corrected: Whether the sampler subtracts the minibatch noise S from the injected noise.

    Raises:
        ValueError: ``step_size * precision`` outside (0, 4), where the chain diverges; a negative variance or
            temperature.
    """
    check_positive("precision", precision)
    check_positive("step_size", step_size)
    if step_size * precision >= 4:
        raise ValueError(f"step_size * precision must lie in (0, 4), got {step_size * precision}; the chain diverges")
    if not grad_noise_variance >= 0 or not temperature >= 0:
        raise ValueError(
            f"grad_noise_variance and temperature must be at least 0, got {grad_noise_variance} and {temperature}"
        )
    of_minibatch = step_size**2 * grad_noise_variance / 4
    injected = step_size * temperature
    if corrected:
        injected = max(injected - of_minibatch, 0.0)
    # 1 - a^2, expanded to avoid cancellation for small steps
    return (injected + of_minibatch) / (step_size * precision * (1 - step_size * precision / 4))
