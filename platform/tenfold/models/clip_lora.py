"""CLIP with low-rank adapters on the query and value projections of both towers.

Kim et al., "DataDream: Few-shot Guided Dataset Generation", ECCV 2024, with rank 16, alpha 32 and dropout 0.1.
A convolutional image tower has no such projections: all of its weights are trained instead.

``adapt_clip`` changes a ``Clip`` in place; ``lora_tensors`` and ``load_lora_tensors`` copy the trained tensors;
``merge_lora``, ``merged_state_dict`` and ``save_peft`` export to plain open_clip and to peft.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, Transformer
from safetensors.torch import save
from torch import Tensor, nn

from tenfold.files import write_atomically
from tenfold.models.clip import Clip
from tenfold.models.lora import LoRAMultiheadAttention


class BlockAttention(nn.Module):
    """Adapted attention with the call signature that open_clip's blocks use for ``nn.MultiheadAttention``.

    Args:
        attention: The adapted attention.
        batch_first: Whether inputs are ``(N, L, E)``, else ``(L, N, E)``.
        is_causal: Whether the mask passed in is the causal one, so that it need not be read.
    """

    def __init__(self, attention: LoRAMultiheadAttention, batch_first: bool, is_causal: bool) -> None:
        super().__init__()
        self.attention = attention
        self.batch_first = batch_first
        self.is_causal = is_causal

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Compute self-attention, without attention weights.

        Raises:
            ValueError: If query, key and value are not one tensor, or weights are requested.
        """
        if key is not query or value is not query or need_weights:
            raise ValueError("query, key and value must be one tensor and need_weights False in an adapted attention")
        is_causal = self.is_causal and attn_mask is not None
        mixed = self.attention.attend(query, attn_mask, batch_first=self.batch_first, is_causal=is_causal)
        return mixed, None

    def to_torch(self) -> nn.MultiheadAttention:
        """Return a frozen plain attention with the updates merged in."""
        attention = self.attention
        plain = nn.MultiheadAttention(
            attention.qkv.embed_dim,
            attention.num_heads,
            dropout=attention.attention_dropout,
            bias=attention.qkv.bias is not None,
            batch_first=self.batch_first,
            device=attention.out_weight.device,
            dtype=attention.out_weight.dtype,
        )
        plain.load_state_dict(attention.merged_state())
        return plain.requires_grad_(False).train(self.training)


def adapt_clip(
    clip: Clip,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.1,
    image_tower: bool = True,
    text_tower: bool = True,
) -> None:
    """Add low-rank updates of query and value to every attention of the chosen towers, and freeze the rest.

    A ``ModifiedResNet`` as image tower (RN50 and similar) gets no adapters: all its weights become trainable.
    Before training, the adapted model computes what it did before. A is drawn from PyTorch's global generator.

    Raises:
        ValueError: If no tower is chosen, the model is adapted already, a tower has no adaptable attention (timm,
            Hugging Face, open_clip's custom blocks), or rank, alpha or dropout are out of range.
    """
    network: Any = clip.network
    if not (image_tower or text_tower):
        raise ValueError("image_tower or text_tower must be true, got neither")
    if _adapted(network) or any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("the model must be frozen and not adapted; load it again, or merge its adapters first")
    towers = {}
    if text_tower:
        towers["text"] = _text_owner(network)
    if image_tower and not isinstance(network.visual, ModifiedResNet):
        towers["image"] = network.visual
    blocks = {name: _blocks(owner, name) for name, owner in towers.items()}
    made = []  # all of them before any is inserted, so that an error leaves the model unchanged
    for name, owner in towers.items():
        is_causal = name == "text" and _is_causal(owner)
        for block in blocks[name]:
            attention = LoRAMultiheadAttention.from_torch(block.attn, rank, alpha, dropout)
            made.append((block, BlockAttention(attention, block.attn.batch_first, is_causal)))
    for block, adapted in made:
        block.attn = adapted.train(block.training)
    if image_tower and isinstance(network.visual, ModifiedResNet):
        network.visual.requires_grad_(True)


def lora_tensors(clip: Clip) -> dict[str, Tensor]:
    """Return CPU copies of all trained tensors: ``<path of the attention>.lora_A`` and ``.lora_B``, and the whole
    state of a convolutional image tower if it is trained (``visual.*``, with its running statistics).

    Raises:
        ValueError: If the model is not adapted.
    """
    return {name: tensor.detach().cpu().clone() for name, tensor in _trained(clip).items()}


