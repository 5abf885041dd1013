"""Training recipe of CALM and of the CAM baseline, and their evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from tenfold.bundle import load_bundle
from tenfold.data.images import shared_tensor
from tenfold.data.localisation import LocalisationSplit
from tenfold.engine.fit import Clock, FitPlan, FitResult, Loss, fit
from tenfold.engine.predict import check_classes, predict_images
from tenfold.engine.recipe import save_results, train_once
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.figures.history import figure_history
from tenfold.methods.calm.cue_evaluation import measure_cues
from tenfold.methods.calm.data import ImageData, augment, load_image_data, read_batch, spread_rows
from tenfold.methods.calm.evaluation import check_cues, measure_maps, usable_measures
from tenfold.methods.calm.figures import log_figures
from tenfold.methods.calm.map_metrics import Measured
from tenfold.methods.calm.network import TrainedClassifier, calm_classifier
from tenfold.methods.calm.predictor import SUPERCLASSES_FILE, CalmPredictor, check_superclasses_known, load
from tenfold.methods.calm.settings import Config
from tenfold.methods.calm.sources import Source, further_sources, gradient_source, own_source
from tenfold.metrics.classification import classification_metrics
from tenfold.models.image_classifier import ImageClassifier, parameter_groups
from tenfold.pretraining.digits import load_embedded_pretraining
from tenfold.types import Batch, Preprocessing

METRIC = "val/accuracy"
NUM_PROBES = 8


def train(job: JobConfig, run: Run) -> Outcome:
    """Train, test once, evaluate the maps, and write a bundle and figures."""
    config: Config = job.method
    data = run.once_per_node(
        lambda: load_image_data(
            job.data,
            Preprocessing(image_size=config.image_size),
            train_size=config.crop_from,
            holdout_fraction=config.holdout_fraction,
        )
    )
    _check(config, data)
    trained = train_once(run, job, data.fingerprint, lambda folder: _train(job, data, run, folder))
    if run.is_main and run.recorder is not None:
        title = f"{config.mode} on {data.name}"
        run.log_figure("curves.png", figure_history(trained.results["history"], ["train/loss", METRIC], title))
        measured: dict[str, Measured] = {config.map_mode: Measured(**trained.results["maps"])}
        log_figures(run, {config.mode: load(load_bundle(trained.bundle))}, measured, data.test)
    return trained.outcome(METRIC, "max")


def evaluate(predictor: Any, data: Any, run: Run) -> dict[str, float]:
    """Evaluate accuracy and maps of a trained model on the validation and test splits of a data set with its classes.

    The model's own map is evaluated on all images. On ``baseline_pictures`` images of each split it is also compared
    with the other maps of its head and with gradient maps of the same network; these metrics carry the map's name. If
    parts are annotated (CUB), cue localisation is evaluated too.

    Raises:
        ValueError: If the data set has other classes than the model.
    """
    own = _own(predictor, "the model")
    config, model, loaded = own.config, own.model.to(run.device), _load(own, data, run)
    superclasses = loaded.superclasses or own.superclasses
    mine = own_source(model, config, superclasses)
    beside: dict[str, Source] = mine | further_sources(model, config, superclasses)
    beside |= {name: gradient_source(model, name) for name in config.baselines}
    metrics: dict[str, float] = {}
    drawn: dict[str, Measured] = {}
    for part, split in loaded.splits().items():
        metrics |= _accuracies(run, model, split, part)
        drawn = measure_maps(run, model, split, mine, config)
        metrics |= drawn[config.map_mode].metrics(part)
        if config.baseline_pictures:
            rows = spread_rows(len(split), config.baseline_pictures)
            drawn = measure_maps(run, model, split, beside, config, rows=rows)
            for name, each in drawn.items():
                metrics |= each.metrics(f"{part}/{name}")
    if loaded.cues is not None and (config.measures is None or "cues" in config.measures):
        metrics |= measure_cues(run, model, loaded.test, loaded.cues, config)
    log_figures(run, {config.mode: own}, drawn, loaded.test, stem=f"evaluated_{loaded.name}_")
    return metrics


def compare(
    predictor: Any, reference: Any, data: Any, run: Run, names: Sequence[str] = ("model", "reference")
) -> dict[str, float]:
    """Evaluate the maps of two models on the same test images, and show them side by side.

    Args:
        predictor: A model of this method, in any mode.
        reference: The other model, usually of mode ``cam``.
        data: Settings of a data set with the same classes.
        run: Execution context; figures go to its recorder.
        names: Names of the two models in the figures.

    Returns:
        Accuracy and map metrics of each, under ``model/`` and ``reference/``.

    Raises:
        ValueError: If a model is of another method, image sizes differ, or the data set has other classes.
    """
    models = [_own(predictor, names[0]), _own(reference, names[1])]
    sizes = [own.preprocessing.image_size for own in models]
    if sizes[0] != sizes[1]:
        raise ValueError(f"both models must have one image size to be compared, got {sizes[0]} and {sizes[1]} pixels")
    loaded = _load(models[0], data, run)
    check_classes(models[1].classes, loaded.name, loaded.classes)
    metrics: dict[str, float] = {}
    found: dict[str, Measured] = {}
    for key, name, own in zip(("model", "reference"), names, models, strict=True):
        metrics |= _accuracies(run, own.model.to(run.device), loaded.test, key)
        sources = own_source(own.model, own.config, loaded.superclasses or own.superclasses)
        (found[name],) = measure_maps(run, own.model, loaded.test, sources, own.config).values()
        metrics |= found[name].metrics(key)
    stem = "_".join(("against", *names, loaded.name, "")).replace("/", "-")
    log_figures(run, dict(zip(names, models, strict=True)), found, loaded.test, stem=stem)
    return metrics


def _check(config: Config, data: ImageData) -> None:
    """Check before training that the data have what the settings need."""
    check_superclasses_known(config, data.superclasses)
    check_cues(config, data.cues is not None)
    for part, split in data.splits().items():
        usable_measures(config, split, part)


def _train(job: JobConfig, data: ImageData, run: Run, folder: Path) -> None:
    """Run the training stage; all its output goes to ``folder``."""
    config: Config = job.method
    classifier = calm_classifier(config, job.model, len(data.classes), data.image_size)
    load_embedded_pretraining(run, job.model, job.data, classifier)
    result = _fit(job, data, run, classifier)
    model: Any = result.model
    best: ImageClassifier = model.classifier
    metrics: dict[str, float] = {}
    maps: dict[str, Measured] = {}
    for part, split in data.splits().items():
        metrics |= _accuracies(run, best, split, part)
        rows = spread_rows(len(split), config.summary_pictures)
        sources = own_source(best, config, data.superclasses)
        (maps[part],) = measure_maps(run, best, split, sources, config, rows=rows).values()
        metrics |= maps[part].metrics(part)
    if run.is_main:
        _save(job, data, folder, best, metrics, result, maps["test"])


def _fit(job: JobConfig, data: ImageData, run: Run, classifier: ImageClassifier) -> FitResult:
    config: Config = job.method

    def validate(bare: nn.Module) -> Mapping[str, float]:
        trained: Any = bare
        return _accuracies(run, trained.classifier, data.val, "val") if data.val is not None else {}

    source = run.loader(
        lambda rows: read_batch(data.train, rows),
        len(data.train),
        job.run.batch_size,
        shuffle=True,
        prefetch=0 if data.train.images.in_memory else 4,
    )
    steps_per_epoch = -(-source.num_batches() // job.run.accumulate)
    return fit(
        run,
        TrainedClassifier(classifier),
        training_loss(config, mirrorable=data.mirrorable),
        source,
        FitPlan.of(job.run, monitor=METRIC if config.keep == "best" else None, mode="max"),
        optimizer=lambda bare: _optimizer(config, bare),
        schedule=lambda optimizer, steps: _schedule(config, optimizer, steps, steps_per_epoch),
        evaluate=validate,
    )


def training_loss(config: Config, *, mirrorable: bool) -> Loss:
    """Return the loss of a ``TrainedClassifier`` on augmented images."""
    mirror = config.horizontal_flip and mirrorable

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        images = augment(batch["images"], config.image_size, mirror=mirror, shift=config.max_shift)
        return model(images, batch["labels"])

    return loss


def _optimizer(config: Config, model: Any) -> torch.optim.Optimizer:
    groups: Any = parameter_groups(model.classifier, config.learning_rate, config.head_multiplier)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    return torch.optim.Adam(groups, weight_decay=config.weight_decay)


def _schedule(config: Config, optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler:
    if config.schedule == "one_cycle":
        peaks = [float(group["lr"]) for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=steps)

    def factor(step: int) -> float:
        epoch = 1 + step // steps_per_epoch
        return config.decay_factor ** (epoch // config.decay_every_epochs) if config.schedule == "step" else 1.0

    return LambdaLR(optimizer, factor)


def _accuracies(run: Run, model: ImageClassifier, split: LocalisationSplit, part: str) -> dict[str, float]:
    logits = predict_images(run, model.eval(), split.images)
    return classification_metrics(logits, shared_tensor(split.labels), part)


def _save(
    job: JobConfig,
    data: ImageData,
    folder: Path,
    model: ImageClassifier,
    metrics: dict[str, float],
    result: FitResult,
    maps: Measured,
) -> None:
    predictor = CalmPredictor(model, job.method, data.classes, "cpu", data.superclasses)
    files: dict[str, bytes | Path] = {}
    if data.superclasses is not None:
        groups = {str(label): list(members) for label, members in data.superclasses.items()}
        files[SUPERCLASSES_FILE] = json.dumps(groups).encode()
    save_results(
        folder,
        job,
        predictor,
        data.test.images.read(np.arange(min(NUM_PROBES, len(data.test)))),
        tensors=predictor.model.state_dict(),
        metrics=metrics,
        history=result.history,
        data_name=data.name,
        data_fingerprint=data.fingerprint,
        files=files,
        maps=asdict(maps),
        best_epoch=result.best_epoch,
    )


def _load(own: CalmPredictor, data: Any, run: Run) -> ImageData:
    loaded = run.once_per_node(lambda: load_image_data(data, own.preprocessing))
    check_classes(own.classes, loaded.name, loaded.classes)
    return loaded


def _own(predictor: Any, name: str) -> CalmPredictor:
    if not isinstance(predictor, CalmPredictor):
        raise ValueError(f"{name} must be a model of calm, got {type(predictor).__name__}")  # noqa: TRY004 - the user chooses the model
    return predictor
