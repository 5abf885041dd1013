"""Scores of the questions that could be asked next, by every policy, for curves and for single answers.

Shapes: B images, K concepts, G questions (groups of concepts, or single ones).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold.data.concepts import ConceptData, concept_group_matrix
from tenfold.methods.concept_realignment.divergence import concept_flip_divergence
from tenfold.methods.concept_realignment.intcem import InterventionPolicy
from tenfold.methods.concept_realignment.network import Bottleneck, ConceptModel
from tenfold.methods.concept_realignment.policy import (
    BLOCKED,
    blocked,
    coop_scores,
    expected_change_scores,
    information_scores,
    order_scores,
    per_cost,
    random_scores,
    uncertainty_scores,
)
from tenfold.methods.concept_realignment.realigner import Realigner
from tenfold.methods.concept_realignment.rollout import POLICIES as ROLLOUT_POLICIES
from tenfold.methods.concept_realignment.settings import Config, Policy

Scores = Callable[[Tensor, Tensor], Tensor]
"""Concepts and mask ``(B, K)`` to scores ``(B, K)``; what is masked is blocked."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What can be asked, and what it costs."""

    names: tuple[str, ...]
    groups: Tensor
    """Concepts of each question, float32 ``(G, K)`` in {0, 1}."""
    costs: Tensor
    """float32 ``(G,)``."""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, data: ConceptData, *, single: bool) -> "Questions":
        """Return the questions of a data set; ``single`` asks concepts one by one, each at its group's cost."""
        groups = concept_group_matrix(data.groups, len(data.concepts))
        costs = torch.tensor([float(data.costs.get(name, 1.0)) for name in data.questions])
        if not single:
            return cls(names=data.questions, groups=groups, costs=costs)
        return cls(names=data.concepts, groups=torch.eye(len(data.concepts)), costs=costs @ groups)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A policy with what it reads.

    Args:
        name: The policy.
        config: Settings.
        model: Base model, in evaluation mode.
        realigner: Realigner that would follow the answer, read by ``information``; None: none.
        learned: Policy of ``intcem``; None for other base models.
    """

    name: Policy
    config: Config
    model: ConceptModel
    realigner: Realigner | None = None
    learned: InterventionPolicy | None = None
    groups: Tensor | None = field(default=None)
    """Groups ``(G, K)`` that the learned policy scores."""

    def policy(self, of: Bottleneck) -> str | Tensor | Scores:
        """Return the policy of a batch as a rollout takes it: a name it knows, constant scores, or a function."""
        if self.name in ROLLOUT_POLICIES:
            return self.name
        if self.name == "coop":
            return sum(coop_scores(of.concepts, self.model.head, of.pos, of.neg), torch.zeros(()))
        if self.name == "fixed":
            return order_scores(torch.arange(of.concepts.shape[1], device=of.concepts.device))
        if self.name == "intcem":
            return lambda current, mask: self._learned(of, current, mask)
        return self.information(of)

    def scores(self, of: Bottleneck, current: Tensor, mask: Tensor, unknown: Tensor) -> Tensor:
        """Return the scores ``(B, K)`` of a single answer; the random policy draws the same at every call.

        Args:
            of: Bottleneck of the batch.
            current: Concepts ``(B, K)``.
            mask: 1 where a concept is corrected, ``(B, K)``.
            unknown: 1 where nobody knows, ``(B, K)``; not asked again either.
        """
        spent = torch.maximum(mask, unknown)
        if self.name == "ucp":
            return uncertainty_scores(current, spent)
        if self.name == "random":
            # One draw for all rows, so that an answer does not depend on its neighbours.
            draw = random_scores(current[:1], spent[:1] * 0, torch.Generator(current.device).manual_seed(0))
            return blocked(draw.expand_as(current), spent)
        if self.name == "ectp":
            return expected_change_scores(current, spent, *self.divergences(of))
        if self.name == "information":
            return self.information(of, skip=unknown)(current, mask)
        policy = self.policy(of)
        if isinstance(policy, Tensor):
            return blocked(policy.expand_as(current), spent)
        assert callable(policy)
        return blocked(policy(current, mask), spent)

    def divergences(self, of: Bottleneck) -> tuple[Tensor, Tensor]:
        """Return the change of the class if each concept were 1, or 0, ``(B, K)`` each."""
        compat = self.config.divergence == "compat"
        return concept_flip_divergence(self.model.head, of.concepts, of.pos, of.neg, compat)

    def information(self, of: Bottleneck, skip: Tensor | None = None) -> Scores:
        """Return the expected drop of the class's entropy in nats, under the realigner, of asking each concept.

        Args:
            of: Bottleneck of the batch.
            skip: 1 for concepts that need no score, ``(B, K)``; None: none.
        """

        def realign(value: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
            return value if self.realigner is None else self.realigner(value, mask, predicted)[0]

        def class_probs(concepts: Tensor, rows: Tensor) -> Tensor:
            pos, neg = (None if part is None else part[rows] for part in (of.pos, of.neg))
            chosen = Bottleneck(of.concepts[rows], pos, neg)
            return self.model.logits(concepts, chosen).softmax(-1)

        return lambda current, mask: information_scores(current, mask, of.concepts, realign, class_probs, skip=skip)

    def _learned(self, of: Bottleneck, current: Tensor, mask: Tensor) -> Tensor:
        assert self.learned is not None
        assert self.groups is not None
        assert of.pos is not None
        assert of.neg is not None
        scores = self.learned(current, mask, of.pos, of.neg) @ self.groups  # each concept has its group's
        return blocked(scores, mask)


def best_question(scores: Tensor, spent: Tensor, questions: Questions, reduce: str) -> Tensor:
    """Return the question with the highest score of each row, int64 ``(B,)``; -1 where all its concepts are spent.

    A question of which some concepts are corrected is scored by the others.

    Args:
        scores: Of the concepts, ``(B, K)``.
        spent: 1 for concepts that are corrected or of which nobody knows, ``(B, K)``.
        questions: G questions.
        reduce: Score of a question from those of its free concepts, ``mean`` or ``max``; divided by its cost.
    """
    groups = questions.groups.to(scores)
    free = groups * (1 - spent)[:, None]  # (B, G, K)
    if reduce == "mean":
        values = (scores[:, None] * free).sum(2) / free.sum(2).clamp_min(1)
    else:
        values = scores[:, None].masked_fill(free == 0, BLOCKED).amax(2)
    is_spent = free.sum(2) == 0
    question = per_cost(values, questions.costs.to(scores)).masked_fill(is_spent, -torch.inf).argmax(1)
    return question.masked_fill(is_spent.all(1), -1)
