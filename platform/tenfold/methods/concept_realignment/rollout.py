"""Rollouts: correct a question, realign the rest, and so on until every question is asked.

Singhi, Kim, Roth and Akata, "Improving Intervention Efficacy via Concept Realignment in Concept Bottleneck Models",
ECCV 2024. Where the choice of questions does not depend on realigned concepts, the whole sequence of corrections is
known in advance, and one call of the realigner returns all steps.
Shapes: B images, K concepts, G questions (groups of concepts, or single ones), T corrections.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold.methods.concept_realignment.checks import check_alike, check_concepts, check_groups, check_mask
from tenfold.methods.concept_realignment.losses import realignment_loss
from tenfold.methods.concept_realignment.policy import (
    BLOCKED,
    REDUCTIONS,
    expected_change,
    per_cost,
    reduce_scores,
    uncertainty,
)
from tenfold.methods.concept_realignment.realigner import Realigner, pin

POLICIES = ("ucp", "random", "ectp", "skyline")
"""Policies that a rollout knows by name."""

Policy = str | Tensor | Callable[[Tensor, Tensor], Tensor]


class Rollout(NamedTuple):
    """Corrections of a batch, one question after the other."""

    inputs: Tensor
    """Concepts that the realigner was given, ``(B, T + 1, K)``: step 0 the predictions, step t those after step t - 1
    with the t-th correction."""
    masks: Tensor
    """1 where a concept is corrected, ``(B, T + 1, K)``."""
    outputs: Tensor
    """Concepts after realignment, ``(B, T + 1, K)``."""
    selected: Tensor
    """Question of each step, int64 ``(B, T)``."""


def intervention_rollout(
    realigner: Realigner | None,
    c_hat: Tensor,
    c_true: Tensor,
    policy: Policy,
    groups: Tensor | None = None,
    steps: int | None = None,
    coupled: bool = True,
    divergences: tuple[Tensor, Tensor] | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    c_given: Tensor | None = None,
    answered: Tensor | None = None,
    apply_from: int = 0,
    reduce: str = "mean",
    costs: Tensor | None = None,
) -> Rollout:
    """Ask ``steps`` questions of every image, and realign after each; the first choice reads the predictions.

    The realigner runs in the mode, training or evaluation, that it is in. One without memory of its own outputs, in
    evaluation mode and with a policy that does not read them, is called once for all steps; the numbers are the same.

    Args:
        realigner: Updates concepts; None: corrections change nothing else.
        c_hat: Predicted concepts ``(B, K)`` in [0, 1].
        c_true: True concepts ``(B, K)`` in [0, 1].
        policy: ``ucp``, ``random``, ``ectp`` or ``skyline``; constant scores ``(B, K)`` or ``(K,)``; or a function of
            current concepts and mask ``(B, K)`` to scores ``(B, K)``. Questions that were asked are never chosen.
        groups: Concepts of each question, ``(G, K)``; None: concepts are asked one by one.
        steps: T, 0..G; None: G.
        coupled: Whether the policy reads the realigned concepts; else the predictions with all corrections.
        divergences: Changes of the class with each concept set to 1 and to 0, ``(B, K)`` each; needed by ``ectp``.
        noise: Factor of noise, uniform in [0, 1), that is added to the scores (not to those of ``random``).
        generator: Source of random numbers; None: torch's global one.
        c_given: Answers of the expert ``(B, K)`` in [0, 1]; None: the truth.
        answered: 0 where the expert does not know, ``(B, K)``: the question is spent, the concept stays uncorrected;
            None: every question is answered.
        apply_from: Step from which outputs are realigned, at least 0; before it they are the concepts with the
            corrections only.
        reduce: Score of a group from those of its members, ``mean`` or ``max``.
        costs: Positive costs of the questions ``(G,)``, by which positive scores of questions are divided; None: 1.

    Raises:
        ValueError: Shapes that differ, values out of range, ``steps`` outside 0..G, an unknown policy, or ``ectp``
            without divergences.
    """
    check_alike(c_hat=c_hat, c_true=c_true)
    check_concepts("c_hat", c_hat)
    check_concepts("c_true", c_true)
    c_true = c_true.to(c_hat.dtype)
    given = c_true
    if c_given is not None:
        check_alike(c_hat=c_hat, c_given=c_given)
        check_concepts("c_given", c_given)
        given = c_given.to(c_hat.dtype)
    if answered is not None:
        check_alike(c_hat=c_hat, answered=answered)
        check_mask(answered, "answered")
        answered = answered.to(c_hat.dtype)
    if groups is not None:
        check_groups(groups, c_hat.shape[1])
        groups = groups.to(c_hat)
    num_questions = c_hat.shape[1] if groups is None else len(groups)
    steps = num_questions if steps is None else steps
    if not 0 <= steps <= num_questions:
        raise ValueError(f"steps must lie in 0..{num_questions}, the number of questions, got {steps}")
    if apply_from < 0:
        raise ValueError(f"apply_from must be at least 0, got {apply_from}")
    if costs is not None:
        if costs.shape != (num_questions,) or not ((costs > 0) & costs.isfinite()).all():
            raise ValueError(f"costs must be ({num_questions},), positive and finite, got {costs.tolist()}")
        costs = costs.to(c_hat)
    asking = _Asking(
        policy, c_hat, c_true, groups, divergences=divergences, noise=noise, generator=generator, reduce=reduce,
        costs=costs,
    )  # fmt: skip
    selected = asking.ahead(steps) if realigner is None or not coupled else asking.ahead_of_realigner(steps)
    if selected is not None and _is_batchable(realigner):
        return _at_once(realigner, c_hat, given, answered, groups, selected, apply_from)
    return _step_by_step(realigner, c_hat, given, answered, groups, asking, selected, steps, coupled, apply_from)


class _Asking:
    """Which question comes next.

    Scores of corrected concepts need no blocking here: a question is asked once, with all of its concepts.
    """

    def __init__(
        self,
        policy: Policy,
        c_hat: Tensor,
        c_true: Tensor,
        groups: Tensor | None,
        *,
        divergences: tuple[Tensor, Tensor] | None,
        noise: float,
        generator: torch.Generator | None,
        reduce: str,
        costs: Tensor | None,
    ) -> None:
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise ValueError(f"policy must be one of {', '.join(POLICIES)}, scores or a function, got {policy!r}")
            if policy == "ectp" and divergences is None:
                raise ValueError("policy ectp needs divergences, got None; concept_flip_divergence computes them")
        elif isinstance(policy, Tensor):
            if policy.shape not in (c_hat.shape, c_hat.shape[1:]) or not policy.isfinite().all():
                raise ValueError(
                    f"constant scores must be finite, {tuple(c_hat.shape)} or {tuple(c_hat.shape[1:])}, "
                    f"got {tuple(policy.shape)}"
                )
            policy = policy.to(c_hat).expand_as(c_hat)
        if divergences is not None:
            check_alike(c_hat=c_hat, div_on=divergences[0], div_off=divergences[1])
        if not noise >= 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
        self.policy, self.c_hat, self.c_true, self.groups = policy, c_hat, c_true, groups
        self.divergences, self.noise, self.generator = divergences, noise, generator
        self.reduce, self.costs = reduce, costs
        self.shares = None if groups is None else (groups / groups.sum(1, keepdim=True)).T  # (K, G)

    def next(self, current: Tensor, mask: Tensor, spent: Tensor) -> Tensor:
        """Return the next question, int64 ``(B,)``.

        Args:
            current: Concepts ``(B, K)``.
            mask: ``(B, K)``.
            spent: Minus infinity for questions that were asked, else 0, ``(B, G)``.
        """
        return (per_cost(self._of_questions(self._scores(current, mask)), self.costs) + spent).argmax(1)

    def ahead_of_realigner(self, steps: int) -> Tensor | None:
        """Return all questions, int64 ``(B, T)``, if the policy never reads current concepts; else None."""
        return self.ahead(steps) if isinstance(self.policy, Tensor) or self.policy == "random" else None

    def ahead(self, steps: int) -> Tensor | None:
        """Return all questions, int64 ``(B, T)``, as asked when nothing is realigned; None if only a loop can tell."""
        if not isinstance(self.policy, (str, Tensor)):
            return None
        if self.policy == "random" and self.groups is not None and (self.groups.sum(1) != self.groups[0].sum()).any():
            # Means over groups of several sizes have several distributions, so that the order of one draw has another
            # law than draws at every step; only these are a loop, without the realigner.
            return self._drawn(steps)
        if self.noise and self.policy != "random":
            return None
        scores = per_cost(self._of_questions(self._scores(self.c_hat, self.c_hat)), self.costs)
        return scores.argsort(dim=1, descending=True, stable=True)[:, :steps]

    def _drawn(self, steps: int) -> Tensor:
        assert self.groups is not None
        spent = self.c_hat.new_zeros(len(self.c_hat), len(self.groups))
        selected = spent.new_empty((len(spent), steps), dtype=torch.int64)
        for step in range(steps):
            selected[:, step] = self.next(self.c_hat, spent, spent)
            spent = spent.scatter(1, selected[:, step, None], -torch.inf)
        return selected

    def _scores(self, current: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self.policy, Tensor):
            scores = self.policy
        elif self.policy == "random":
            return self._uniform()
        elif self.policy == "ucp":
            scores = uncertainty(current)
        elif self.policy == "ectp":
            assert self.divergences is not None
            scores = expected_change(current, *self.divergences)
        elif self.policy == "skyline":
            scores = (current - self.c_true).abs()
        else:
            assert callable(self.policy)
            scores = self.policy(current, mask)
            if scores.shape != current.shape or scores.isnan().any():
                raise ValueError(
                    f"policy must return scores {tuple(current.shape)} without NaN, got {tuple(scores.shape)}"
                )
            # Infinite ones would make the mean of a group NaN.
            scores = scores.to(current.dtype).clamp(BLOCKED, -BLOCKED)
        return scores + self.noise * self._uniform() if self.noise else scores

    def _uniform(self) -> Tensor:
        return torch.rand(self.c_hat.shape, generator=self.generator, dtype=self.c_hat.dtype, device=self.c_hat.device)

    def _of_questions(self, scores: Tensor) -> Tensor:
        if self.groups is None or self.shares is None:
            return scores
        return scores @ self.shares if self.reduce == "mean" else reduce_scores(scores, self.groups, self.reduce)


def _is_batchable(realigner: Realigner | None) -> bool:
    """Whether a call for all steps at once returns what calls step by step would."""
    if realigner is None:
        return True
    return not getattr(realigner, "training", False) and not getattr(realigner, "reads_previous", True)


def _at_once(
    realigner: Realigner | None,
    c_hat: Tensor,
    given: Tensor,
    answered: Tensor | None,
    groups: Tensor | None,
    selected: Tensor,
    apply_from: int,
) -> Rollout:
    """Return the rollout of questions ``selected (B, T)`` from one call of the realigner."""
    steps = selected.shape[1]
    num_questions = c_hat.shape[1] if groups is None else len(groups)
    # The inverse of the order: the number of questions before each; T where it is not asked.
    rank = c_hat.new_full((len(c_hat), num_questions), steps)
    rank = rank.scatter(1, selected, torch.arange(steps, dtype=c_hat.dtype, device=c_hat.device).expand_as(selected))
    if groups is not None:
        rank = rank.index_select(1, groups.argmax(0))  # (B, K)
    if answered is not None:
        rank = rank.masked_fill(answered == 0, steps)
    counts = torch.arange(steps + 1, dtype=c_hat.dtype, device=c_hat.device)
    masks = (counts[:, None] - rank[:, None]).clamp_(0, 1)  # (B, T + 1, K): 1 from the step after those before it
    answers = given[:, None].expand_as(masks)
    if realigner is None:
        values = pin(c_hat[:, None], answers, masks)
        return Rollout(values, masks, values.clone(), selected)
    # It reads values where the mask is 1 only, so that the answers will do.
    outputs, _ = realigner(answers, masks, c_hat)
    if apply_from:
        untouched = pin(c_hat[:, None], answers[:, :apply_from], masks[:, :apply_from])
        outputs = torch.cat([untouched, outputs[:, apply_from:]], 1)
    # The first correction is made to the predictions, later ones to the realigned concepts.
    before = torch.cat([c_hat[:, None].expand(-1, min(2, steps + 1), -1), outputs[:, 1:-1]], 1)
    return Rollout(pin(before, answers, masks), masks, outputs, selected)


def _step_by_step(
    realigner: Realigner | None,
    c_hat: Tensor,
    given: Tensor,
    answered: Tensor | None,
    groups: Tensor | None,
    asking: _Asking,
    ahead: Tensor | None,
    steps: int,
    coupled: bool,
    apply_from: int,
) -> Rollout:
    """Return the rollout, with a call of the realigner at every step; questions are known ahead, or asked."""
    members = torch.eye(c_hat.shape[1], dtype=c_hat.dtype, device=c_hat.device) if groups is None else groups
    value, mask, current = c_hat, torch.zeros_like(c_hat), c_hat
    spent = c_hat.new_zeros(len(c_hat), len(members))  # 0, or minus infinity once a question is asked
    inputs, masks, outputs, selected = [value], [mask], [], []
    state: Any = None
    for step in range(steps + 1):
        if step:
            if ahead is None:
                question = asking.next(current if coupled else pin(c_hat, value, mask), mask, spent)
                spent = spent.scatter(1, question[:, None], -torch.inf)
            else:
                question = ahead[:, step - 1]
            chosen = members.index_select(0, question)  # (B, K)
            if answered is not None:
                chosen = chosen * answered
            value = pin(current, given, chosen)
            mask = mask + chosen
            inputs.append(value)
            masks.append(mask)
            selected.append(question)
        output = value
        if realigner is not None:
            realigned, state = realigner(value, mask, c_hat, state)
            output = realigned if step >= apply_from else value
        outputs.append(output)
        if step:  # the first choice reads the predictions, not the output of step 0
            current = output
    questions = (
        torch.stack(selected, 1) if selected else torch.empty((len(c_hat), 0), dtype=torch.int64, device=c_hat.device)
    )
    return Rollout(torch.stack(inputs, 1), torch.stack(masks, 1), torch.stack(outputs, 1), questions)


def validation_loss(
    realigner: Realigner, c_hat: Tensor, concepts: Tensor, groups: Tensor | None, max_images: int = 512
) -> float:
    """Return the mean loss of all steps of a ucp rollout, by which settings of a realigner are chosen.

    Args:
        realigner: In evaluation mode.
        c_hat: Predicted concepts ``(N, K)``.
        concepts: True ones ``(N, K)``.
        groups: ``(G, K)``; None: concepts are asked one by one.
        max_images: At most so many images are used, evenly spaced.
    """
    rows = torch.arange(0, len(c_hat), max(1, -(-len(c_hat) // max_images)))
    with torch.no_grad():
        rolled = intervention_rollout(realigner, c_hat[rows], concepts[rows], "ucp", groups)
        return float(realignment_loss(rolled.outputs, concepts[rows]))
