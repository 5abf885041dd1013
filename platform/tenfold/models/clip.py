"""CLIP: pictures and sentences in one space; any model that open_clip can build, or the small one shipped here.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
Shapes: B pictures of side S, N texts of L tokens, D numbers per embedding.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch raises where it refuses; nothing is unpickled
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from tenfold.models.text_cache import TextCache
from tenfold.types import Preprocessing

TINY_FOLDER = Path(__file__).parent / "weights" / "tiny_clip"
"""The small CLIP that is shipped; a folder that ``open_clip.create_model("local-dir:...")`` loads, too."""
RANDOM = "random"
"""The value of ``ClipConfig.pretrained`` that leaves the weights as they are initialised."""

_SCHEMES = ("local-dir:", "hf-hub:")
_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".npy")
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, StopIteration)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Which CLIP."""

    name: str = "tiny"
    """``tiny``: the shipped one; an architecture of open_clip (``ViT-B-16``, ``RN50``); ``local-dir:/folder`` with
    open_clip_config.json and weights; ``hf-hub:organisation/model``."""
    pretrained: str | None = None
    """For an architecture only, and needed there: a tag of open_clip (``openai``, ``laion2b_s34b_b79k``), the path of a
    checkpoint, or ``random`` for untrained weights."""

    def __post_init__(self) -> None:
        if not self.name or self.name in _SCHEMES:
            raise ValueError(
                "name must be tiny, an architecture of open_clip, local-dir:FOLDER or hf-hub:ORG/MODEL, "
                f"got {self.name!r}"
            )
        whole = self.name == "tiny" or self.name.startswith(_SCHEMES)
        if whole and self.pretrained is not None:
            raise ValueError(f"{self.name!r} brings its own weights: pretrained must be null, got {self.pretrained!r}")
        if not whole and not self.pretrained:
            raise ValueError(
                f"{self.name!r} needs pretrained: a tag of open_clip, the path of a checkpoint, or 'random' for "
                f"untrained weights; got {self.pretrained!r}"
            )


