"""Sampler steps as pure functions of parameters, gradient and noise, and the variance of minibatch gradients.

A tree is one tensor, or tensors by parameter name; the trees of a call have the same names and shapes, and results are
trees like ``params``.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tenfold.methods.gradient_uncertainty.uncertainty import Tree, check_batch, leaves

Params = Tensor | dict[str, Tensor]


def triggered_langevin_step(
    params: Tree,
    mean_grad: Tree,
    *,
    uncertainty: float | Tensor,
    step: int,
    lr: float,
    noise_power: float = -0.25,
    threshold: float = 1 / 3,
    warmup: int = 300,
    generator: torch.Generator | None = None,
    noise: Tree | None = None,
) -> tuple[Params, bool]:
    """Take a step of gradient descent, with a random kick if the gradients of the batch cancel.

    If ``step > warmup`` and ``uncertainty > threshold``, standard normal noise times ``lr ** noise_power`` is added to
    the gradient, which displaces every parameter with a standard deviation of ``lr ** (1 + noise_power)``.

    Args:
        params: theta_t.
        mean_grad: Gradient of the mean loss of the batch at theta_t.
        uncertainty: Gradient uncertainty of the same batch.
        step: t, counted from 0.
        lr: Learning rate.
        noise_power: Exponent of the noise scale.
        threshold: Uncertainty above which the step kicks; never exceeded from 1 on.
        warmup: Last step without kicks.
        generator: Random generator; draws noise one parameter tensor after the other, and only for a kick.
        noise: Standard normal noise to use instead of drawing it.

    Returns:
        theta_{t + 1}, and whether the step kicked.

    Raises:
        ValueError: A learning rate that is not positive, a negative warm-up, an uncertainty that is NaN, or trees that
            differ.
    """
    check_positive("lr", lr)
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0 steps, got {warmup}")
    value = float(uncertainty)
    if math.isnan(value):
        raise ValueError("uncertainty must be a number, got nan; the uncertainty of zero gradients is 0")
    check_trees(params, mean_grad=mean_grad, **({} if noise is None else {"noise": noise}))
    triggered = step > warmup and value > threshold
    if not triggered:
        return map_trees(lambda theta, grad: theta - lr * grad, params, mean_grad), False
    if noise is None:
        noise = draw_noise(params, generator)
    kick = lr**noise_power
    return map_trees(lambda theta, grad, xi: theta - lr * (grad + kick * xi), params, mean_grad, noise), True


def langevin_step(
    params: Tree,
    potential_grad: Tree,
    *,
    step_size: float,
    temperature: float = 1.0,
    preconditioner: Tree | None = None,
    grad_variance: Tree | None = None,
    noise: Tree,
) -> Params:
    """Return ``theta - (eps / 2) M gV + sqrt(max(eps T M - (eps^2 / 4) M^2 s^2, 0)) xi``.

    Without ``grad_variance`` this is stochastic gradient Langevin dynamics. With it, the injected noise is reduced by
    the noise of the minibatch gradient. Where that noise alone is larger (``hotter_share``), none is injected.

    Args:
        params: theta.
        potential_grad: gV, an estimate of the gradient of the negative log posterior.
        step_size: eps.
        temperature: T; 0 gives gradient descent.
        preconditioner: M, positive; None: 1.
        grad_variance: s^2, the variance of ``potential_grad`` over minibatches; None: 0.
        noise: xi, standard normal.

    Raises:
        ValueError: A step size that is not positive, a negative temperature or variance, a preconditioner that is not
            positive, or trees that differ.
    """
    check_positive("step_size", step_size)
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    given = {"preconditioner": preconditioner, "grad_variance": grad_variance}
    optional = {name: tree for name, tree in given.items() if tree is not None}
    check_trees(params, potential_grad=potential_grad, noise=noise, **optional)
    if preconditioner is not None and not all(bool((m > 0).all()) for m in leaves(preconditioner)):
        raise ValueError("preconditioner must be positive everywhere")
    if grad_variance is not None and not all(bool((s2 >= 0).all()) for s2 in leaves(grad_variance)):
        raise ValueError("grad_variance must be at least 0 everywhere")
    scales = preconditioner if preconditioner is not None else map_trees(torch.ones_like, params)
    variances = grad_variance if grad_variance is not None else map_trees(torch.zeros_like, params)

    def moved(theta: Tensor, grad: Tensor, xi: Tensor, m: Tensor, s2: Tensor) -> Tensor:
        injected = (step_size * temperature * m - step_size**2 / 4 * m.square() * s2).clamp(min=0)
        return theta - step_size / 2 * m * grad + injected.sqrt() * xi

    return map_trees(moved, params, potential_grad, noise, scales, variances)


def potential_gradient_variance(
    per_example_grads: Tree, dataset_size: int, *, with_replacement: bool = False
) -> Params:
    """Estimate the variance of ``(N / B) sum_i g_i`` from one batch: ``(N^2 / B) c (1 - B / N)``.

    c is the unbiased variance over the batch; the last factor is the finite-population correction for sampling without
    replacement.

    Args:
        per_example_grads: ``(B, P)``, or ``(B, ...)`` by parameter name.
        dataset_size: N.
        with_replacement: Whether the batch was drawn with replacement; omits the last factor.

    Returns:
        ``(P,)``, or ``(...)`` by parameter name.

    Raises:
        ValueError: Fewer than 2 examples, more than N without replacement, or gradients that ``gradient_uncertainty``
            rejects.
    """
    batch = check_batch(leaves(per_example_grads))
    factor = variance_factor(batch, dataset_size, with_replacement)
    return map_trees(lambda grads: factor * grads.var(0, correction=1), per_example_grads)


def variance_factor(batch: int, dataset_size: int, with_replacement: bool = False) -> float:
    """Return the ratio of the variance of the estimated gradient sum to that of a per-example gradient."""
    if batch < 2:
        raise ValueError(
            f"the batch must have at least 2 examples, got {batch}; leave out a last batch that is smaller"
        )
    if not with_replacement and batch > dataset_size:
        raise ValueError(
            f"a batch without replacement must have at most dataset_size = {dataset_size} examples, got {batch}"
        )
    return dataset_size**2 / batch * (1 if with_replacement else 1 - batch / dataset_size)


def hotter_share(grad_variance: Tree, step_size: float, temperature: float) -> float:
    """Return the fraction of parameters for which minibatch noise alone exceeds that of the temperature."""
    values = leaves(grad_variance)
    above = sum(int((step_size * s2 > 4 * temperature).sum()) for s2 in values)
    return above / sum(s2.numel() for s2 in values)


def draw_noise(params: Tree, generator: torch.Generator | None = None) -> Params:
    """Draw standard normal noise shaped like ``params``, tensor by tensor, on the device of the generator."""

    def draw(theta: Tensor) -> Tensor:
        device = theta.device if generator is None else generator.device
        return torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=device).to(theta.device)

    return map_trees(draw, params)


def map_trees(function: Callable[..., Tensor], first: Tree, *others: Tree) -> Params:
    """Apply a function to the leaves of trees with the same names."""
    if isinstance(first, Tensor):
        return function(first, *others)
    return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}  # type: ignore[index]


def check_trees(params: Tree, **others: Tree) -> None:
    """Check that trees have the names and shapes of ``params``.

    Raises:
        ValueError: A tree differs.
    """
    for what, other in others.items():
        if isinstance(params, Tensor) != isinstance(other, Tensor):
            raise ValueError(f"{what} must be a {_kind(params)} as params is, got a {_kind(other)}")
        if isinstance(params, Mapping) and isinstance(other, Mapping) and set(params) != set(other):
            raise ValueError(f"{what} must have the names of params; differing: {sorted(set(params) ^ set(other))}")
        names = [""] if isinstance(params, Tensor) else list(params)
        for name in names:
            wanted, got = (tree if isinstance(tree, Tensor) else tree[name] for tree in (params, other))
            if wanted.shape != got.shape:
                raise ValueError(
                    f"{what} {name} must be {tuple(wanted.shape)} as params is, got {tuple(got.shape)}".replace(
                        "  ", " "
                    )
                )


def check_positive(what: str, value: float) -> None:
    """Raise ValueError unless the value is finite and positive."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{what} must be positive and finite, got {value}")


def _kind(tree: Tree) -> str:
    return "tensor" if isinstance(tree, Tensor) else "mapping"
