"""Sampling of images from a diffusion pipeline; an image depends on its prompt and seed alone, not on its batch.

Classifier-free guidance (Ho and Salimans, 2022): ``u(empty) + g (u(prompt) - u(empty))``, both predictions in one
batched pass. Sampling from initial images: SDEdit (Meng et al., 2022), as in diffusers' image-to-image pipelines.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.models.diffusion import Pipeline, denoise, encode_latents, latent_shape, prompt_embeddings

_DECODE_CHUNK = 16
"""Images that the VAE decodes at once: at 512 pixels its activations are far larger than the UNet's."""


@torch.no_grad()
def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int = 50,
    guidance_scale: float = 2.0,
    init_images: Tensor | None = None,
    strength: float | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Generate one image for each prompt and seed.

    All noise of an image comes from its own CPU generator, so the image depends neither on its batch nor on the device
    (up to rounding: batched kernels sum in another order). Each distinct prompt is embedded once. The sampler is built
    from the checkpoint's own scheduler configuration.

    Args:
        prompts: One text for each image, B of them.
        seeds: One seed for each image.
        num_steps: Steps of the sampler, at least 1.
        guidance_scale: g, at least 1; 1 means no guidance and half the work.
        init_images: Images to start from, uint8 ``(B, S, S, 3)``; together with ``strength``.
        strength: Share of the steps that is run, in (0, 1], starting from ``init_images`` noised to the first of them.
        batch_size: Images in one pass (the UNet sees twice as many); None: all.

    Returns:
        uint8 ``(B, S, S, 3)`` on the CPU.

    Raises:
        ValueError: Numbers of prompts, seeds and images differ, or a value is out of range.
    """
    _check(prompts, seeds, num_steps, guidance_scale, init_images, strength, batch_size)
    distinct = list(dict.fromkeys(prompts))
    row = {prompt: number for number, prompt in enumerate(distinct)}
    embeddings = prompt_embeddings(pipeline, ["", *distinct])  # (1 + P, L, E)
    images = []
    for start in range(0, len(prompts), batch_size or len(prompts)):
        part = slice(start, start + (batch_size or len(prompts)))
        text = embeddings[[1 + row[prompt] for prompt in prompts[part]]]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(num_steps)  # kept on the CPU, else each step would wait for the device
        if init_images is None or strength is None:
            latents = _noise(pipeline, generators) * scheduler.init_noise_sigma
            times = scheduler.timesteps
        else:
            times = _late_times(scheduler, num_steps, strength)
            latents = _noised(pipeline, scheduler, init_images[part], times, generators)
        latents = _denoised(pipeline, scheduler, times, latents, embeddings[:1], text, guidance_scale, generators)
        images.append(_decode(pipeline, latents))
    return torch.cat(images)


def _denoised(
    pipeline: Pipeline,
    scheduler: Any,
    times: Tensor,
    latents: Tensor,
    empty: Tensor,
    text: Tensor,
    guidance_scale: float,
    generators: list[torch.Generator],
) -> Tensor:
    """Run the sampler's loop; latents stay float32 between the UNet's passes."""
    device = pipeline.unet.device
    guide = guidance_scale != 1
    conditions = torch.cat([empty.expand_as(text), text]) if guide else text  # (2B, L, E)
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = latents.to(device)
    for time, device_time in zip(times, times.to(device), strict=True):
        scaled = scheduler.scale_model_input(latents, time)
        prediction = denoise(pipeline, scaled.repeat(2, 1, 1, 1) if guide else scaled, device_time, conditions).float()
        if guide:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, time, latents, return_dict=False, **extra)[0]
    return latents


def _noise(pipeline: Pipeline, generators: list[torch.Generator]) -> Tensor:
    shape = latent_shape(pipeline)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _late_times(scheduler: Any, num_steps: int, strength: float) -> Tensor:
    """Return the last ``strength`` share of the sampler's timesteps, at least one step."""
    skipped = num_steps - max(1, min(int(num_steps * strength), num_steps))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    return scheduler.timesteps[skipped * scheduler.order :]


def _noised(
    pipeline: Pipeline, scheduler: Any, images: Tensor, times: Tensor, generators: list[torch.Generator]
) -> Tensor:
    mean, std = encode_latents(pipeline, images)
    clean = mean.cpu() + std.cpu() * _noise(pipeline, generators)
    return scheduler.add_noise(clean, _noise(pipeline, generators), times[:1].repeat(len(images)))


def _decode(pipeline: Pipeline, latents: Tensor) -> Tensor:
    """Decode latents to uint8 ``(B, S, S, 3)`` on the CPU."""
    vae = pipeline.vae
    images = []
    for chunk in (latents / vae.config.scaling_factor).to(vae.dtype).split(_DECODE_CHUNK):
        pixels = vae.decode(chunk, return_dict=False)[0].float()
        images.append(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(images).cpu().contiguous()


def _check(
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_steps: int,
    guidance_scale: float,
    init_images: Tensor | None,
    strength: float | None,
    batch_size: int | None,
) -> None:
    if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
        raise ValueError(f"prompts and seeds must be lists of one length, at least 1, got {len(prompts)}, {len(seeds)}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if guidance_scale < 1:
        raise ValueError(f"guidance_scale must be at least 1, got {guidance_scale}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if (init_images is None) != (strength is None):
        raise ValueError("init_images and strength must be given together, got only one of them")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    if init_images is not None and len(init_images) != len(prompts):
        raise ValueError(f"init_images must be as many as prompts, {len(prompts)}, got {len(init_images)}")
