"""Text-to-image diffusion pipelines of diffusers: Stable Diffusion 1.5 and 2.1, the small shipped one and similar.

This module loads a pipeline and exposes its parts for training: tokens, text embeddings, latents of images, one
prediction of the UNet. ``sampling`` generates images with it, ``diffusion_lora`` adapts it.

Shapes: B images or prompts, S image side, L tokens, E width of the text embeddings, C, h latent channels and side.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

Pipeline: TypeAlias = Any
"""A ``StableDiffusionPipeline`` or another with ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``;
diffusers sets these attributes at run time and declares them on no class."""

TINY_FOLDER = Path(__file__).parent / "weights" / "tiny_diffusion"
"""Shipped pipeline: 32x32 images of printed digits; trained by ``python -m tenfold.pretraining.tiny diffusion``."""

PREDICTION_TYPES = ("epsilon", "v_prediction")
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_ENCODE_CHUNK = 16
"""Images that the VAE encodes at once: its activations are the largest of the pipeline."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Settings of the pipeline and its computation."""

    name: str = "tiny"
    """``tiny`` (the shipped pipeline), a local folder in diffusers' format, or an id on the Hugging Face hub such as
    ``stabilityai/stable-diffusion-2-1-base``."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Dtype of the frozen weights; ``auto``: bf16 on a GPU that supports it, fp16 on other GPUs, fp32 on the CPU."""
    compile: bool = False
    """Compile the UNet with ``torch.compile``: minutes at the first batch, faster from then on."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Variant of the weight files, such as ``fp16``."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must be 'tiny', a folder or a hub id, got an empty name")
        if self.dtype not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"dtype must be auto, fp32, bf16 or fp16, got {self.dtype!r}")


def load_pipeline(config: DiffusionConfig, device: str | torch.device = "cpu") -> Pipeline:
    """Load the pipeline onto a device, frozen, in evaluation mode, without safety checker and progress bar.

    Weights are read from safetensors files only, never unpickled.

    Raises:
        ValueError: The folder or hub id does not exist, the folder lacks ``model_index.json``, the UNet is not
            conditioned on text embeddings alone, or the prediction type is not ``epsilon`` or ``v_prediction``.
    """
    device = torch.device(device)
    folder = _folder(config)
    index = _check(folder)
    extras = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
    try:
        with _without_progress_bars():
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder), dtype=_dtype(config, device), variant=config.variant, use_safetensors=True, **extras
            )
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:  # all raised by damaged files
        raise ValueError(
            f"{folder} must be a pipeline that diffusers can read from safetensors files: {error}"
        ) from error
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        # Tensor cores prefer channels-last convolutions; on the CPU it made no difference.
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if config.compile:
        pipeline.unet.compile()  # in place: parameter names stay, so adapters still load
    return pipeline


def pipeline_fingerprint(config: DiffusionConfig) -> str:
    """Return the SHA-256 of names and contents of the pipeline's configuration and weight files.

    Raises:
        ValueError: As in ``load_pipeline``.
    """
    folder = _folder(config)
    _check(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt"))
    return _hash_of(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def image_size(pipeline: Pipeline) -> int:
    """Return the side S, in pixels, of the images that the pipeline generates."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def latent_shape(pipeline: Pipeline) -> tuple[int, int, int]:
    """Return the shape ``(C, h, h)`` of one latent."""
    side = int(pipeline.unet.config.sample_size)
    return int(pipeline.unet.config.in_channels), side, side


def prediction_type(pipeline: Pipeline) -> str:
    """Return the UNet's target: ``epsilon`` (the noise) or ``v_prediction`` (the velocity)."""
    return str(pipeline.scheduler.config.prediction_type)


def alphas_cumprod(pipeline: Pipeline) -> Tensor:
    """Return the noise schedule: the share of signal variance left at each timestep, float32 ``(T,)``, on the CPU."""
    return pipeline.scheduler.alphas_cumprod.float().cpu()


