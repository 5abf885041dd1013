"""Text-to-image diffusion pipelines of diffusers: Stable Diffusion 1.5 and 2.1, the small one that ships, their like.

What is here reads a pipeline and takes it apart for training: tokens, text embeddings, latents of pictures, one
prediction of the UNet. ``sampling`` draws pictures with it, ``diffusion_lora`` adapts it.

Shapes: B pictures or prompts, S picture side, L tokens, E width of the text embeddings, C, h latent channels and side.
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
"""The pipeline that ships: 32x32 pictures of printed digits; by ``python -m tenfold.pretraining.tiny diffusion``."""

PREDICTION_TYPES = ("epsilon", "v_prediction")
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_ENCODE_CHUNK = 16
"""Pictures that the VAE takes at once: its activations are the largest of the pipeline."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Which pipeline, and how it computes."""

    name: str = "tiny"
    """``tiny`` (ships with the package), a local folder in diffusers' format, or an id on the Hugging Face hub such as
    ``stabilityai/stable-diffusion-2-1-base``."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the frozen weights; ``auto``: bf16 on a GPU that has it, fp16 on other GPUs, fp32 on the CPU."""
    compile: bool = False
    """Whether ``torch.compile`` makes kernels for the UNet: minutes at the first batch, faster from then on."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Of the weight files, such as ``fp16``."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must be 'tiny', a folder or a hub id, got an empty name")
        if self.dtype not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"dtype must be auto, fp32, bf16 or fp16, got {self.dtype!r}")


def load_pipeline(config: DiffusionConfig, device: str | torch.device = "cpu") -> Pipeline:
    """The pipeline on a device, frozen, in evaluation mode, without safety checker and progress bar.

    Weights are read from safetensors files only, never unpickled.

    Raises:
        ValueError: No such folder or hub id, a folder without ``model_index.json``, no UNet that is conditioned on
            text embeddings alone, or a prediction type other than ``epsilon`` and ``v_prediction``.
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
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:  # all by broken files
        raise ValueError(f"{folder}: not a pipeline that diffusers can read from safetensors files: {error}") from error
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        # Convolutions on tensor cores read channels last; on the CPU it made no difference.
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if config.compile:
        pipeline.unet.compile()  # in place: names of parameters stay, so adapters still load
    return pipeline


def pipeline_fingerprint(config: DiffusionConfig) -> str:
    """SHA-256 over names and contents of the configuration and weight files of the pipeline.

    Raises:
        ValueError: As ``load_pipeline``.
    """
    folder = _folder(config)
    _check(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt"))
    return _hash_of(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def picture_size(pipeline: Pipeline) -> int:
    """Side S in pixels of the pictures that the pipeline was made for."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def latent_shape(pipeline: Pipeline) -> tuple[int, int, int]:
    """``(C, h, h)`` of one latent."""
    side = int(pipeline.unet.config.sample_size)
    return int(pipeline.unet.config.in_channels), side, side


def prediction_type(pipeline: Pipeline) -> str:
    """What the UNet predicts: ``epsilon`` (the noise) or ``v_prediction`` (the velocity)."""
    return str(pipeline.scheduler.config.prediction_type)


def alphas_cumprod(pipeline: Pipeline) -> Tensor:
    """The noise schedule: the share of the picture's variance left at each time, float32 ``(T,)``, on the CPU."""
    return pipeline.scheduler.alphas_cumprod.float().cpu()


def tokenize(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Token ids int64 ``(B, L)`` on the pipeline's device, padded and cut to the model's length.

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
    """Text embeddings ``(B, L, E)`` of token ids ``(B, L)``, with gradients to whatever is trainable.

    Without attention mask, as Stable Diffusion was trained (section 2.1): padding tokens are read too.
    """
    return pipeline.text_encoder(tokens)[0]


@torch.no_grad()
def prompt_embeddings(pipeline: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Text embeddings ``(B, L, E)``, without gradients; each distinct prompt goes through the text encoder once."""
    distinct = list(dict.fromkeys(prompts))
    embeddings = embed_tokens(pipeline, tokenize(pipeline, distinct))
    if len(distinct) == len(prompts):
        return embeddings
    row = {prompt: number for number, prompt in enumerate(distinct)}
    return embeddings[[row[prompt] for prompt in prompts]]


@torch.no_grad()
def encode_latents(pipeline: Pipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """The normal distribution of each picture's latent, in the scale that the UNet works in.

    A training run keeps these and draws ``mean + std * noise`` anew in each step: the VAE runs once per picture.

    Args:
        images: uint8 ``(B, S, S, 3)``.

    Returns:
        Mean and standard deviation, float32 ``(B, C, h, h)``, on the pipeline's device.

    Raises:
        ValueError: Not uint8, or not of the pipeline's size.
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
    """One prediction of the UNet, noise or velocity (``prediction_type``).

    Args:
        noisy_latents: ``(B, C, h, h)``; cast to the UNet's type.
        timesteps: int64 ``(B,)`` or ``()``, on the UNet's device.
        text_embeddings: ``(B, L, E)``.

    Returns:
        ``(B, C, h, h)`` in the UNet's type, or that of autocast.
    """
    unet = pipeline.unet
    return unet(noisy_latents.to(unet.dtype), timesteps, text_embeddings.to(unet.dtype), return_dict=False)[0]


def _pixels(pipeline: Pipeline, images: Tensor) -> Tensor:
    """uint8 ``(B, S, S, 3)`` to float32 ``(B, 3, S, S)`` in [-1, 1]."""
    size = picture_size(pipeline)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images must be uint8 (B, {size}, {size}, 3), got {images.dtype} {tuple(images.shape)}; resize them first"
        )
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Both libraries draw bars while they read files, even small ones; what was set before is set again."""
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
    """Where the files of the pipeline lie; a hub id is downloaded first."""
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
    except OSError as error:  # also everything that huggingface_hub raises
        raise ValueError(
            f"{config.name}: neither a folder nor a pipeline that the Hugging Face hub gave ({error}); check the name "
            f"and the network, or set the name to a local folder in diffusers' format"
        ) from error


def _check(folder: Path) -> dict[str, Any]:
    """The index of a pipeline that fits; nothing large has been read by then."""
    index = _read_json(folder / "model_index.json")
    missing = [part for part in _PARTS if not (isinstance(index.get(part), list) and index[part][0])]
    if missing:
        raise ValueError(
            f"{folder}: {index.get('_class_name', 'the pipeline')} has no {', '.join(missing)}; a UNet text-to-image "
            f"pipeline with {', '.join(_PARTS)} is needed, such as Stable Diffusion 1.5 or 2.1"
        )
    unet = _read_json(folder / "unet" / "config.json")
    addition = unet.get("addition_embed_type")
    if addition is not None:
        raise ValueError(
            f"{folder}: the UNet wants further conditions (addition_embed_type {addition!r}) beside text embeddings; "
            f"take Stable Diffusion 1.5 or 2.1 or their like"
        )
    channels, size = unet.get("in_channels", 4), unet.get("sample_size")
    latent_channels = _read_json(folder / "vae" / "config.json").get("latent_channels", 4)
    if channels != latent_channels or not isinstance(size, int):
        raise ValueError(
            f"{folder}: the UNet must take latents of the VAE alone, {latent_channels} channels on a square, got "
            f"{channels} channels of size {size}; pipelines for inpainting, depth or upscaling do not fit"
        )
    prediction = _read_json(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"{folder}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction!r}")
    return index


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a folder as diffusers' save_pretrained writes it is expected")
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
