"""Low-rank adapters (LoRA) of a diffusion pipeline, made by peft and stored in diffusers' file format.

DataDream, section 2.1: every attention projection ``y = W x + b`` of the UNet and of the text encoder gains
``(alpha / r) B A x`` with ``A ~ Normal(0, 1/r)`` (standard deviation) and ``B = 0``; everything else is frozen.

A pipeline holds one adapter. Another one is swapped in by copying its tensors into the existing parameters, which takes
milliseconds; ``merged_adapter`` merges it into the weights while images are generated.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tenfold.files import write_atomically
from tenfold.models.diffusion import Pipeline, denoise, embed_tokens

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""File name that ``pipe.load_lora_weights(folder)`` of diffusers reads."""

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_NAME = "default"
_METADATA = "lora_adapter_metadata"  # key in the safetensors header under which diffusers keeps rank and alpha


def add_adapter(
    pipeline: Pipeline, *, rank: int = 16, alpha: float = 16, text_encoder: bool = True, seed: int = 0
) -> list[nn.Parameter]:
    """Add a new adapter to the attention projections; the pipeline's predictions stay the same.

    Args:
        rank: r, at least 1.
        alpha: The update is scaled by ``alpha / rank``.
        text_encoder: Whether the text encoder is adapted too.
        seed: Seed of the matrices A, which are the same on every machine and device.

    Returns:
        The trainable parameters, float32: A ``(r, in)`` and B ``(out, r)`` of every layer.

    Raises:
        ValueError: ``rank`` is below 1, ``alpha`` not positive, or the pipeline has an adapter already.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if _parameters(pipeline):
        raise ValueError(
            "the pipeline has an adapter already; call remove_adapter first, or reset_adapter to start again"
        )
    pipeline.unet.add_adapter(_config(rank, alpha, UNET_TARGETS), adapter_name=_NAME)
    if text_encoder:
        pipeline.text_encoder.add_adapter(_config(rank, alpha, TEXT_TARGETS), adapter_name=_NAME)
    for parameter in _parameters(pipeline).values():
        parameter.data = parameter.data.float()  # the optimiser's steps are too small for half precision
    return reset_adapter(pipeline, seed)


def reset_adapter(pipeline: Pipeline, seed: int = 0) -> list[nn.Parameter]:
    """Draw A again and set B to zero, in place, as ``add_adapter`` initialises them.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: The pipeline has no adapter.
    """
    parameters = _existing(pipeline)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(parameters):
            parameter = parameters[name]
            if ".lora_A." in name:
                rank = parameter.shape[0]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / rank)
            else:
                parameter.zero_()
            parameter.requires_grad_(True)
    return list(parameters.values())


def remove_adapter(pipeline: Pipeline) -> None:
    """Remove the adapter, if there is one; the pipeline is then what it was before ``add_adapter``."""
    pipeline.unload_lora_weights()


def adapter_tensors(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return copies of A and B of every layer, by the names of the file format, on the CPU.

    Raises:
        ValueError: The pipeline has no adapter.
    """
    return {name: parameter.detach().cpu().clone() for name, parameter in _existing(pipeline).items()}


def save_adapter(pipeline: Pipeline, folder: Path) -> None:
    """Write the adapter atomically, in the format that ``pipe.load_lora_weights(folder)`` reads.

    Raises:
        ValueError: The pipeline has no adapter.
    """
    tensors = adapter_tensors(pipeline)
    parts: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        layers = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        if layers:
            config = getattr(pipeline, part).peft_config[_NAME]
            parts[f"{part}_lora_layers"] = layers
            # Without it, loaders assume alpha = rank.
            parts[f"{part}_lora_adapter_metadata"] = {
                "r": config.r,
                "lora_alpha": config.lora_alpha,
                "target_modules": sorted(config.target_modules),
            }
    write_atomically(
        folder / ADAPTER_FILE,
        lambda path: pipeline.save_lora_weights(path.parent, weight_name=path.name, **parts),
    )


