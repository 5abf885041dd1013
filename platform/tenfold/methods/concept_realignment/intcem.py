"""Intervention-aware concept embeddings: questions are rolled out while the network is trained.

Espinosa Zarlenga et al., "Learning to Receive Help: Intervention-Aware Concept Embedding Models", NeurIPS 2023; with a
joint realigner, Singhi et al., ECCV 2024. Shapes: B images, K concepts, G groups, C classes, E values of an embedding.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.methods.concept_realignment.embeddings import ConceptEmbeddingHead, mix_concept_embeddings
from tenfold.methods.concept_realignment.realigner import ConceptRealigner

FIRST_HORIZON = 2.0
HORIZON_GROWTH = 1.005
_WIDTHS = (128, 128, 64, 64)


class InterventionPolicy(nn.Module):
    """Scores of the groups that could be asked next, from the mixed embeddings and what was corrected.

    Args:
        num_concepts: K.
        num_groups: G.
        embedding_size: E.
    """

    def __init__(self, num_concepts: int, num_groups: int, embedding_size: int) -> None:
        super().__init__()
        widths = (num_concepts * (embedding_size + 1), *_WIDTHS, num_groups)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.BatchNorm1d(before), nn.Linear(before, after), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, concepts: Tensor, mask: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        """Return scores ``(B, G)`` for concepts and mask ``(B, K)`` and embeddings ``(B, K, E)``."""
        mixed = mix_concept_embeddings(concepts, pos, neg).flatten(1)
        return self.layers(torch.cat([mixed, mask], 1))


class RolledOut(NamedTuple):
    """Loss terms of one training batch."""

    first_logits: Tensor
    """Class logits before the rollout, under the concepts replaced at random, ``(B, C)``."""
    last_logits: Tensor
    """Class logits after the last question, ``(B, C)``."""
    policy_loss: Tensor
    """Cross-entropy of the policy against the best question, averaged over the rollout."""
    last_concepts: Tensor
    """Concepts after the last question, realigned where a realigner is trained, ``(B, K)``."""
    num_questions: int
    """Length T of the rollout, the questions drawn before it left out."""


def draw_start(
    groups: Tensor, batch: int, probability: float, horizon: int, longest: int
) -> tuple[Tensor, Tensor, int]:
    """Draw which groups are corrected before a rollout, and how long it is.

    Random numbers come from torch's global CPU generator.

    Args:
        groups: Concepts of each group, ``(G, K)`` in {0, 1}.
        batch: B.
        probability: Share of groups corrected for the whole batch (RandInt).
        horizon: Current horizon H.
        longest: Maximum length of a rollout.

    Returns:
        The mask of the whole batch ``(K,)``; the mask of each image ``(B, K)``, which adds as many free groups to
        each; and the number of questions T.
    """
    num_groups = len(groups)
    shared = (torch.rand(num_groups) < probability).to(groups.dtype)  # (G,)
    before = int(shared.sum())
    chosen = shared.expand(batch, -1).clone()
    length = 0
    if before < num_groups:
        most = min(horizon, num_groups - before - 1)
        extra = int(torch.randint(0, most, ())) if most > 0 else 0
        end = min(horizon, longest, num_groups - before - extra)
        length = int(torch.randint(1, end, ())) if end > 1 else 0
        # The first `extra` of a random order of the free groups.
        order = (torch.rand(batch, num_groups) - shared).argsort(1, descending=True)
        chosen.scatter_(1, order[:, :extra], 1.0)
    return (shared @ groups.cpu()), (chosen @ groups.cpu()), length


def roll_out(
    head: ConceptEmbeddingHead,
    policy: InterventionPolicy,
    realigner: ConceptRealigner | None,
    parts: tuple[Tensor, Tensor, Tensor],
    concepts: Tensor,
    labels: Tensor,
    groups: Tensor,
    start: tuple[Tensor, Tensor, int],
) -> RolledOut:
    """Roll out T questions, chosen by the policy with Gumbel noise; the policy learns from the best question of each.

    Args:
        head: Class head, linear in the mixed embeddings.
        policy: The policy.
        realigner: Realigner trained with the network; None: concepts are corrected only.
        parts: Predicted concepts ``(B, K)``, and the embeddings of present and absent ones ``(B, K, E)``.
        concepts: True concepts ``(B, K)``.
        labels: int64 ``(B,)``.
        groups: ``(G, K)``.
        start: As ``draw_start`` returns it.
    """
    predicted, pos, neg = parts
    shared, mask, length = start
    shared, mask = shared.to(predicted).expand_as(predicted), mask.to(predicted)
    first = predicted * (1 - shared) + concepts * shared
    first_logits = head.head(mix_concept_embeddings(first, pos, neg).flatten(1))
    # Zero times every weight: workers that draw no question must still synchronise the policy's gradients.
    policy_loss = sum((weight.sum() * 0.0 for weight in policy.parameters()), torch.zeros((), device=predicted.device))
    effect = true_class_effects(head.head, pos, neg, labels)  # (B, K)
    for _ in range(length):
        current = predicted * (1 - mask) + concepts * mask
        scores = policy(current, mask, pos, neg)
        gain = ((concepts - current) * (1 - mask) * effect).detach() @ groups.T  # (B, G), 0 for what was asked
        policy_loss = policy_loss + functional.cross_entropy(scores, gain.argmax(1)) / length
        chosen = functional.gumbel_softmax(scores.detach(), tau=1.0, hard=True)
        mask = torch.maximum(mask, chosen @ groups)
    last = predicted * (1 - mask) + concepts * mask
    if realigner is not None:
        last, _ = realigner(last, mask, predicted)
    last_logits = head.head(mix_concept_embeddings(last, pos, neg).flatten(1))
    return RolledOut(first_logits, last_logits, policy_loss, last, length)


def true_class_effects(head: nn.Linear, pos: Tensor, neg: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the true class's logit rises when a concept goes from absent to present, ``(B, K)``."""
    batch, num_concepts, size = pos.shape
    weight = head.weight[labels].view(batch, num_concepts, size)
    return (weight * (pos - neg)).sum(2)


def horizon_after(horizon: Tensor, num_groups: int) -> Tensor:
    """Return the horizon of the next batch: it grows by half a per cent up to one more than the groups."""
    return horizon * HORIZON_GROWTH if float(horizon) < num_groups + 1 else horizon


def whole_horizon(horizon: Tensor) -> int:
    """Return the horizon as a number of questions."""
    return math.floor(float(horizon))
