"""Diffusion: forward noising, training targets and loss, classifier-free guidance, and the DDIM step.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Song et al., "Denoising Diffusion Implicit Models",
ICLR 2021; Salimans and Ho, "Progressive Distillation", ICLR 2022 (v-prediction); Ho and Salimans, "Classifier-Free
Diffusion Guidance", 2022. ``alpha_bar`` is the fraction of the variance due to the signal, 1 without noise.
"""

import torch
from torch import Tensor

KINDS = ("epsilon", "v_prediction")
"""Prediction types of a network, by their names in diffusers."""


def diffusion_loss(
    prediction: Tensor, x0: Tensor, noise: Tensor, alpha_bar: Tensor, kind: str, *, validate: bool = True
) -> Tensor:
    """Mean squared error of the network's output against the target of its prediction type.

    Args:
        prediction: Output for the noised input, ``(B, ...)``.
        x0: Clean latents, same shape.
        noise: Standard normal, same shape.
        alpha_bar: ``(B,)`` in [0, 1].
        kind: One of ``KINDS``.
        validate: Check the values of ``alpha_bar``, which synchronises with the device.

    Returns:
        Mean over all elements, ``()``; in float32 for half-precision inputs.

    Raises:
        ValueError: The kind is unknown, shapes do not fit, or ``alpha_bar`` leaves [0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    weights = _broadcast(alpha_bar, x0, noise, validate)
    if prediction.shape != x0.shape:
        raise ValueError(f"prediction must be {tuple(x0.shape)} as x0 is, got {tuple(prediction.shape)}")
    target = noise if kind == "epsilon" else weights.sqrt() * noise - (1 - weights).sqrt() * x0
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction, target = prediction.float(), target.float()
    return (prediction - target).square().mean()


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor, *, validate: bool = True) -> Tensor:
    """``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise``, for each row.

    Args:
        x0: Clean latents, ``(B, ...)``.
        noise: Standard normal, same shape.
        alpha_bar: ``(B,)`` in [0, 1].
        validate: Check the values of ``alpha_bar``, which synchronises with the device.

    Raises:
        ValueError: Shapes do not fit or ``alpha_bar`` leaves [0, 1].
    """
    weights = _broadcast(alpha_bar, x0, noise, validate)
    return weights.sqrt() * x0 + (1 - weights).sqrt() * noise


def velocity(x0: Tensor, noise: Tensor, alpha_bar: Tensor, *, validate: bool = True) -> Tensor:
    """``sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0``, the target of v-prediction; arguments as in ``add_noise``."""
    weights = _broadcast(alpha_bar, x0, noise, validate)
    return weights.sqrt() * noise - (1 - weights).sqrt() * x0


def guided(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: extrapolate from the unconditional to the conditional prediction by ``scale``.

    Raises:
        ValueError: The shapes differ.
    """
    if uncond.shape != cond.shape:
        raise ValueError(f"uncond and cond must agree, got {tuple(uncond.shape)} and {tuple(cond.shape)}")
    return uncond + scale * (cond - uncond)


def ddim_step(x_t: Tensor, eps: Tensor, alpha_bar_t: float | Tensor, alpha_bar_prev: float | Tensor) -> Tensor:
    """One deterministic step towards the image (eta = 0), without clipping.

    Args:
        x_t: Noisy latents.
        eps: Predicted noise, same shape.
        alpha_bar_t: Value before the step, in (0, 1]; a number or ``()``.
        alpha_bar_prev: Value after the step, in [0, 1].

    Raises:
        ValueError: The shapes differ or a value is out of range.
    """
    if x_t.shape != eps.shape:
        raise ValueError(f"x_t and eps must agree, got {tuple(x_t.shape)} and {tuple(eps.shape)}")
    # Double precision up to the product: 1 - alpha_bar cancels where there is little noise.
    now, before = (torch.as_tensor(share, dtype=torch.float64) for share in (alpha_bar_t, alpha_bar_prev))
    if now.ndim or before.ndim:
        raise ValueError(f"alpha_bar_t and alpha_bar_prev must be (), got {tuple(now.shape)} and {tuple(before.shape)}")
    if not 0 < now <= 1:
        raise ValueError(f"alpha_bar_t must lie in (0, 1], got {now.item()}")
    if not 0 <= before <= 1:
        raise ValueError(f"alpha_bar_prev must lie in [0, 1], got {before.item()}")
    kept = (before / now).sqrt()
    added = (1 - before).sqrt() - kept * (1 - now).sqrt()
    return kept.to(x_t) * x_t + added.to(x_t) * eps


def _broadcast(alpha_bar: Tensor, x0: Tensor, noise: Tensor, validate: bool) -> Tensor:
    if x0.shape != noise.shape or x0.ndim < 1:
        raise ValueError(f"x0 and noise must both be (B, ...), got {tuple(x0.shape)} and {tuple(noise.shape)}")
    if alpha_bar.shape != x0.shape[:1]:
        raise ValueError(f"alpha_bar must be (B,) = ({len(x0)},), got {tuple(alpha_bar.shape)}")
    if validate and not ((alpha_bar >= 0) & (alpha_bar <= 1)).all():
        raise ValueError(f"alpha_bar must lie in [0, 1], got {alpha_bar.min()} to {alpha_bar.max()}")
    return alpha_bar.to(x0).view(-1, *[1] * (x0.ndim - 1))
