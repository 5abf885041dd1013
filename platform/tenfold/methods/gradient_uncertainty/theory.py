"""What the Langevin samplers converge to where it is known: a Gaussian posterior."""

from tenfold.methods.gradient_uncertainty.steps import check_positive


def stationary_variance(
    precision: float, step_size: float, grad_noise_variance: float, temperature: float, corrected: bool
) -> float:
    """Variance in the long run of ``langevin_step`` on the potential ``precision / 2 theta^2``.

    A step multiplies theta by ``a = 1 - eps precision / 2`` and adds noise of variance ``injected + eps^2 S / 4``, so
    the variance ends at that sum over ``1 - a^2``. The posterior's own variance is ``temperature / precision``.

    Args:
        precision: Of the Gaussian, above 0.
        step_size: eps.
        grad_noise_variance: S, variance of the potential's gradient over minibatches, at least 0.
        temperature: At least 0.
        corrected: Whether the sampler subtracts S from the noise that it adds.

    Raises:
        ValueError: ``step_size * precision`` outside (0, 4), where the chain diverges, or a negative variance or
            temperature.
    """
    check_positive("precision", precision)
    check_positive("step_size", step_size)
    if step_size * precision >= 4:
        raise ValueError(f"the chain is stable for step_size * precision in (0, 4), got {step_size * precision}")
    if not grad_noise_variance >= 0 or not temperature >= 0:
        raise ValueError(
            f"grad_noise_variance and temperature must be at least 0, got {grad_noise_variance} and {temperature}"
        )
    of_minibatch = step_size**2 * grad_noise_variance / 4
    injected = step_size * temperature
    if corrected:
        injected = max(injected - of_minibatch, 0.0)
    # 1 - a^2, multiplied out so that small steps lose no digits
    return (injected + of_minibatch) / (step_size * precision * (1 - step_size * precision / 4))
