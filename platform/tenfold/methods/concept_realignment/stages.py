"""Stages before the realigner: the base model, and its predictions for every image.

Runs whose settings differ only in what comes later share both.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold.data.concepts import ConceptData, ConceptSplit, concept_group_matrix
from tenfold.data.images import SubsetImages
from tenfold.engine.fit import FitPlan, FitResult, fit
from tenfold.engine.predict import predict_images
from tenfold.engine.recipe import stage_key
from tenfold.engine.run import Run
from tenfold.engine.settings import JobConfig
from tenfold.methods.concept_realignment.base import (
    CONCEPTS,
    KNOWN,
    LABELS,
    BaseLearner,
    concept_loss,
    head_loss,
    training_loss,
)
from tenfold.methods.concept_realignment.imbalance import concept_imbalance
from tenfold.methods.concept_realignment.network import ConceptModel, build_model
from tenfold.methods.concept_realignment.predictions import (
    Predictions,
    concepts_of,
    fit_temperature,
    fold_rows,
    predict_split,
    read_predictions,
    write_predictions,
)
from tenfold.methods.concept_realignment.settings import Config
from tenfold.pretraining.digits import load_embedded_pretraining
from tenfold.types import Batch

BASE_FILE = "base.safetensors"
_BASE_RESULTS = "base.json"
_FOLD_FILE = "fold.safetensors"
LOSS = "val/loss"
HEAD_LEARNING_RATE = 0.02
"""Of Adam, for a linear head on at most some hundred concepts; that of the method's small replica."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """Trained base model."""

    learner: BaseLearner
    """In evaluation mode, on the run's device."""
    history: list[dict[str, float]]
    best_epoch: int


def base_job(job: JobConfig) -> JobConfig:
    """Return a job with the same base model, and everything that comes later at its default."""
    data = dataclasses.replace(job.data, costs=None) if hasattr(job.data, "costs") else job.data
    return dataclasses.replace(job, method=job.method.of_base(), data=data)


def build_learner(job: JobConfig, data: ConceptData) -> BaseLearner:
    """Build a base model with what is trained beside it.

    Raises:
        ValueError: Imbalance factors need a concept that is true of some image, or class rows that the data lack.
    """
    config: Config = job.method
    model = build_model(config, job.model, len(data.concepts), len(data.classes))
    groups = concept_group_matrix(None if config.single else data.groups, len(data.concepts))
    return BaseLearner(config, model, groups, concept_weights(config, data))


def concept_weights(config: Config, data: ConceptData) -> Tensor | None:
    """Return the factor of each concept's loss, ``(K,)``; None for none.

    Raises:
        ValueError: A concept is true of no training image, or no class; or the concepts don't follow from the class.
    """
    if config.imbalance == "none":
        return None
    if config.imbalance == "classes" and data.class_concepts is None:
        raise ValueError(
            f"imbalance must not be classes for {data.name}, whose concepts don't follow from the class; set images"
        )
    rows = data.train.concepts if config.imbalance == "images" else data.class_concepts
    assert rows is not None
    absent = [name for name, column in zip(data.concepts, rows.T, strict=True) if not column.any()]
    if absent:
        raise ValueError(
            f"imbalance must be none where a concept is never true: {', '.join(absent[:5])} of {data.name}; "
            f"its factor would be infinite"
        )
    return concept_imbalance(torch.from_numpy(np.array(rows)).float())


def train_base(job: JobConfig, data: ConceptData, run: Run) -> Base:
    """Train the base model, or reuse one with the same settings."""
    plain = base_job(job)
    learner = build_learner(plain, data)

    def work(folder: Path) -> None:
        trained = build_learner(plain, data)
        result = _fit(plain, data, run, trained, np.arange(len(data.train)), stage="fit")
        if run.is_main:
            save_file(_tensors(trained), folder / BASE_FILE)
            results = {"history": result.history, "best_epoch": result.best_epoch}
            (folder / _BASE_RESULTS).write_text(json.dumps(results))

    folder = run.stage("concept_base", stage_key(plain, data.fingerprint), work)
    learner.load_state_dict(load_file(folder / BASE_FILE))
    learner.to(run.device).eval()
    if plain.method.base in ("independent", "sequential"):
        train_head(job, data, run, learner.model)
    results = json.loads((folder / _BASE_RESULTS).read_text())
    return Base(learner=learner, **results)


