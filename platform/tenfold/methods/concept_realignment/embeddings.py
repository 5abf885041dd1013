"""Concept embeddings: each concept is a mixture of a vector for present and one for absent.

Espinosa Zarlenga et al., "Concept Embedding Models: Beyond the Accuracy-Explainability Trade-Off", NeurIPS 2022.
Shapes: B images, T corrections, K concepts, E values of an embedding, D latent features, C classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK_ELEMENTS = 1 << 18
"""Elements of the blocks ``(b, K, C)`` of logits of a curve."""


def mix_concept_embeddings(c: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """Mix the two embeddings of each concept, ``c pos + (1 - c) neg``.

    Args:
        c: Concepts ``(B, K)`` or ``(B, T, K)``.
        pos: Embeddings of present concepts ``(B, K, E)``.
        neg: Embeddings of absent concepts ``(B, K, E)``.

    Returns:
        ``(B, K, E)`` or ``(B, T, K, E)``.

    Raises:
        ValueError: Shapes that don't fit.
    """
    _check_shapes(c, pos, neg)
    if c.ndim == 3:
        pos, neg = pos[:, None], neg[:, None]
    weight = c[..., None]
    return weight * pos + (1 - weight) * neg


class ConceptEmbeddingHead(nn.Module):
    """Concepts with their embeddings, and the class, of latent features.

    Args:
        in_features: D.
        n_concepts: K.
        n_classes: C.
        embedding_size: E.

    Raises:
        ValueError: A size below 1.
    """

    def __init__(self, in_features: int, n_concepts: int, n_classes: int, embedding_size: int = 16) -> None:
        super().__init__()
        sizes = {
            "in_features": in_features,
            "n_concepts": n_concepts,
            "n_classes": n_classes,
            "embedding_size": embedding_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.context_weight = nn.Parameter(torch.empty(n_concepts, 2 * embedding_size, in_features))
        self.context_bias = nn.Parameter(torch.empty(n_concepts, 2 * embedding_size))
        self.prob_weight = nn.Parameter(torch.empty(1, 2 * embedding_size))
        self.prob_bias = nn.Parameter(torch.empty(1))
        self.head = nn.Linear(n_concepts * embedding_size, n_classes)
        for weight, fan_in in (
            (self.context_weight, in_features),
            (self.context_bias, in_features),
            (self.prob_weight, 2 * embedding_size),
            (self.prob_bias, 2 * embedding_size),
        ):
            nn.init.uniform_(weight, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))  # as torch's Linear

    def forward(
        self, h: Tensor, mask: Tensor | None = None, c_true: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return concepts, embeddings, their mixture and the class.

        Args:
            h: Latent features ``(B, D)``.
            mask: 1 for concepts that are corrected in the mixture, ``(B, K)``; None: none.
            c_true: Values of the corrections ``(B, K)``.

        Returns:
            Predicted concepts ``(B, K)``, never corrected; embeddings of present and of absent concepts ``(B, K, E)``;
            their mixture ``(B, K E)``; class logits ``(B, C)``.

        Raises:
            ValueError: Another D, shapes that don't fit, or a mask without values.
        """
        context = self._context(h)
        c_hat = self._logits(context).sigmoid()
        pos, neg = context.chunk(2, -1)
        mixed = c_hat
        if mask is not None:
            if c_true is None:
                raise ValueError("mask needs c_true, the values of the corrections")
            if mask.shape != c_hat.shape or c_true.shape != c_hat.shape:
                raise ValueError(
                    f"mask and c_true must be {tuple(c_hat.shape)}, got {tuple(mask.shape)} and {tuple(c_true.shape)}"
                )
            mixed = torch.where(mask == 1, c_true.to(c_hat.dtype), c_hat)
        bottleneck = mix_concept_embeddings(mixed, pos, neg).flatten(1)
        return c_hat, pos, neg, bottleneck, self.head(bottleneck)

    def concept_logits(self, h: Tensor) -> Tensor:
        """Return the logits ``(B, K)`` of the predicted concepts for latent features ``(B, D)``."""
        return self._logits(self._context(h))

    def _context(self, h: Tensor) -> Tensor:
        """Return both embeddings of each concept, ``(B, K, 2 E)``."""
        num_concepts, width, in_features = self.context_weight.shape
        if h.ndim != 2 or h.shape[1] != in_features:
            raise ValueError(f"h must be (B, D) with D = {in_features}, got {tuple(h.shape)}")
        context = functional.linear(h, self.context_weight.flatten(0, 1), self.context_bias.flatten())
        return functional.leaky_relu(context).view(-1, num_concepts, width)

    def _logits(self, context: Tensor) -> Tensor:
        return functional.linear(context, self.prob_weight, self.prob_bias)[..., 0]


def embedding_curve_logits(outputs: Tensor, pos: Tensor, neg: Tensor, head: nn.Linear) -> Tensor:
    """Return the class logits after every correction, without the mixtures ``(B, T + 1, K, E)``.

    The head is linear: ``logits = sum_k c_k W_k (pos_k - neg_k) + W neg + bias``.

    Args:
        outputs: Concepts after each correction, ``(B, T + 1, K)``.
        pos: Embeddings of present concepts ``(B, K, E)``.
        neg: Embeddings of absent concepts.
        head: Reads ``(B, K E)``.

    Returns:
        ``(B, T + 1, C)``.

    Raises:
        ValueError: Shapes that don't fit.
    """
    _check_shapes(outputs, pos, neg)
    if outputs.ndim != 3 or head.in_features != pos[0].numel():
        raise ValueError(
            f"outputs must be (B, T + 1, K) and head read K E = {pos[0].numel()} values, "
            f"got {tuple(outputs.shape)} and {head.in_features}"
        )
    batch, num_steps, num_concepts = outputs.shape
    weight = head.weight.view(head.out_features, num_concepts, -1)  # (C, K, E)
    logits = outputs.new_empty(batch, num_steps, head.out_features)
    step = max(1, _BLOCK_ELEMENTS // (num_concepts * head.out_features))
    for start in range(0, batch, step):
        rows = slice(start, start + step)
        slopes = torch.einsum("bke,cke->bkc", pos[rows] - neg[rows], weight)
        logits[rows] = torch.baddbmm(head(neg[rows].flatten(1))[:, None], outputs[rows], slopes)
    return logits


def _check_shapes(c: Tensor, pos: Tensor, neg: Tensor) -> None:
    if pos.ndim != 3 or pos.shape != neg.shape:
        raise ValueError(f"pos and neg must be (B, K, E), got {tuple(pos.shape)} and {tuple(neg.shape)}")
    if c.ndim not in (2, 3) or (c.shape[0], c.shape[-1]) != pos.shape[:2]:
        raise ValueError(
            f"concepts must be (B, K) or (B, T, K) with (B, K) = {tuple(pos.shape[:2])}, got {tuple(c.shape)}"
        )
