"""CLIP: images and texts in one embedding space; any model that open_clip can build, or the small one shipped here.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
Shapes: B images of side S, N texts of L tokens, embeddings of width D.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load when it refuses a file; nothing is unpickled
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from tenfold.models.text_cache import TextCache
from tenfold.types import Preprocessing

TINY_FOLDER = Path(__file__).parent / "weights" / "tiny_clip"
"""Folder of the shipped small CLIP, which ``open_clip.create_model("local-dir:...")`` loads too."""
RANDOM = "random"
"""Value of ``ClipConfig.pretrained`` for randomly initialised weights."""

_SCHEMES = ("local-dir:", "hf-hub:")
_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy")
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, StopIteration)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Settings of the CLIP model."""

    name: str = "tiny"
    """``tiny`` (the shipped model), an architecture of open_clip (``ViT-B-16``, ``RN50``), ``local-dir:/folder`` with
    open_clip_config.json and weights, or ``hf-hub:organisation/model``."""
    pretrained: str | None = None
    """Required for an architecture, null otherwise: a tag of open_clip (``openai``, ``laion2b_s34b_b79k``), the path of
    a checkpoint, or ``random`` for untrained weights."""

    def __post_init__(self) -> None:
        if not self.name or self.name in _SCHEMES:
            raise ValueError(
                "name must be tiny, an architecture of open_clip, local-dir:FOLDER or hf-hub:ORG/MODEL, "
                f"got {self.name!r}"
            )
        whole = self.name == "tiny" or self.name.startswith(_SCHEMES)
        if whole and self.pretrained is not None:
            raise ValueError(
                f"pretrained must be null for {self.name!r}, which has its own weights, got {self.pretrained!r}"
            )
        if not whole and not self.pretrained:
            raise ValueError(
                f"pretrained must be a tag of open_clip, the path of a checkpoint, or 'random' for untrained weights "
                f"of {self.name!r}, got {self.pretrained!r}"
            )