def train_head(job: JobConfig, data: ConceptData, run: Run, model: ConceptModel) -> None:
    """Train the class head of frozen concepts, in place, or reuse one: on true concepts, or on predicted ones
    (sequential).

    Args:
        job: Settings.
        data: Images, or concepts that another model has predicted.
        run: Runtime of this worker.
        model: Trained model, or one of stored predictions.
    """
    plain = base_job(job)

    def work(folder: Path) -> None:
        head = _fit_head(plain, data, run, model)
        if run.is_main:
            save_file(_tensors(head), folder / BASE_FILE)

    folder = run.stage("concept_head", stage_key(plain, data.fingerprint), work)
    model.head.load_state_dict(load_file(folder / BASE_FILE))
    model.to(run.device).eval()


def predict_all(job: JobConfig, data: ConceptData, run: Run, base: Base) -> dict[str, Predictions]:
    """Predict every part, the training part out of fold, and set the temperature of the base model."""
    config, plain = job.method, base_job(job)
    held_out = _out_of_fold(plain, data, run, config.crossfit) if config.crossfit > 1 else None

    def work(folder: Path) -> None:
        model = base.learner.model
        parts: dict[str, tuple[Tensor, Tensor]] = {
            part: predict_split(run, model, split) for part, split in data.splits().items()
        }
        temperature = 1.0
        if config.calibrate:
            logits = model.concept_logits(parts["val"][0].to(run.device)).detach().cpu()
            temperature = fit_temperature(logits, torch.from_numpy(data.val.concepts))
            model.temperature.fill_(temperature)
            parts = {part: (encoded, concepts_of(model, encoded)) for part, (encoded, _) in parts.items()}
        if held_out is not None:
            parts["train"] = (parts["train"][0], (held_out / temperature).sigmoid())
        if run.is_main:
            write_predictions(folder, parts, temperature)

    key = stage_key(plain, data.fingerprint, crossfit=config.crossfit, calibrate=config.calibrate)
    folder = run.stage("concept_predictions", key, work)
    predictions, temperature = read_predictions(folder, data.splits())
    base.learner.model.temperature.fill_(temperature)
    return predictions


def _out_of_fold(job: JobConfig, data: ConceptData, run: Run, crossfit: int) -> Tensor:
    """Return concept logits ``(N, K)`` of the training images, each by a model that was trained on the other folds."""
    logits = torch.empty(data.train.concepts.shape, dtype=torch.float32)
    for number, held in enumerate(fold_rows(len(data.train), crossfit, run.seed)):
        folder = _fold(job, data, run, held, f"fold{number + 1}of{crossfit}")
        logits[torch.from_numpy(held)] = load_file(folder / _FOLD_FILE)["logits"]
    return logits


def _fold(job: JobConfig, data: ConceptData, run: Run, held: np.ndarray, name: str) -> Path:
    """Train a model without some rows, and predict them: a stage of its own, so that finished folds are kept."""

    def work(folder: Path) -> None:
        learner = build_learner(job, data)
        _fit(job, data, run, learner, np.setdiff1d(np.arange(len(data.train)), held), stage=name)
        encoded, _ = predict_split(run, learner.model, _subset(data.train, held))
        with torch.inference_mode():
            logits = learner.model.concept_logits(encoded.to(run.device)).float().cpu()
        if run.is_main:
            save_file({"logits": logits.clone()}, folder / _FOLD_FILE)

    return run.stage("concept_fold", stage_key(job, data.fingerprint, fold=name), work)