def load_adapter(pipeline: Pipeline, source: Path | Mapping[str, Tensor]) -> None:
    """Swap an adapter in: copy its tensors into the parameters of the existing one.

    Args:
        source: A folder of ``save_adapter``, or the result of ``adapter_tensors``. With a folder, a pipeline without
            adapter gets one of the stored rank and alpha; tensors need an existing one.

    Raises:
        ValueError: The adapter file is missing or damaged, or its layers, rank or alpha are not those of the pipeline.
    """
    if isinstance(source, Path):
        tensors, rank, alpha = _read(source / ADAPTER_FILE)
        if not _parameters(pipeline):
            text_encoder = any(name.startswith("text_encoder.") for name in tensors)
            add_adapter(pipeline, rank=rank, alpha=alpha, text_encoder=text_encoder)
        present = pipeline.unet.peft_config[_NAME].lora_alpha
        if alpha != present:
            raise ValueError(
                f"alpha of {source} must be {present} as in the pipeline, got {alpha}; remove_adapter first"
            )
    else:
        tensors = dict(source)
    parameters = _existing(pipeline)
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())
        raise ValueError(
            f"the adapter must have the layers of the pipeline's, got {len(odd)} differing names such as {odd[0]}; "
            f"check that both were made with, or both without, the text encoder"
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ValueError(
                f"{name} must be {tuple(parameter.shape)}, got {tuple(tensors[name].shape)}: another rank or another "
                f"pipeline; remove_adapter first"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


@contextmanager
def merged_adapter(pipeline: Pipeline) -> Iterator[None]:
    """Merge the update into the weights within the context, so that a forward pass costs the same as without adapter.

    The original weights are kept and copied back bit for bit: subtracting the update would leave rounding errors.

    Raises:
        ValueError: The pipeline has no adapter.
    """
    _existing(pipeline)
    layers: list[Any] = [
        module
        for part in (pipeline.unet, pipeline.text_encoder)
        for module in part.modules()
        if isinstance(module, LoraLayer)
    ]
    originals = []
    try:
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                originals.append(weight.detach().clone())
                low, high = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
                exact = torch.promote_types(weight.dtype, torch.float32)  # half precision would round twice
                weight.copy_(weight.to(exact) + layer.scaling[_NAME] * (high.to(exact) @ low.to(exact)))
                layer.merged_adapters.append(_NAME)  # peft then leaves A and B out of the forward pass
        yield
    finally:
        with torch.no_grad():
            for layer, original in zip(layers, originals, strict=False):  # fewer, if merging failed half-way
                layer.get_base_layer().weight.copy_(original)
                layer.merged_adapters.clear()


class Denoiser(nn.Module):
    """UNet and text encoder as one module, for an engine that trains the adapters of both (DDP, autocast, checkpoints).

    Its parameters are those of the pipeline itself; nothing is copied.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.text_encoder = pipeline.text_encoder

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
        """Return the UNet's prediction ``(B, C, h, h)``.

        Args:
            noisy_latents: ``(B, C, h, h)``.
            timesteps: int64 ``(B,)``.
            tokens: Token ids of the distinct prompts, int64 ``(P, L)``; each is encoded once.
            rows: Row of ``tokens`` for each image, int64 ``(B,)``.
        """
        return denoise(self, noisy_latents, timesteps, embed_tokens(self, tokens)[rows])


def _config(rank: int, alpha: float, targets: tuple[str, ...]) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared as int, floats work
        init_lora_weights="gaussian",
        lora_dropout=0.0,
        target_modules=list(targets),
    )


def _parameters(pipeline: Pipeline) -> dict[str, nn.Parameter]:
    """Return A and B by the names of the file format, without the adapter's name that peft inserts."""
    return {
        f"{part}.{name.replace(f'.{_NAME}.', '.')}": parameter
        for part in ("unet", "text_encoder")
        for name, parameter in getattr(pipeline, part).named_parameters()
        if f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name
    }


def _existing(pipeline: Pipeline) -> dict[str, nn.Parameter]:
    parameters = _parameters(pipeline)
    if not parameters:
        raise ValueError("the pipeline has no adapter; call add_adapter or load_adapter first")
    return parameters


def _read(path: Path) -> tuple[dict[str, Tensor], int, float]:
    """Read tensors, rank and alpha of an adapter file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder written by save_adapter")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ValueError(
            f"{path} must hold lora_A.weight tensors of one rank, got ranks {sorted(ranks)}; load adapters in other "
            f"formats with the pipeline's own load_lora_weights"
        )
    rank = ranks.pop()
    settings = json.loads(metadata.get(_METADATA, "{}"))
    return tensors, rank, float(settings.get("unet.lora_alpha", rank))
