"""How much the class would change if one concept were known.

The divergences of the ectp policy of Singhi et al., ECCV 2024. For a linear head the logits after a flip are
``logits + (v - c_k) A_k``, all concepts at once; ``A_k`` is the head's column, or for concept embeddings
``W_k (e_k^+ - e_k^-)``.
Shapes: B images, K concepts, C classes, E values of an embedding.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tenfold.methods.concept_realignment.checks import check_concepts

Head = Callable[[Tensor], Tensor]
"""Class logits ``(B, C)`` of concepts ``(B, K)``, or of mixed embeddings ``(B, K E)``."""

_BLOCK_ELEMENTS = 1 << 18
"""Elements of the blocks ``(B, k, C)``."""


def concept_flip_divergence(
    head: Head, c_hat: Tensor, pos: Tensor | None = None, neg: Tensor | None = None, compat: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the divergence of the class distribution p' with a concept set to 1, or to 0, from the base one p.

    Args:
        head: Concepts ``(B, K)``, or with embeddings ``(B, K E)``, to logits ``(B, C)``. An ``nn.Linear`` needs no
            further calls; of any other, each concept takes two. One logit means two classes, of logits 0 and z.
        c_hat: Predicted concepts ``(B, K)`` in [0, 1].
        pos: Embeddings of present concepts ``(B, K, E)``; None for a head that reads concepts.
        neg: Embeddings of absent concepts.
        compat: As in the released code: ``(1 / C) sum_j p'_j (log p'_j - p_j)``, over the C logits as they are.

    Returns:
        ``(B, K)`` for the concept set to 1, and to 0: ``sum_j p'_j (log p'_j - log p_j)``, nats.

    Raises:
        ValueError: Concepts that are NaN or out of range, embeddings of another shape, or a head of another width.
    """
    check_concepts("c_hat", c_hat)
    base, blocks = flipped_logits(head, c_hat, pos, neg)
    base = base if compat else with_two_classes(base)
    log_probs = base.log_softmax(-1)[:, None]  # (B, 1, C)
    on: list[Tensor] = []
    off: list[Tensor] = []
    for _, logits_on, logits_off in blocks:
        for logits, parts in ((logits_on, on), (logits_off, off)):
            flipped = (logits if compat else with_two_classes(logits)).log_softmax(-1)  # (B, k, C)
            if compat:
                parts.append((flipped.exp() * (flipped - log_probs.exp())).mean(-1))
            else:
                parts.append((flipped.exp() * (flipped - log_probs)).sum(-1).clamp_min(0))
    return torch.cat(on, 1), torch.cat(off, 1)


def flipped_logits(
    head: Head, c_hat: Tensor, pos: Tensor | None = None, neg: Tensor | None = None
) -> tuple[Tensor, Iterator[tuple[slice, Tensor, Tensor]]]:
    """Return the class logits as they are, and with each concept set to 1 and to 0, a few concepts at a time.

    Args:
        head: As in ``concept_flip_divergence``.
        c_hat: Predicted concepts ``(B, K)``.
        pos: Embeddings of present concepts ``(B, K, E)``, or None.
        neg: Embeddings of absent concepts, or None.

    Returns:
        Logits ``(B, C)``; and an iterator over concepts as a slice of 0..K - 1 of length k, with the logits
        ``(B, k, C)`` for 1 and for 0. An eighth of the concepts at a time at most, so that with their temporaries they
        take less memory than ``(B, K, C)``.

    Raises:
        ValueError: Embeddings of another shape, or a linear head of another width.
    """
    if (pos is None) != (neg is None):
        raise ValueError("pos and neg must be given together, got one of them")
    if c_hat.ndim != 2:
        raise ValueError(f"c_hat must be (B, K), got {tuple(c_hat.shape)}")
    width = c_hat.shape[1]
    if pos is not None and neg is not None:
        if pos.shape != neg.shape or pos.ndim != 3 or pos.shape[:2] != c_hat.shape:
            raise ValueError(
                f"pos and neg must be (B, K, E) with (B, K) = {tuple(c_hat.shape)}, "
                f"got {tuple(pos.shape)} and {tuple(neg.shape)}"
            )
        width *= pos.shape[2]
    if isinstance(head, nn.Linear) and head.in_features != width:
        raise ValueError(f"head must read {width} values, got one that reads {head.in_features}")

    def read(concepts: Tensor) -> Tensor:
        if pos is None or neg is None:
            return head(concepts)
        return head((neg + concepts[..., None] * (pos - neg)).flatten(1))

    base = read(c_hat)
    if isinstance(head, nn.Linear):
        return base, _linear_flips(head, base, c_hat, pos, neg)
    return base, _called_flips(read, c_hat)


def with_two_classes(logits: Tensor) -> Tensor:
    """Return logits ``(..., C)`` of at least two classes: one logit z becomes (0, z)."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


def _linear_flips(
    head: nn.Linear, base: Tensor, c_hat: Tensor, pos: Tensor | None, neg: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    num_concepts, num_classes = c_hat.shape[1], head.out_features
    per_concept = max(1, len(c_hat) * num_classes)
    step = max(1, min(num_concepts // 8, _BLOCK_ELEMENTS // per_concept))
    weight = head.weight.view(num_classes, num_concepts, -1)  # (C, K, E), E = 1 without embeddings
    for start in range(0, num_concepts, step):
        columns = slice(start, start + step)
        if pos is None or neg is None:
            slopes = weight[:, columns, 0].T[None]  # (1, k, C)
        else:
            slopes = torch.einsum("bke,cke->bkc", pos[:, columns] - neg[:, columns], weight[:, columns])
        off = base[:, None] - c_hat[:, columns, None] * slopes
        yield columns, off + slopes, off


def _called_flips(read: Head, c_hat: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for column in range(c_hat.shape[1]):
        here = torch.arange(c_hat.shape[1], device=c_hat.device) == column
        on, off = (read(c_hat.masked_fill(here, value))[:, None] for value in (1.0, 0.0))
        yield slice(column, column + 1), on, off