def _fit(job: JobConfig, data: ConceptData, run: Run, learner: BaseLearner, rows: np.ndarray, stage: str) -> FitResult:
    """Train on some rows of the training part; the weights of the epoch with the lowest validation loss stay."""
    config: Config = job.method
    assert learner.model.image is not None
    load_embedded_pretraining(run, job.model, job.data, learner.model.image)
    split = data.train
    has_norm = learner.policy is not None  # batch norm refuses a last batch of one image
    source = run.loader(
        lambda chosen: read_batch(split, rows[chosen]),
        len(rows),
        job.run.batch_size,
        shuffle=True,
        drop_last=has_norm and len(rows) >= job.run.batch_size * run.world_size,
        prefetch=0 if split.images.in_memory else 4,
    )
    result = fit(
        run,
        learner,
        training_loss(config, mirrorable=data.mirrorable),
        source,
        FitPlan.of(job.run, monitor=LOSS, mode="min", stage=stage),
        optimizer=lambda bare: _optimizer(config, bare),
        schedule=_schedule(config),
        evaluate=lambda bare: base_metrics(run, bare, data.val, "val"),
    )
    learner.load_state_dict(result.model.state_dict())
    learner.to(run.device).eval()
    return result


def read_batch(split: ConceptSplit, rows: np.ndarray) -> Batch:
    """Read ``images`` uint8 ``(B, S, S, 3)``, ``concepts`` float32 ``(B, K)``, ``labels`` int64 ``(B,)``, ``known``."""
    batch = {
        "images": split.images.read(rows),
        CONCEPTS: torch.from_numpy(split.values[rows]),
        LABELS: torch.from_numpy(split.labels[rows]),
    }
    if split.known is not None:
        batch[KNOWN] = torch.from_numpy(split.known[rows].astype(np.float32))
    return batch


def base_metrics(run: Run, learner: Any, split: ConceptSplit, part: str) -> dict[str, float]:
    """Return the loss and the accuracies of a base model without corrections.

    The loss that selects the epoch is that of the concepts, and of the class where the network is trained on it.
    """
    model: ConceptModel = learner.model
    encoded = predict_images(run, model.encode, split.images)
    targets, labels = torch.from_numpy(np.array(split.values)), torch.from_numpy(np.array(split.labels))
    known = None if split.known is None else torch.from_numpy(split.known.astype(np.float32))
    with torch.inference_mode():
        of = model.bottleneck(encoded.to(run.device))
        concepts, logits = of.concepts.float().cpu(), model.logits(of.concepts, of).float().cpu()
    weight = None if learner.weight is None else learner.weight.cpu()
    loss = concept_loss(concepts, targets, weight, known)
    is_right = ((concepts >= 0.5) == (targets >= 0.5)).double()
    right = is_right.mean() if known is None else (is_right * known).sum() / known.sum().clamp_min(1)
    metrics = {f"{part}/concept_accuracy": float(right)}
    if learner.config.base not in ("independent", "sequential"):
        loss = learner.config.concept_weight * loss + nn.functional.cross_entropy(logits, labels)
        metrics[f"{part}/accuracy"] = float((logits.argmax(1) == labels).double().mean())
    return {f"{part}/loss": float(loss), **metrics}


def _fit_head(job: JobConfig, data: ConceptData, run: Run, model: ConceptModel) -> nn.Module:
    config: Config = job.method
    values = torch.from_numpy(np.array(data.train.values))
    if config.base == "sequential":
        values = predict_split(run, model, data.train)[1]
    labels = torch.from_numpy(np.array(data.train.labels))

    def read(rows: np.ndarray) -> Batch:
        chosen = torch.from_numpy(rows)
        return {CONCEPTS: values[chosen], LABELS: labels[chosen]}

    head = nn.Linear(len(data.concepts), len(data.classes))
    result = fit(
        run,
        head,
        head_loss,
        run.loader(read, len(labels), job.run.batch_size, shuffle=True),
        FitPlan(num_epochs=config.head_epochs, stage="head", precision="fp32"),
        optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=HEAD_LEARNING_RATE),
    )
    return result.model


def _optimizer(config: Config, learner: Any) -> torch.optim.Optimizer:
    trained = [weight for weight in learner.parameters() if weight.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.Adam(trained, lr=config.learning_rate, weight_decay=config.weight_decay)


def _schedule(config: Config) -> Any:
    if config.plateau_patience is None:
        return None
    patience = config.plateau_patience
    return lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)


def _subset(split: ConceptSplit, rows: np.ndarray) -> ConceptSplit:
    return ConceptSplit(
        images=SubsetImages(split.images, rows), concepts=split.concepts[rows], labels=split.labels[rows]
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
