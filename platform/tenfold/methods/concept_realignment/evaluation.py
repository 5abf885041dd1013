"""Curves over the number of corrected questions, for every realigner, policy and kind of expert.

Shapes: N images, K concepts, G questions, C classes, T questions of a curve.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tenfold.methods.concept_realignment.curves import (
    cumulative_costs,
    curve_auc,
    interventions_to_target,
    stopping_curve,
)
from tenfold.methods.concept_realignment.network import ConceptModel
from tenfold.methods.concept_realignment.predictions import Predictions, bottleneck_of
from tenfold.methods.concept_realignment.questions import Asker, Questions
from tenfold.methods.concept_realignment.rollout import intervention_rollout
from tenfold.methods.concept_realignment.settings import Config

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Probabilities of the class from which the stop rule asks nothing more."""
TARGET_ACCURACY = 0.95
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A person who corrects concepts, not always right."""

    name: str = "sure"
    error: float = 0.0
    """Share of concepts answered wrongly."""
    unknown: float = 0.0
    """Share of questions answered with "don't know"."""
    certainty: float = 1.0
    """Probability that the expert gives to the answer."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Means over all images after 0..T questions, on the CPU."""

    loss_by_concept: Tensor
    """Binary cross-entropy of each concept, without any factor, ``(T + 1, K)``."""
    concept_loss: Tensor
    """Mean over concepts, with the factors of training if there were any, ``(T + 1,)``."""
    concept_accuracy: Tensor
    """Share of concepts on the right side of 0.5, ``(T + 1,)``."""
    class_accuracy: Tensor
    """Share of images whose most probable class is right, ``(T + 1,)``."""
    cost: Tensor
    """Cost of the questions, ``(T + 1,)``."""
    stopping: Tensor
    """Mean number of questions and accuracy under the stop rule at each of ``THRESHOLDS``, ``(2, S)``."""

    def summary(self) -> dict[str, float]:
        """Return areas under the curves (of the accuracy in percent), values before any question, and the targets.

        Targets that are not reached are left out.
        """
        found = {
            "concept_loss_auc": curve_auc(self.concept_loss),
            "accuracy_auc": 100 * curve_auc(self.class_accuracy),
            "concept_loss_at_0": float(self.concept_loss[0]),
            "accuracy_at_0": float(self.class_accuracy[0]),
            "accuracy_at_end": float(self.class_accuracy[-1]),
        }
        targets = {
            "questions_to_tenth": interventions_to_target(self.concept_loss, float(self.concept_loss[0]) / 10, "below"),
            "questions_to_95": interventions_to_target(self.class_accuracy, TARGET_ACCURACY, "above"),
        }
        return found | {name: float(value) for name, value in targets.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a curve is computed with."""

    config: Config
    model: ConceptModel
    """In evaluation mode; its device is where curves are computed."""
    questions: Questions
    weight: Tensor | None
    """Factor of each concept's loss ``(K,)``; None: 1."""
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.temperature.device


def draw_curve(
    setting: Setting,
    predictions: Predictions,
    asker: Asker,
    *,
    coupled: bool = True,
    expert: Expert = Expert(),
) -> Curve:
    """Correct the concepts of every image question by question, and measure after each.

    Args:
        setting: Base model and questions.
        predictions: N images.
        asker: Policy, with the realigner that follows every correction.
        coupled: Whether the policy reads the realigned concepts.
        expert: Who corrects.
    """
    config = setting.config
    repetitions = config.repetitions if asker.name == "random" else 1
    counts = None if predictions.known is None else predictions.known / predictions.known.mean(0).clamp_min(1e-9)
    total: dict[str, Tensor] = {}
    for repetition in range(repetitions):
        generator = torch.Generator(setting.device).manual_seed(setting.seed * 1009 + repetition)
        for start in range(0, len(predictions), _ROWS_AT_ONCE):
            stop = start + _ROWS_AT_ONCE
            rows, of_rows = predictions.rows(start, stop), None if counts is None else counts[start:stop]
            for name, value in _measure(setting, rows, asker, coupled, expert, generator, of_rows).items():
                total[name] = total.get(name, 0.0) + value * len(rows) / (len(predictions) * repetitions)
    by_concept = total["loss_by_concept"]
    weight = torch.ones(by_concept.shape[1]) if setting.weight is None else setting.weight.cpu().double()
    return Curve(concept_loss=(by_concept * weight).mean(1), **total)


def _measure(
    setting: Setting,
    rows: Predictions,
    asker: Asker,
    coupled: bool,
    expert: Expert,
    generator: torch.Generator,
    counts: Tensor | None,
) -> dict[str, Tensor]:
    """Return means over some rows; ``counts (N, K)`` weighs the concepts of each, with mean 1 over all rows."""
    config, device, questions = setting.config, setting.device, setting.questions
    truth, labels = rows.truth.to(device), rows.labels.to(device)
    groups = questions.groups.to(device)
    with torch.inference_mode():
        of = bottleneck_of(setting.model, rows, device)
        answers, answered = _answers(expert, rows.answers.to(device), groups, generator)
        if rows.known is not None:  # nobody can say what the image does not show
            shown = rows.known.to(device)
            answered = shown if answered is None else answered * shown
        rolled = intervention_rollout(
            asker.realigner,
            of.concepts,
            truth,
            asker.policy(of),
            groups=None if torch.equal(groups, torch.eye(len(groups), device=device)) else groups,
            steps=config.steps,
            coupled=coupled,
            divergences=asker.divergences(of) if asker.name == "ectp" else None,
            generator=generator,
            c_given=answers,
            answered=answered,
            apply_from=config.apply_from,
            reduce=config.reduce,
            costs=questions.costs.to(device),
        )
        outputs = rolled.outputs
        logits = setting.model.logits(outputs, of)
        target = truth[:, None].expand_as(outputs)
        losses = functional.binary_cross_entropy(outputs, target, reduction="none")
        is_right = ((outputs >= 0.5) == (target >= 0.5)).double()
        if counts is not None:
            losses, is_right = losses * counts.to(device)[:, None], is_right * counts.to(device)[:, None]
        measured = {
            "loss_by_concept": losses.mean(0),
            "concept_accuracy": is_right.mean((0, 2)),
            "class_accuracy": (logits.argmax(2) == labels[:, None]).double().mean(0),
            "cost": cumulative_costs(rolled.selected, questions.costs.to(device)),
            "stopping": torch.stack(stopping_curve(logits, labels, THRESHOLDS)),
        }
    return {name: value.double().cpu() for name, value in measured.items()}


def _answers(
    expert: Expert, answers: Tensor, groups: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return the values that an expert gives, and which concepts are answered at all, ``(N, K)`` each."""
    if expert.error:
        wrong = torch.rand(answers.shape, generator=generator, device=answers.device) < expert.error
        answers = torch.where(wrong, 1 - answers, answers)
    if expert.certainty < 1:
        answers = answers * expert.certainty + (1 - answers) * (1 - expert.certainty)
    if not expert.unknown:
        return answers, None
    known = torch.rand((len(answers), len(groups)), generator=generator, device=answers.device) >= expert.unknown
    return answers, known.to(answers.dtype) @ groups


def _chunks(predictions: Predictions) -> Iterator[Predictions]:
    for start in range(0, len(predictions), _ROWS_AT_ONCE):
        yield predictions.rows(start, start + _ROWS_AT_ONCE)


def leakage(setting: Setting, predictions: Predictions) -> dict[str, float]:
    """Return the accuracy of the class head on predicted and on true concepts.

    A head that is better on its own predictions than on the truth reads more from them than the concepts mean
    (Mahinpei et al., "Promises and Pitfalls of Black-Box Concept Learning Models", 2021).
    """
    right = {"predicted": 0, "true": 0}
    with torch.inference_mode():
        for rows in _chunks(predictions):
            of = bottleneck_of(setting.model, rows, setting.device)
            for name, concepts in (("predicted", of.concepts), ("true", rows.truth.to(setting.device))):
                logits = setting.model.logits(concepts, of)
                right[name] += int((logits.argmax(1).cpu() == rows.labels).sum())
    return {f"accuracy_on_{name}_concepts": count / len(predictions) for name, count in right.items()}


def concept_gains(curve: Curve, baseline: Curve, questions: Questions) -> dict[str, Tensor]:
    """Return by how much the mean loss along the curve is below the baseline's, by concept ``(K,)`` and question."""
    gains = (baseline.loss_by_concept - curve.loss_by_concept).mean(0)
    groups = questions.groups.double()
    return {"concept": gains, "question": groups @ gains / groups.sum(1)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    realigner: str
    policy: str
    coupled: bool
    expert: str
    curve: Curve


def compare(
    setting: Setting,
    predictions: Predictions,
    askers: Mapping[str, Sequence[Asker]],
    chosen: str,
    experts: Sequence[Expert],
) -> list[Row]:
    """Measure every realigner under every policy; the chosen one also decoupled, and with every kind of expert.

    Args:
        setting: Base model and questions.
        predictions: Images to measure on.
        askers: By the name of the realigner, one for each policy; the first is the policy of the endpoint.
        chosen: Name of the realigner of the endpoint.
        experts: Experts besides the sure one.
    """
    rows = []
    for name, of_policies in askers.items():
        for asker in of_policies:
            curve = draw_curve(setting, predictions, asker, coupled=setting.config.coupled)
            rows.append(
                Row(realigner=name, policy=asker.name, coupled=setting.config.coupled, expert="sure", curve=curve)
            )
        if name not in (chosen, "none"):
            continue
        first = of_policies[0]
        for expert in experts:
            curve = draw_curve(setting, predictions, first, coupled=setting.config.coupled, expert=expert)
            rows.append(
                Row(realigner=name, policy=first.name, coupled=setting.config.coupled, expert=expert.name, curve=curve)
            )
        if name == chosen and chosen != "none":
            curve = draw_curve(setting, predictions, first, coupled=not setting.config.coupled)
            rows.append(
                Row(realigner=name, policy=first.name, coupled=not setting.config.coupled, expert="sure", curve=curve)
            )
    return rows


def table(rows: Sequence[Row]) -> list[dict[str, str | float | bool]]:
    """Return the rows as plain values."""
    return [
        {
            "realigner": row.realigner,
            "policy": row.policy,
            "coupled": row.coupled,
            "expert": row.expert,
            **row.curve.summary(),
        }
        for row in rows
    ]
