"""Low-rank adapters: a frozen linear map plus a trainable update of small rank.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022:
``y = W x + b + (alpha / r) B A x`` with A ``(r, i)``, B ``(o, r)``, B initialised to 0. For the fused projection of an
attention, A and B stack one block for each adapted part of query, key and value, as ``MergedLinear`` of loralib does.

The base weights are never modified, by no module mode and no merge; merged weights are always copies.
Shapes: E width, r rank, k adapted parts of q, k, v, L tokens, N sequences.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Init = Literal["gaussian", "kaiming"]
"""Initialisation of A: Normal(0, std 1/r), or uniform in ±1/sqrt(input width)."""

_MERGED_NAMES = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


class LoRALinear(nn.Module):
    """Frozen linear layer with a trainable update of rank r.

    Args:
        base: The layer to adapt; its parameters stop requiring gradients.
        rank: r, at least 1.
        alpha: The update is scaled by alpha / r.
        init: Initialisation of A; B is 0, so that the layer starts equal to its base.
        dropout: Dropout probability of the update's input (not of the base's), in training.

    Raises:
        ValueError: If rank, alpha or dropout are out of range or ``init`` is unknown.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, init: Init = "gaussian", dropout: float = 0.0) -> None:
        _check(rank, alpha, dropout)
        if init not in ("gaussian", "kaiming"):
            raise ValueError(f"init must be 'gaussian' or 'kaiming', got {init!r}")
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        with torch.no_grad():
            if init == "gaussian":
                self.lora_A.normal_(std=1 / rank)
            else:
                _kaiming(self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., i)`` to ``(..., o)``."""
        down = functional.linear(self.dropout(x), self.lora_A)  # (..., r)
        update: Tensor = functional.linear(down, self.lora_B * self.scale)
        base: Tensor = self.base(x)
        return base + update

    def delta_weight(self) -> Tensor:
        """Return the scaled update ``(alpha / r) B A``, ``(o, i)``."""
        return self.scale * (self.lora_B @ self.lora_A)


class LoRAQKV(nn.Module):
    """Frozen fused query, key and value projection of an attention, with low-rank updates of some of the three.

    All adapted parts share one dropout mask; the update of a part that is not adapted is exactly zero.

    Args:
        weight: ``(3E, E)``, row blocks q, k, v. Not copied; registered as a frozen parameter.
        bias: ``(3E,)``, or None.
        rank: r of each adapted part, at least 1.
        alpha: The update is scaled by alpha / r.
        dropout: Dropout probability of the update's input, in training.
        adapt: Flags for q, k, v; the method adapts q and v.

    Raises:
        ValueError: If a shape does not match, no part is adapted, or rank, alpha or dropout are out of range.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        adapt: Sequence[bool] = (True, False, True),
    ) -> None:
        _check(rank, alpha, dropout)
        if weight.ndim != 2 or weight.shape[0] != 3 * weight.shape[1]:
            raise ValueError(f"weight must be (3E, E), row blocks q, k, v, got {tuple(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be (3E,) = ({weight.shape[0]},), got {tuple(bias.shape)}")
        adapt = tuple(bool(part) for part in adapt)
        if len(adapt) != 3 or not any(adapt):
            raise ValueError(f"adapt must be three flags for q, k and v, at least one of them true, got {adapt}")
        super().__init__()
        self.rank = rank
        self.scale = alpha / rank
        self.adapt = adapt
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        width, parts = weight.shape[1], sum(adapt)
        self.lora_A = nn.Parameter(_kaiming(weight.new_empty(parts * rank, width)))
        self.lora_B = nn.Parameter(weight.new_zeros(parts * width, rank))

    @property
    def embed_dim(self) -> int:
        """Width E."""
        return self.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., E)`` to ``(..., 3E)``, blocks q, k, v."""
        down = functional.linear(self.dropout(x), self.lora_A)  # (..., k·r)
        return functional.linear(x, self.weight, self.bias) + functional.linear(down, self.block_matrix() * self.scale)

    def block_matrix(self) -> Tensor:
        """Return B as one block matrix ``(3E, k·r)``: the block of each adapted part in its rows, zeros elsewhere.

        One wide product with zeros is faster than a narrow product and a copy for each part.
        """
        adapted = iter(self.lora_B.unflatten(0, (-1, self.embed_dim)))  # k blocks of (E, r)
        rows, column, total = [], 0, self.lora_A.shape[0]
        for part in self.adapt:
            if part:
                rows.append(functional.pad(next(adapted), (column, total - column - self.rank)))
                column += self.rank
            else:
                rows.append(self.lora_B.new_zeros(self.embed_dim, total))
        return torch.cat(rows)

    def delta_weight(self) -> Tensor:
        """Return the scaled update, ``(3E, E)``; rows of a part that is not adapted are exactly 0."""
        down = self.lora_A.unflatten(0, (-1, self.rank))  # (k, r, E)
        up = self.lora_B.unflatten(0, (-1, self.embed_dim))  # (k, E, r)
        adapted = iter(self.scale * torch.bmm(up, down))  # k blocks of (E, E)
        zeros = self.weight.new_zeros(self.embed_dim, self.embed_dim)
        return torch.cat([next(adapted) if part else zeros for part in self.adapt])


class LoRAMultiheadAttention(nn.Module):
    """Self-attention with frozen weights and low-rank updates of the query and value projections.

    Args:
        in_weight: ``(3E, E)``, row blocks q, k, v. Not copied.
        in_bias: ``(3E,)``, or None.
        out_weight: ``(E, E)``. Not copied.
        out_bias: ``(E,)``, or None.
        num_heads: Divides E.
        rank: r, at least 1.
        alpha: The updates are scaled by alpha / r.
        dropout: Dropout probability of the updates' input (not of the attention weights), in training.

    Raises:
        ValueError: If shapes do not match, ``num_heads`` does not divide E, or another argument is out of range.
    """

    def __init__(
        self,
        in_weight: Tensor,
        in_bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor | None,
        num_heads: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.qkv = LoRAQKV(in_weight, in_bias, rank, alpha, dropout)
        width = self.qkv.embed_dim
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
        if out_weight.shape != (width, width) or (out_bias is not None and out_bias.shape != (width,)):
            shapes = [None if part is None else tuple(part.shape) for part in (out_weight, out_bias)]
            raise ValueError(f"the output projection must be (E, E) and (E,) with E = {width}, got {shapes}")
        self.num_heads = num_heads
        self.attention_dropout = 0.0
        self.out_weight = nn.Parameter(out_weight.detach(), requires_grad=False)
        self.out_bias = None if out_bias is None else nn.Parameter(out_bias.detach(), requires_grad=False)

    @classmethod
    def from_torch(
        cls, mha: nn.MultiheadAttention, rank: int, alpha: float, dropout: float = 0.0
    ) -> "LoRAMultiheadAttention":
        """Adapt an attention of PyTorch; its weights are shared, not copied, and stay unchanged.

        Whatever its ``batch_first``, the returned module takes ``(L, N, E)``.

        Raises:
            ValueError: If it is not plain self-attention: keys or values of another width, extra key and value rows.
        """
        if mha.in_proj_weight is None or mha.kdim != mha.embed_dim or mha.vdim != mha.embed_dim:
            raise ValueError(
                f"kdim and vdim must equal embed_dim {mha.embed_dim} (self-attention), got {mha.kdim} and {mha.vdim}"
            )
        if mha.bias_k is not None or mha.bias_v is not None or mha.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn must be off in an adapted attention: they add tokens")
        weights = (mha.in_proj_weight, mha.in_proj_bias, mha.out_proj.weight, mha.out_proj.bias)
        adapted = cls(*weights, mha.num_heads, rank, alpha, dropout)
        adapted.attention_dropout = mha.dropout
        return adapted.train(mha.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend over the first axis.

        Args:
            x: ``(L, N, E)``.
            attn_mask: ``(L, L)`` or ``(N * num_heads, L, L)``, added to the scores, or boolean with True for
                masked positions, as in ``nn.MultiheadAttention``.

        Returns:
            ``(L, N, E)``.

        Raises:
            ValueError: If the width of ``x`` or the mask's shape does not match.
        """
        return self.attend(x, attn_mask, batch_first=False)

    def attend(
        self, x: Tensor, attn_mask: Tensor | None = None, *, batch_first: bool, is_causal: bool = False
    ) -> Tensor:
        """Attend as ``forward`` does, in either layout: ``(N, L, E)`` with ``batch_first``, else ``(L, N, E)``.

        ``is_causal`` applies the causal mask without storing one; the fused kernels are faster with it.
        """
        width, heads = self.qkv.embed_dim, self.num_heads
        if x.ndim != 3 or x.shape[-1] != width:
            raise ValueError(f"x must have three axes and width {width}, got {tuple(x.shape)}")
        packed = self.qkv(x).unflatten(-1, (3, heads, width // heads))  # (N, L, 3, H, D) or (L, N, 3, H, D)
        order = (2, 0, 3, 1, 4) if batch_first else (2, 1, 3, 0, 4)
        query, key, value = packed.permute(order).unbind()  # each (N, H, L, D)
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if is_causal else self._mask(attn_mask, query),
            dropout_p=self.attention_dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        context = context.permute((0, 2, 1, 3) if batch_first else (2, 0, 1, 3)).flatten(-2)
        return functional.linear(context, self.out_weight, self.out_bias)

    def _mask(self, attn_mask: Tensor | None, query: Tensor) -> Tensor | None:
        if attn_mask is None:
            return None
        num_sequences, heads, length, _ = query.shape
        if attn_mask.shape not in ((length, length), (num_sequences * heads, length, length)):
            expected = f"(L, L) = ({length}, {length}) or (N * num_heads, L, L)"
            raise ValueError(f"attn_mask must be {expected}, got {tuple(attn_mask.shape)}")
        if attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (num_sequences, heads))
        # nn.MultiheadAttention marks positions to mask, scaled_dot_product_attention those to attend to.
        return ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(query.dtype)

    def delta_weight(self) -> Tensor:
        """Return the scaled update of the fused input projection, ``(3E, E)``."""
        return self.qkv.delta_weight()

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """Return a state dict of merged copies that a plain ``nn.MultiheadAttention`` loads."""
        in_weight = self.qkv.weight + self.delta_weight()
        tensors = (in_weight, self.qkv.bias, self.out_weight, self.out_bias)
        merged = zip(_MERGED_NAMES, tensors, strict=True)
        return {name: tensor.detach().clone() for name, tensor in merged if tensor is not None}


def _check(rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


@torch.no_grad()
def _kaiming(matrix: Tensor) -> Tensor:
    # Kaiming's uniform bound with a = sqrt(5) is 1 / sqrt(fan-in).
    bound = 1 / math.sqrt(matrix.shape[1])
    return matrix.uniform_(-bound, bound)