class Clip(nn.Module):
    """CLIP with its tokenizer and normalisation; built frozen and in evaluation mode.

    Cached text embeddings are tied to the weights that computed them: unfreezing parameters, or changing weights in
    place, invalidates them.

    Args:
        network: Model of open_clip.
        tokenizer: Function from texts to token ids int64 ``(N, L)``.
        preprocessing: Preprocessing that the image tower was trained with.
        fingerprint: Digest of the architecture and the loaded weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        preprocessing: Preprocessing,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.fingerprint = fingerprint
        self.embedding_dim = _embedding_dim(network)
        self.text_cache = TextCache()
        device = next(network.parameters()).device
        mean, std = (255 * torch.tensor(values, device=device) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "Clip":
        """Set the mode as ``nn.Module.train`` does; training mode clears the cache of texts."""
        if mode:  # fused optimisers change weights without incrementing their version
            self.text_cache.clear()
        return super().train(mode)

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of the logit scale, ``()``, without gradient; zero-shot logits are exp(log_scale) times cosines."""
        network: Any = self.network
        return network.logit_scale.detach().reshape(())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids int64 ``(N, L)`` on the CPU; L is the model's context length, longer texts are truncated.

        Raises:
            ValueError: ``texts`` is a bare string, or an element is not a string.
        """
        _check_texts(texts)
        if not texts:
            return torch.zeros((0, 1), dtype=torch.int64)
        return self.tokenizer(list(texts))

    def normalise(self, images: Tensor) -> Tensor:
        """Convert uint8 ``(B, S, S, 3)`` to the image tower's float32 ``(B, 3, S, S)``, on the model's device.

        Raises:
            ValueError: The dtype or shape differs.
        """
        side = self.preprocessing.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images must be uint8 (B, {side}, {side}, 3), got {images.dtype} {tuple(images.shape)}; "
                "resize them as in Clip.preprocessing"
            )
        return (images.to(self.mean.device).permute(0, 3, 1, 2).float() - self.mean) / self.std

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return embeddings ``(B, D)``, not normalised, of float ``(B, 3, S, S)``; with gradients where enabled."""
        return self.network.encode_image(pixels)  # type: ignore[operator]

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return embeddings ``(N, D)``, not normalised, of tokens ``(N, L)``; with gradients where enabled.

        With a causal mask, the padding after the longest text is cut off: the same numbers in a fraction of the time
        (texts rarely fill all 77 tokens).
        """
        network: Any = self.network
        if not _has_causal_text(network):
            return network.encode_text(tokens.to(self.mean.device))
        ends = tokens.argmax(dim=1)  # the end token has the highest id
        length = int(ends.max()) + 1 if len(tokens) else 1
        tokens, ends = tokens[:, :length].to(self.mean.device), ends.to(self.mean.device)
        dtype = network.transformer.get_cast_dtype()
        hidden = network.token_embedding(tokens).to(dtype) + network.positional_embedding[:length].to(dtype)
        hidden = network.transformer(hidden, attn_mask=network.attn_mask[:length, :length])
        # Only the end token is read, so only it is normalised and projected.
        hidden = network.ln_final(hidden[torch.arange(len(tokens), device=tokens.device), ends])
        if network.text_projection is None:
            return hidden
        if isinstance(network.text_projection, nn.Linear):
            return network.text_projection(hidden)
        return hidden @ network.text_projection

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit rows float32 ``(B, D)`` on the model's device for uint8 ``(B, S, S, 3)``; without gradient."""
        return functional.normalize(self.image_features(self.normalise(images)).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 512) -> Tensor:
        """Return unit rows float32 ``(N, D)`` on the model's device; without gradient.

        Each distinct text is encoded once and cached while the weights stay the same. Nothing is cached while a
        parameter is trainable.

        Raises:
            ValueError: ``batch_size`` is below 1, or ``texts`` is not a sequence of strings.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        _check_texts(texts)
        if not texts:
            return torch.zeros((0, self.embedding_dim), device=self.mean.device)
        positions: dict[str, int] = {}
        order = [positions.setdefault(text, len(positions)) for text in texts]
        distinct = list(positions)
        state = self._text_state()
        rows = self.text_cache.find(distinct, state) if state is not None else {}
        # Texts of similar length together, because a batch takes as long as its longest text.
        missing = sorted((text for text in distinct if text not in rows), key=len)
        made: dict[str, Tensor] = {}
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            features = functional.normalize(self.text_features(self.tokenize(part)).float(), dim=-1).cpu()
            # Copies, because a view would keep the whole batch in memory while one of its rows is cached.
            made.update(zip(part, (row.clone() for row in features), strict=True))
        if state is None:
            self.text_cache.clear()
        else:
            self.text_cache.add(made, state)
        rows = rows | made
        return torch.stack([rows[text] for text in distinct])[order].to(self.mean.device)

    def _text_state(self) -> Hashable:
        """Return a key that changes with every change of a weight; None while a weight is trainable."""
        parts: list[Hashable] = []
        for name, tensor in self.network.named_parameters():
            if name.startswith("visual.") or name in ("logit_scale", "logit_bias"):
                continue
            if tensor.requires_grad:
                return None
            parts.append((tensor.data_ptr(), tensor._version))
        device = self.mean.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return (precision, self.network.training, *parts)


def load_clip(config: ClipConfig, device: torch.device | str = "cpu") -> Clip:
    """Load the CLIP of a configuration, frozen, in float32 (use ``torch.autocast`` for half precision).

    Only tensors are unpickled.

    Raises:
        ValueError: The architecture or tag is unknown, a file is missing, damaged or does not match, or the weights
            can't be downloaded; the message names the expected value and the way out.
    """
    import open_clip  # here, because the import takes seconds and reading settings does not need it

    name = f"local-dir:{TINY_FOLDER}" if config.name == "tiny" else config.name
    options: dict[str, Any] = {}
    if name.startswith(_SCHEMES):
        options["require_pretrained"] = True  # otherwise a model with missing weights would be returned untrained
        if name.startswith("local-dir:"):
            _check_folder(Path(name.removeprefix("local-dir:")))
    else:
        name = _architecture(name, open_clip.list_models())
        options = _weights(name, config.pretrained)
    try:
        network = open_clip.create_model(name, device=str(device), weights_only=True, **options)
        tokenizer = open_clip.get_tokenizer(name)
    except (*_UNREADABLE, SafetensorError, UnpicklingError) as error:
        raise ValueError(_explain(name, config.pretrained, error)) from error
    cfg = open_clip.get_model_config(name)
    fingerprint = _fingerprint(network, {"architecture": cfg, "quick_gelu": options.get("force_quick_gelu", False)})
    return Clip(network, tokenizer, _preprocessing(network.visual.preprocess_cfg), fingerprint)


def _check_texts(texts: Sequence[str]) -> None:
    # A bare string is a sequence of strings too, and would be read letter by letter.
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a sequence of strings, got {repr(texts)[:100]}")


def _architecture(name: str, known: list[str]) -> str:
    """Return the name as open_clip spells it (``ViT-B/16`` is ``ViT-B-16``)."""
    spelled = name.replace("/", "-")
    if spelled in known:
        return spelled
    by_lower = {one.lower(): one for one in known}
    near = [by_lower[one] for one in difflib.get_close_matches(spelled.lower(), by_lower, n=5, cutoff=0.5)]
    raise ValueError(
        f"name must be an architecture of open_clip, got {name!r}"
        + (f"; similar: {', '.join(near)}" if near else "")
        + f"; python -c 'import open_clip; print(open_clip.list_models())' lists all {len(known)}; a folder is written "
        "local-dir:FOLDER, a model of the hub hf-hub:ORG/MODEL"
    )


def _weights(name: str, pretrained: str | None) -> dict[str, Any]:
    """Return the options of ``open_clip.create_model`` that select the weights."""
    import open_clip

    if pretrained is None or pretrained == RANDOM:
        return {"pretrained_text": False}
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        # Weights trained with the fast GELU would silently lose a few points under the architecture's plain name.
        quick = bool(tag.get("quick_gelu", False))
        return {"pretrained": pretrained, "require_pretrained": True, **({"force_quick_gelu": True} if quick else {})}
    if os.path.isfile(pretrained):
        return {"pretrained": pretrained, "require_pretrained": True}
    if os.sep in pretrained or pretrained.endswith(_CHECKPOINTS):
        raise ValueError(
            f"pretrained must be an existing checkpoint of {name} ({', '.join(_CHECKPOINTS)}), "
            f"got {os.path.abspath(pretrained)}"
        )
    raise ValueError(
        f"pretrained must be a tag of {name}, the path of a checkpoint or 'random', got {pretrained!r}; "
        f"tags: {', '.join(tags) or 'none'}"
    )


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        what = "holds no open_clip_config.json" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"the folder {folder.absolute()} {what}: expected open_clip_config.json (with model_cfg and "
            "preprocess_cfg) and weights, for example open_clip_model.safetensors"
        )


def _explain(name: str, pretrained: str | None, error: BaseException) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:")).absolute()
        return (
            f"cannot load a CLIP from {folder}: expected the weights and the tokenizer that its config names; {reason}"
        )
    if pretrained is not None and os.path.isfile(pretrained):
        return (
            f"cannot load {os.path.abspath(pretrained)} into {name}: expected a state dict of this architecture as "
            f".safetensors, or as a .pt that holds only tensors (TorchScript archives are not read); {reason}"
        )
    return (
        f"cannot load {name}{f' with {pretrained}' if pretrained else ''}: its weights must be in the hub's cache or "
        f"downloadable; offline, give the path of a checkpoint or local-dir:FOLDER; {reason}"
    )


def _preprocessing(cfg: dict[str, Any]) -> Preprocessing:
    size = cfg["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"the size in preprocess_cfg must be square, got {size}")
    resizes = {"shortest": "crop", "squash": "stretch"}
    if cfg["resize_mode"] not in resizes or cfg["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError(
            f"resize_mode must be {' or '.join(resizes)} and interpolation bilinear or bicubic, got "
            f"{cfg['resize_mode']!r} and {cfg['interpolation']!r}; change preprocess_cfg in open_clip_config.json"
        )
    return Preprocessing(
        image_size=sides.pop(),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        resize=resizes[cfg["resize_mode"]],  # type: ignore[arg-type]  # one of the two
        interpolation=cfg["interpolation"],
    )


def _fingerprint(network: nn.Module, about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _embedding_dim(network: Any) -> int:
    if hasattr(network.visual, "output_dim"):
        return int(network.visual.output_dim)
    side = network.visual.image_size
    height, width = side if isinstance(side, tuple) else (side, side)
    with torch.no_grad():
        pixels = torch.zeros((1, 3, height, width), device=next(network.parameters()).device)
        return network.encode_image(pixels).shape[1]


def _has_causal_text(network: Any) -> bool:
    """Return whether the text tower is open_clip's own with a causal mask, read at the end token."""
    return getattr(network, "attn_mask", None) is not None and getattr(network, "text_pool_type", "") == "argmax"
