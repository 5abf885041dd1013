"""Fitting of realigners on stored predictions: the network by simulated corrections, its rivals in closed form.

Shapes: B images, K concepts, T corrections.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.engine.fit import Clock, FitPlan, FitResult, Objective, fit
from tenfold.engine.run import Run
from tenfold.methods.concept_realignment.evaluation import Setting, draw_curve
from tenfold.methods.concept_realignment.gaussian import fit_gaussian, fit_stochastic
from tenfold.methods.concept_realignment.losses import realignment_loss
from tenfold.methods.concept_realignment.network import new_realigner
from tenfold.methods.concept_realignment.patterns import fit_patterns
from tenfold.methods.concept_realignment.predictions import Predictions, bottleneck_of
from tenfold.methods.concept_realignment.questions import Asker, Questions
from tenfold.methods.concept_realignment.realigner import ConceptRealigner
from tenfold.methods.concept_realignment.rollout import intervention_rollout
from tenfold.methods.concept_realignment.settings import Config
from tenfold.types import Batch

PREDICTED, ANSWERS, KNOWN, ON, OFF = "predicted", "answers", "known", "on", "off"
LOSS = "val/realigned_loss"


class RealignerLearner(nn.Module):
    """A realigner in training; calling it rolls corrections out and returns the loss of all steps."""

    groups: Tensor
    weight: Tensor | None

    def __init__(
        self, config: Config, realigner: ConceptRealigner, questions: Questions, weight: Tensor | None, steps: int
    ) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.realigner = realigner
        self.register_buffer("groups", questions.groups, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, batch: Batch, noise: float) -> Tensor:
        """Return the loss, shape ``()``; the rollout has no gradient, the outputs of its inputs do."""
        predicted = batch[PREDICTED]
        # Validation draws the same on every worker and at every time, or chance would choose the weights.
        generator = None if self.training else torch.Generator(predicted.device).manual_seed(0)
        with torch.no_grad():
            rolled = intervention_rollout(
                self.realigner,
                predicted,
                batch[ANSWERS],
                self.config.train_policy,
                groups=self.groups,
                steps=self.steps,
                coupled=self.config.coupled,
                divergences=(batch[ON], batch[OFF]) if ON in batch else None,
                noise=noise,
                generator=generator,
                answered=batch.get(KNOWN),
                reduce=self.config.reduce,
            )
        if not self.training:
            return realignment_loss(rolled.outputs, batch[ANSWERS], self.weight, batch.get(KNOWN))
        outputs, _ = self.realigner(rolled.inputs, rolled.masks, predicted)
        return realignment_loss(outputs, batch[ANSWERS], self.weight, batch.get(KNOWN))


def train_network(
    run: Run, setting: Setting, parts: Mapping[str, Predictions], *, steps: int | None, stage: str
) -> tuple[ConceptRealigner, FitResult]:
    """Train a realigner on simulated corrections of the training part; the weights with the lowest loss on the
    validation part stay.

    Args:
        run: Runtime of this worker.
        setting: Base model and questions.
        parts: Predictions by part; ``train`` and ``val`` are used.
        steps: Corrections of a rollout; None: all questions.
        stage: Name of the loop.
    """
    config = setting.config
    steps = len(setting.questions) if steps is None else steps
    realigner = new_realigner(config, parts["train"].concepts.shape[1])
    learner = RealignerLearner(config, realigner, setting.questions, setting.weight, steps)
    tensors = {part: batch_tensors(setting, parts[part]) for part in ("train", "val")}
    size = max(1, config.realigner_batch_size // run.world_size)

    def evaluate(bare: Any) -> dict[str, float]:
        total = 0.0
        for start in range(0, len(parts["val"]), config.realigner_batch_size):
            batch = {
                name: values[start : start + config.realigner_batch_size] for name, values in tensors["val"].items()
            }
            total += float(bare(run.to_device(batch), 0.0)) * len(batch[PREDICTED])
        return {LOSS: total / len(parts["val"])}

    num_rows = len(parts["train"])
    result = fit(
        run,
        learner,
        Objective(loss=lambda model, batch, clock: rollout_loss(model, batch, clock, config.train_noise)),
        run.loader(
            lambda rows: {name: values[torch.from_numpy(rows)] for name, values in tensors["train"].items()},
            num_rows,
            size,
            shuffle=True,
            drop_last=num_rows >= size * run.world_size,  # batch norm refuses a last batch of one row
        ),
        FitPlan(
            num_epochs=config.realigner_epochs,
            evaluate_every=config.validate_every,
            patience=config.realigner_patience,
            monitor=LOSS,
            mode="min",
            stage=stage,
            precision="fp32",
        ),
        optimizer=lambda bare: torch.optim.Adam(
            bare.parameters(), lr=config.realigner_learning_rate, weight_decay=config.realigner_weight_decay
        ),
        evaluate=evaluate,
    )
    trained: Any = result.model
    return trained.realigner.eval(), result


def rollout_loss(model: nn.Module, batch: Batch, clock: Clock, noise: float) -> Tensor:
    """Return the loss of a ``RealignerLearner`` on a batch."""
    return model(batch, noise)


def batch_tensors(setting: Setting, predictions: Predictions) -> dict[str, Tensor]:
    """Return what training reads of each row, on the CPU."""
    tensors = {PREDICTED: predictions.concepts, ANSWERS: predictions.answers}
    if predictions.known is not None:
        tensors[KNOWN] = predictions.known
    if setting.config.train_policy == "ectp":
        asker = Asker(name="ectp", config=setting.config, model=setting.model)
        with torch.inference_mode():
            parts = [
                asker.divergences(bottleneck_of(setting.model, predictions.rows(start, start + 512), setting.device))
                for start in range(0, len(predictions), 512)
            ]
        tensors |= {name: torch.cat([part[at] for part in parts]).cpu() for at, name in ((0, ON), (1, OFF))}
    return {name: values.clone() for name, values in tensors.items()}  # out of inference mode


def adapted(predictions: Predictions, adapter: nn.Module | None) -> Predictions:
    """Return predictions whose concepts a corrector has rewritten before any correction."""
    if adapter is None:
        return predictions
    device = next(adapter.parameters()).device
    concepts = predictions.concepts.to(device)
    with torch.inference_mode():
        rewritten, _ = adapter(concepts, torch.zeros_like(concepts), concepts)
    return replace(predictions, concepts=rewritten.cpu().clone())


def fit_rival(name: str, setting: Setting, parts: Mapping[str, Predictions], fallback: nn.Module | None) -> nn.Module:
    """Fit a realigner that needs no simulated corrections.

    Args:
        name: ``patterns``, ``gaussian`` or ``stochastic``.
        setting: Base model and questions.
        parts: Predictions by part.
        fallback: Realigner for rows that no pattern fits; None: the predictions themselves.
    """
    train, val = parts["train"], parts["val"]
    groups = setting.questions.groups
    if name == "patterns":
        fallback = None if fallback is None else copy.deepcopy(fallback).cpu().eval()
        return fit_patterns(train.truth, val.concepts, val.truth, groups, fallback)
    if name == "gaussian":
        return fit_gaussian(train.concepts, train.truth, val.concepts, val.truth, groups)
    return fit_stochastic(train.concepts, train.truth, val.concepts, val.truth, groups, seed=setting.seed)


def choose(setting: Setting, val: Predictions, realigners: Mapping[str, nn.Module | None]) -> str:
    """Return the realigner with the smallest area under the validation curve of the concept loss."""
    config = setting.config
    if config.realigner != "auto":
        return config.realigner
    policy = config.policy if config.policy in ("ectp", "coop", "fixed") else "ucp"  # others are slow, or vary
    areas = {}
    for name, realigner in realigners.items():
        asker = Asker(name=policy, config=config, model=setting.model, realigner=realigner)
        areas[name] = draw_curve(setting, val, asker, coupled=config.coupled).summary()["concept_loss_auc"]
    return min(areas, key=lambda name: areas[name])


def to_device(module: nn.Module | None, device: torch.device) -> nn.Module | None:
    """Move a realigner, in evaluation mode; None stays None."""
    return None if module is None else module.to(device).eval()