@torch.no_grad()
def load_lora_tensors(clip: Clip, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of ``lora_tensors`` into a model adapted in the same way.

    Raises:
        ValueError: If the model is not adapted, or a name or shape does not match; nothing is changed then.
    """
    trained = _trained(clip)
    missing, surplus = sorted(trained.keys() - tensors.keys()), sorted(tensors.keys() - trained.keys())
    if missing or surplus:
        raise ValueError(
            f"tensors must have the {len(trained)} names of this adaptation, got {len(tensors)}; "
            f"missing {missing[:3]}, surplus {surplus[:3]} (towers and architecture must be the same)"
        )
    for name, tensor in trained.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(f"{name} must be {tuple(tensor.shape)}, got {tuple(tensors[name].shape)}; check the rank")
    for name, tensor in trained.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def merged_state_dict(clip: Clip) -> dict[str, Tensor]:
    """Return the merged weights as copies on the CPU: a state dict that open_clip loads strictly.

    Raises:
        ValueError: If the model is not adapted.
    """
    _require(clip)
    adapted = _adapted(clip.network)
    merged = {
        name: tensor.detach().cpu().clone()
        for name, tensor in clip.network.state_dict().items()
        if not any(name.startswith(f"{path}.") for path in adapted)
    }
    for path, block in adapted.items():
        for name, tensor in block.attention.merged_state().items():
            merged[f"{path}.{name}"] = tensor.cpu()
    return merged


@torch.no_grad()
def merge_lora(clip: Clip) -> None:
    """Replace the adapted attentions by plain ones with merged weights, and freeze the model.

    The model is then as fast as before adaptation, and can no longer be trained or saved as an adapter.
    ``clip.fingerprint`` becomes that of the base and the adapters together.

    Raises:
        ValueError: If the model is not adapted.
    """
    digest = hashlib.sha256(clip.fingerprint.encode())
    for name, tensor in sorted(lora_tensors(clip).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for path, block in _adapted(clip.network).items():
        clip.network.set_submodule(path, block.to_torch())
    clip.network.requires_grad_(False)
    clip.fingerprint = digest.hexdigest()


def save_peft(clip: Clip, folder: Path | str) -> None:
    """Write the adapters in peft's format, for ``peft.PeftModel.from_pretrained(network, folder)``.

    ``network`` is the plain open_clip model. peft has one update for query, key and value together, so the two updates
    of rank r become one of rank 2r, block-diagonal, with zero rows for the keys and a zero update of the output
    projection, which peft always adapts too. A convolutional image tower is saved whole.

    Raises:
        ValueError: If the model is not adapted.
    """
    from peft import LoraConfig

    _require(clip)
    adapted = _adapted(clip.network)
    if not adapted:
        raise ValueError("the model has no adapter, only a trained convolutional image tower; save its state instead")
    tensors: dict[str, Tensor] = {}
    for path, block in adapted.items():
        qkv, prefix = block.attention.qkv, f"base_model.model.{path}"
        up = qkv.block_matrix().detach()  # (3E, 2r)
        tensors[f"{prefix}.lora_A.weight"] = qkv.lora_A.detach()
        tensors[f"{prefix}.lora_B.weight"] = up
        tensors[f"{prefix}.base_layer.out_proj.lora_A.weight"] = torch.zeros_like(qkv.lora_A)
        tensors[f"{prefix}.base_layer.out_proj.lora_B.weight"] = up.new_zeros(qkv.embed_dim, up.shape[1])
    whole = _whole_tower(clip.network)
    tensors.update({f"base_model.model.{name}": tensor.detach() for name, tensor in whole.items()})
    first = next(iter(adapted.values())).attention.qkv
    rank = first.lora_A.shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=first.scale * rank,  # type: ignore[arg-type]  # peft only divides it by r
        target_modules=_pattern(adapted),
        modules_to_save=["visual"] if whole else None,
        inference_mode=True,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / "adapter_model.safetensors", save(contents, metadata={"format": "pt"}))
    config.save_pretrained(str(folder))


def _adapted(network: nn.Module) -> dict[str, BlockAttention]:
    return {name: module for name, module in network.named_modules() if isinstance(module, BlockAttention)}


def _whole_tower(network: Any) -> dict[str, Tensor]:
    """Return the state of the image tower (not copied) if all of it is trained; else nothing."""
    visual = network.visual
    if not isinstance(visual, ModifiedResNet) or not next(visual.parameters()).requires_grad:
        return {}
    return {f"visual.{name}": tensor for name, tensor in visual.state_dict().items()}


def _trained(clip: Clip) -> dict[str, Tensor]:
    _require(clip)
    tensors: dict[str, Tensor] = {}
    for path, block in _adapted(clip.network).items():
        tensors[f"{path}.lora_A"] = block.attention.qkv.lora_A
        tensors[f"{path}.lora_B"] = block.attention.qkv.lora_B
    return tensors | _whole_tower(clip.network)


def _require(clip: Clip) -> None:
    if not _adapted(clip.network) and not _whole_tower(clip.network):
        raise ValueError("the model is not adapted; call adapt_clip first")


def _text_owner(network: Any) -> Any:
    """Return the module that holds the text transformer and its mask: the model itself, or its text tower."""
    return network if hasattr(network, "transformer") else getattr(network, "text", None)


def _blocks(owner: Any, tower: str) -> list[ResidualAttentionBlock]:
    transformer = getattr(owner, "transformer", None)
    blocks = list(transformer.resblocks) if isinstance(transformer, Transformer) else []
    if not blocks or not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        raise ValueError(
            f"the {tower} tower must be open_clip's transformer with its plain blocks, got {type(owner).__name__}; "
            f"choose another architecture or {tower}_tower=False"
        )
    return blocks


def _is_causal(owner: Any) -> bool:
    mask = owner.attn_mask
    if mask is None or getattr(owner, "cls_emb", None) is not None:
        return False
    return torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))


def _pattern(paths: Mapping[str, Any]) -> str:
    """Return a regular expression that matches exactly the names of the adapted modules."""
    return "|".join(sorted(set(_generalised(paths))))


def _generalised(paths: Mapping[str, Any]) -> Iterator[str]:
    for path in paths:
        before, _, after = path.partition(".resblocks.")
        _, _, after = after.partition(".")
        yield rf"{re.escape(before)}\.resblocks\.\d+\.{re.escape(after)}"
