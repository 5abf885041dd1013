"""Training of the shipped small diffusion pipeline, on printed characters of the training fonts, on one CPU core.

Two stages, as for Stable Diffusion. The VAE learns strokes of every kind, so that it can also decode shapes that the
UNet has not seen. UNet and text encoder are then trained together to predict the velocity of noised latents from
captions, a tenth of which are empty for classifier-free guidance.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.utils import save_image

from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.models.diffusion import (
    DiffusionConfig,
    Pipeline,
    alphas_cumprod,
    encode_latents,
    load_pipeline,
    tokenize,
)
from tenfold.models.diffusion_lora import Denoiser
from tenfold.models.sampling import generate
from tenfold.pretraining.tiny.diffusion_architecture import build_pipeline
from tenfold.pretraining.tiny.diffusion_images import Printer, captions_of

VAE_STEPS = 1600
DENOISER_STEPS = 4200
_VAE_BATCH, _BATCH = 32, 64
_VAE_LEARNING_RATE, _LEARNING_RATE = 2e-3, 1.2e-3
_KL_WEIGHT = 5e-4
"""Weight of the KL term per latent element: enough to keep the latents smooth, too little to blur the strokes."""
_NUM_CHARACTERS = 40_000
_EMPTY_SHARE = 0.1
_SNAPSHOT_STEPS = 1000
_LOG_STEPS = 100


def train(
    out: Path, seed: int = 0, *, vae_steps: int = VAE_STEPS, denoiser_steps: int = DENOISER_STEPS, log: bool = True
) -> None:
    """Train the pipeline and write it, with a grid of samples ``samples.png``.

    The averaged weights are written every thousand steps and at the end, so the folder is usable from then on.

    Args:
        out: Folder of the pipeline, in diffusers' format.
        seed: Seed of weights, images and noise.
        vae_steps: Steps of the first stage, batches of 32.
        denoiser_steps: Steps of the second stage, batches of 64.
        log: Whether losses are printed.

    Raises:
        OSError: The folder cannot be created.
    """
    out.mkdir(parents=True, exist_ok=True)  # fail before an hour of training, not after it
    pipeline = build_pipeline(seed=seed)
    say = _printer(log)
    train_vae(pipeline, seed, vae_steps, say)
    train_denoiser(pipeline, seed, denoiser_steps, say, lambda averaged: publish(pipeline, averaged, out))


def train_vae(pipeline: Pipeline, seed: int, num_steps: int, say: Callable[[str], None]) -> None:
    """Train the VAE; afterwards ``vae.config.scaling_factor`` scales latents of characters to unit variance."""
    vae = pipeline.vae.train()
    printer = Printer(2 * seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_VAE_LEARNING_RATE, betas=(0.9, 0.99))
    schedule = _warm_cosine(optimizer, num_steps)
    errors: list[float] = []
    for step in range(num_steps):
        images = (2 * printer.shapes(_VAE_BATCH) - 1).expand(-1, 3, -1, -1)
        latent = vae.encode(images).latent_dist
        drawn = vae.decode(latent.sample(generator)).sample
        error = functional.l1_loss(drawn, images) + functional.mse_loss(drawn, images)
        loss = error + _KL_WEIGHT * latent.kl().mean() / latent.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        errors.append(error.item())
        if (step + 1) % _LOG_STEPS == 0:
            say(f"vae {step + 1}/{num_steps} error {_mean(errors[-_LOG_STEPS:]):.4f}")
    vae.eval()
    vae.register_to_config(scaling_factor=1.0)
    mean, std = encode_latents(pipeline, _as_uint8(Printer(2 * seed + 1).characters(2000)[0]))
    vae.register_to_config(scaling_factor=round(1 / (mean.var() + std.square().mean()).sqrt().item(), 4))


def train_denoiser(
    pipeline: Pipeline,
    seed: int,
    num_steps: int,
    say: Callable[[str], None],
    publish_weights: Callable[[nn.Module], None],
) -> None:
    """Train UNet and text encoder on velocity prediction, with latents computed once for all characters."""
    denoiser = Denoiser(pipeline).train()
    average = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = _warm_cosine(optimizer, num_steps)
    share = alphas_cumprod(pipeline)
    errors: list[float] = []
    for step, (latents, tokens, generator) in enumerate(_batches(pipeline, seed, num_steps, say)):
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(len(share), (len(latents),), generator=generator)
        signal = share[times].sqrt()[:, None, None, None]
        spread = (1 - share[times]).sqrt()[:, None, None, None]
        prediction = denoiser(signal * latents + spread * noise, times, tokens, torch.arange(len(latents)))
        loss = functional.mse_loss(prediction, signal * noise - spread * latents)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(denoiser)
        errors.append(loss.item())
        if (step + 1) % _LOG_STEPS == 0:
            say(f"denoiser {step + 1}/{num_steps} loss {_mean(errors[-_LOG_STEPS:]):.4f}")
        if (step + 1) % _SNAPSHOT_STEPS == 0 or step + 1 == num_steps:
            publish_weights(average.module)


def publish(pipeline: Pipeline, averaged: nn.Module, out: Path) -> None:
    """Write the pipeline with averaged UNet and text encoder in half precision, and a grid of samples."""
    halves = {part: copy.deepcopy(getattr(averaged, part)).half().eval() for part in ("unet", "text_encoder")}
    published: Pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(pipeline.vae).half(),
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **halves,
    )
    fresh = out.with_name(f".{out.name}.tmp")
    published.save_pretrained(fresh)
    drawn = sample_grid(load_pipeline(DiffusionConfig(name=str(fresh.absolute()))))
    save_image(drawn, fresh / "samples.png", nrow=10, padding=0)
    for path in sorted(fresh.rglob("*")):
        if path.is_file():
            target = out / path.relative_to(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            path.replace(target)
    shutil.rmtree(fresh)


def sample_grid(pipeline: Pipeline, num_rows: int = 8) -> Tensor:
    """Generate a row of ten digits for each seed, float32 ``(10 * num_rows, 3, S, S)`` in [0, 1]."""
    prompts = [f"a digit photo of a {word}" for word in DIGIT_WORDS] * num_rows
    seeds = [number for number in range(num_rows) for _ in DIGIT_WORDS]
    drawn = generate(pipeline, prompts, seeds, num_steps=25, guidance_scale=2.0)
    return drawn.permute(0, 3, 1, 2).float() / 255


def _batches(
    pipeline: Pipeline, seed: int, num_steps: int, say: Callable[[str], None]
) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """Yield latents ``(64, C, h, h)``, the tokens of a caption for each ``(64, L)``, and the random generator."""
    generator = torch.Generator().manual_seed(seed + 1)
    printer = Printer(2 * seed + 1)
    parts = []
    for _ in range(
        _NUM_CHARACTERS // 1000
    ):  # glyphs are deformed at twice the size, so all at once would fill the memory
        images, characters, fonts = printer.characters(1000)
        parts.append((*encode_latents(pipeline, _as_uint8(images)), characters, fonts))
    mean, std, characters, fonts = (torch.cat(columns) for columns in zip(*parts, strict=True))
    say(f"denoiser: {_NUM_CHARACTERS} characters encoded")
    captions = {
        (character, font): tokenize(pipeline, captions_of(character, font))
        for character, font in sorted(set(zip(characters.tolist(), fonts.tolist(), strict=True)))
    }
    empty = tokenize(pipeline, [""])[0]
    for _ in range(num_steps):
        rows = torch.randint(_NUM_CHARACTERS, (_BATCH,), generator=generator)
        latents = mean[rows] + std[rows] * torch.randn(mean[rows].shape, generator=generator)
        tokens = []
        for character, font in zip(characters[rows].tolist(), fonts[rows].tolist(), strict=True):
            choices = captions[character, font]
            tokens.append(choices[torch.randint(len(choices), (), generator=generator)])
        text = torch.stack(tokens)
        text[torch.rand(_BATCH, generator=generator) < _EMPTY_SHARE] = empty
        yield latents, text, generator


def _warm_cosine(optimizer: torch.optim.Optimizer, num_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warm = min(200, num_steps // 10 + 1)

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, num_steps - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _as_uint8(images: Tensor) -> Tensor:
    """Convert float ``(B, 1, S, S)`` in [0, 1] to uint8 ``(B, S, S, 3)``."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _printer(log: bool) -> Callable[[str], None]:
    start = time.monotonic()

    def say(line: str) -> None:
        if log:
            print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    return say