class Clip(nn.Module):
    """A CLIP with its tokenizer and its normalisation; frozen and in eval mode as it is built.

    Whoever unfreezes parameters, or changes weights in place, gets new embeddings: what is remembered of texts is tied
    to the weights that made it.

    Args:
        network: open_clip's model.
        tokenizer: Texts to int64 ``(N, L)``.
        preprocessing: What the picture tower was trained on.
        fingerprint: Of architecture and weights as they were loaded.
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
        """As ``nn.Module.train``; whoever trains changes weights, so texts are forgotten."""
        if mode:  # fused optimisers change weights without raising their version
            self.text_cache.clear()
        return super().train(mode)

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of the factor on cosines, ``()``, without gradient; zero-shot logits are its exp times cosines."""
        network: Any = self.network
        return network.logit_scale.detach().reshape(())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers int64 ``(N, L)`` on the CPU; L is the model's context length, longer texts are cut.

        Raises:
            ValueError: A bare string instead of a sequence of them, or something that is no string.
        """
        _check_texts(texts)
        if not texts:
            return torch.zeros((0, 1), dtype=torch.int64)
        return self.tokenizer(list(texts))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``(B, S, S, 3)`` to the picture tower's float32 ``(B, 3, S, S)``, on the model's device.

        Raises:
            ValueError: Another type or shape.
        """
        side = self.preprocessing.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images must be uint8 (B, {side}, {side}, 3), got {images.dtype} {tuple(images.shape)}; "
                "resize them as Clip.preprocessing says"
            )
        return (images.to(self.mean.device).permute(0, 3, 1, 2).float() - self.mean) / self.std

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, not normalised, of float ``(B, 3, S, S)``; with gradients where they are enabled."""
        return self.network.encode_image(pixels)  # type: ignore[operator]

    def text_features(self, tokens: Tensor) -> Tensor:
        """Embeddings ``(N, D)``, not normalised, of tokens ``(N, L)``; with gradients where they are enabled.

        Where each token sees only those before it, the padding behind the longest text is left out: the same numbers
        in a fraction of the time (77 tokens are seldom used).
        """
        network: Any = self.network
        if not _reads_forward(network):
            return network.encode_text(tokens.to(self.mean.device))
        ends = tokens.argmax(dim=1)  # the end token has the highest number
        length = int(ends.max()) + 1 if len(tokens) else 1
        tokens, ends = tokens[:, :length].to(self.mean.device), ends.to(self.mean.device)
        dtype = network.transformer.get_cast_dtype()
        hidden = network.token_embedding(tokens).to(dtype) + network.positional_embedding[:length].to(dtype)
        hidden = network.transformer(hidden, attn_mask=network.attn_mask[:length, :length])
        # Only the end token's place is read, so only it is normalised and projected.
        hidden = network.ln_final(hidden[torch.arange(len(tokens), device=tokens.device), ends])
        if network.text_projection is None:
            return hidden
        if isinstance(network.text_projection, nn.Linear):
            return network.text_projection(hidden)
        return hidden @ network.text_projection

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit rows float32 ``(B, D)`` on the model's device for uint8 ``(B, S, S, 3)``; without gradient."""
        return functional.normalize(self.image_features(self.normalise(images)).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 512) -> Tensor:
        """Unit rows float32 ``(N, D)`` on the model's device; without gradient.

        Each distinct text goes through the tower once, and not again while the weights stay the same. Nothing is
        remembered while a parameter is trainable.

        Raises:
            ValueError: ``batch_size`` below 1, or not a sequence of strings.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        _check_texts(texts)
        if not texts:
            return torch.zeros((0, self.embedding_dim), device=self.mean.device)
        places: dict[str, int] = {}
        order = [places.setdefault(text, len(places)) for text in texts]
        distinct = list(places)
        state = self._text_state()
        rows = self.text_cache.find(distinct, state) if state is not None else {}
        # Texts of like length together: a batch takes as long as its longest.
        missing = sorted((text for text in distinct if text not in rows), key=len)
        made: dict[str, Tensor] = {}
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            features = functional.normalize(self.text_features(self.tokenize(part)).float(), dim=-1).cpu()
            # Copies: a view would keep the whole batch in memory as long as one of its rows is remembered.
            made.update(zip(part, (row.clone() for row in features), strict=True))
        if state is None:
            self.text_cache.clear()
        else:
            self.text_cache.add(made, state)
        rows = rows | made
        return torch.stack([rows[text] for text in distinct])[order].to(self.mean.device)

    def _text_state(self) -> Hashable:
        """Changes with every change of a weight; None while a weight is trainable."""
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
    """The CLIP that a configuration names, frozen, in float32 (use ``torch.autocast`` for less).

    Files are read without unpickling anything but tensors.

    Raises:
        ValueError: Unknown architecture or tag, a missing, broken or unfitting file, weights that are out of reach;
            with what was expected and the way out.
    """
    import open_clip  # here: it takes seconds, and whoever only reads settings needs no network

    name = f"local-dir:{TINY_FOLDER}" if config.name == "tiny" else config.name
    options: dict[str, Any] = {}
    if name.startswith(_SCHEMES):
        options["require_pretrained"] = True  # without it a model with missing weights would come back untrained
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
    # A bare string is a sequence of strings, too, and would be read letter by letter.
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a sequence of strings, got {repr(texts)[:100]}")


def _architecture(name: str, known: list[str]) -> str:
    """The name as open_clip spells it (``ViT-B/16`` is ``ViT-B-16``)."""
    spelled = name.replace("/", "-")
    if spelled in known:
        return spelled
    by_lower = {one.lower(): one for one in known}
    near = [by_lower[one] for one in difflib.get_close_matches(spelled.lower(), by_lower, n=5, cutoff=0.5)]
    raise ValueError(
        f"open_clip has no architecture {name!r}"
        + (f"; near it: {', '.join(near)}" if near else "")
        + f"; python -c 'import open_clip; print(open_clip.list_models())' lists all {len(known)}; a folder is written "
        "local-dir:FOLDER, a model of the hub hf-hub:ORG/MODEL"
    )


def _weights(name: str, pretrained: str | None) -> dict[str, Any]:
    """What ``open_clip.create_model`` must be told to get the weights."""
    import open_clip

    if pretrained is None or pretrained == RANDOM:
        return {"pretrained_text": False}
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        # Weights trained with the fast GELU under an architecture's plain name would lose a few points unnoticed.
        quick = bool(tag.get("quick_gelu", False))
        return {"pretrained": pretrained, "require_pretrained": True, **({"force_quick_gelu": True} if quick else {})}
    if os.path.isfile(pretrained):
        return {"pretrained": pretrained, "require_pretrained": True}
    if os.sep in pretrained or pretrained.endswith(_CHECKPOINTS):
        raise ValueError(
            f"there is no checkpoint {os.path.abspath(pretrained)}: expected a file with weights of {name} "
            f"({', '.join(_CHECKPOINTS)})"
        )
    raise ValueError(
        f"pretrained {pretrained!r} is no tag of {name} and no file; its tags: {', '.join(tags) or 'none'}; "
        "or give the path of a checkpoint, or 'random'"
    )


def _check_folder(folder: Path) -> None:
    if not (folder / "open_clip_config.json").is_file():
        what = "holds no open_clip_config.json" if folder.is_dir() else "is not there"
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
        f"within reach; offline, give the path of a checkpoint or local-dir:FOLDER; {reason}"
    )


def _preprocessing(cfg: dict[str, Any]) -> Preprocessing:
    size = cfg["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"the model takes pictures of {size} pixels; only square ones are supported")
    resizes = {"shortest": "crop", "squash": "stretch"}
    if cfg["resize_mode"] not in resizes or cfg["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError(
            f"the model wants resize_mode {cfg['resize_mode']!r} and interpolation {cfg['interpolation']!r}; supported "
            f"are {', '.join(resizes)} and bilinear, bicubic: change preprocess_cfg in its open_clip_config.json"
        )
    return Preprocessing(
        image_size=sides.pop(),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        resize=resizes[cfg["resize_mode"]],  # type: ignore[arg-type]  # one of the two words
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


def _reads_forward(network: Any) -> bool:
    """Whether the text tower is open_clip's own with a causal mask, read at the end token."""
    return getattr(network, "attn_mask", None) is not None and getattr(network, "text_pool_type", "") == "argmax"