def tokenize(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Return token ids int64 ``(B, L)`` on the pipeline's device, padded and truncated to the model's length.

    Raises:
        ValueError: There are no prompts.
    """
    if not prompts:
        raise ValueError("prompts must hold at least one text, got none")
    tokens = pipeline.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens.input_ids.to(pipeline.device)


def embed_tokens(pipeline: Pipeline, tokens: Tensor) -> Tensor:
    """Return text embeddings ``(B, L, E)`` of token ids ``(B, L)``, with gradients to all trainable parameters.

    No attention mask is used, as in the training of Stable Diffusion (section 2.1): padding tokens are read too.
    """
    return pipeline.text_encoder(tokens)[0]


@torch.no_grad()
def prompt_embeddings(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Return text embeddings ``(B, L, E)``, without gradients; each distinct prompt is encoded once."""
    distinct = list(dict.fromkeys(prompts))
    embeddings = embed_tokens(pipeline, tokenize(pipeline, distinct))
    if len(distinct) == len(prompts):
        return embeddings
    row = {prompt: number for number, prompt in enumerate(distinct)}
    return embeddings[[row[prompt] for prompt in prompts]]


@torch.no_grad()
def encode_latents(pipeline: Pipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal distribution of each image's latent, in the scale that the UNet works in.

    A training run keeps these and draws ``mean + std * noise`` anew in each step, so the VAE runs once per image.

    Args:
        images: uint8 ``(B, S, S, 3)``.

    Returns:
        Mean and standard deviation, float32 ``(B, C, h, h)``, on the pipeline's device.

    Raises:
        ValueError: The images are not uint8, or not of the pipeline's size.
    """
    pixels = _pixels(pipeline, images)
    scale = pipeline.vae.config.scaling_factor
    means, stds = [], []
    for chunk in pixels.split(_ENCODE_CHUNK):
        latent = pipeline.vae.encode(chunk.to(pipeline.device, pipeline.vae.dtype)).latent_dist
        means.append(latent.mean.float() * scale)
        stds.append(latent.std.float() * scale)
    return torch.cat(means), torch.cat(stds)


def denoise(pipeline: Pipeline, noisy_latents: Tensor, timesteps: Tensor, text_embeddings: Tensor) -> Tensor:
    """Run the UNet once and return its prediction, noise or velocity (``prediction_type``).

    Args:
        noisy_latents: ``(B, C, h, h)``; cast to the UNet's dtype.
        timesteps: int64 ``(B,)`` or ``()``, on the UNet's device.
        text_embeddings: ``(B, L, E)``.

    Returns:
        ``(B, C, h, h)`` in the UNet's dtype, or that of autocast.
    """
    unet = pipeline.unet
    return unet(noisy_latents.to(unet.dtype), timesteps, text_embeddings.to(unet.dtype), return_dict=False)[0]


def _pixels(pipeline: Pipeline, images: Tensor) -> Tensor:
    """Convert uint8 ``(B, S, S, 3)`` to float32 ``(B, 3, S, S)`` in [-1, 1]."""
    size = image_size(pipeline)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be uint8 (B, {size}, {size}, 3), got {images.dtype} {tuple(images.shape)}; resize them first"
        )
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Disable the progress bars of both libraries while files are read, and restore the settings afterwards."""
    chatty = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in chatty:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in chatty:
            library.enable_progress_bar()


def _dtype(config: DiffusionConfig, device: torch.device) -> torch.dtype:
    if config.dtype != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _folder(config: DiffusionConfig) -> Path:
    """Return the folder of the pipeline's files; a hub id is downloaded first."""
    if config.name == "tiny":
        return TINY_FOLDER
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        return folder
    if config.name.startswith(("/", ".", "~")) or config.name.count("/") != 1:
        raise ValueError(
            f"{config.name}: no such folder; name must be 'tiny', an existing folder in diffusers' format or a hub id "
            f"such as 'stabilityai/stable-diffusion-2-1-base'"
        )
    try:
        return Path(
            DiffusionPipeline.download(
                config.name,
                revision=config.revision,
                variant=config.variant,
                use_safetensors=True,
                safety_checker=None,
            )
        )
    except OSError as error:  # includes all errors of huggingface_hub
        raise ValueError(
            f"{config.name}: neither a folder nor a pipeline on the Hugging Face hub ({error}); check the name and the "
            f"network, or set the name to a local folder in diffusers' format"
        ) from error


def _check(folder: Path) -> dict[str, Any]:
    """Return the index of a supported pipeline, or raise, before any large file is read."""
    index = _read_json(folder / "model_index.json")
    missing = [part for part in _PARTS if not (isinstance(index.get(part), list) and index[part][0])]
    if missing:
        raise ValueError(
            f"{folder} must hold a text-to-image pipeline with {', '.join(_PARTS)}, got "
            f"{index.get('_class_name', 'one')} without {', '.join(missing)}; use Stable Diffusion 1.5 or 2.1"
        )
    unet = _read_json(folder / "unet" / "config.json")
    addition = unet.get("addition_embed_type")
    if addition is not None:
        raise ValueError(
            f"{folder}: the UNet must be conditioned on text embeddings alone, got addition_embed_type {addition!r}; "
            f"use Stable Diffusion 1.5 or 2.1"
        )
    channels, size = unet.get("in_channels", 4), unet.get("sample_size")
    latent_channels = _read_json(folder / "vae" / "config.json").get("latent_channels", 4)
    if channels != latent_channels or not isinstance(size, int):
        raise ValueError(
            f"{folder}: the UNet must take latents of the VAE alone, {latent_channels} channels on a square, got "
            f"{channels} channels of size {size}; pipelines for inpainting, depth or upscaling are not supported"
        )
    prediction = _read_json(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"{folder}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction!r}")
    return index


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder written by diffusers' save_pretrained")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


@lru_cache(maxsize=8)
def _hash_of(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
