"""Training recipe for multi-label data with missing labels, shared by all losses and heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold.bundle import load_bundle
from tenfold.data.catalog import load_multilabel
from tenfold.data.multilabel import MultiLabelData
from tenfold.engine.fit import FitPlan, FitResult, fit
from tenfold.engine.predict import check_classes, predict_images
from tenfold.engine.recipe import Trained, save_results, stage_key, train_once
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.figures.history import figure_history
from tenfold.figures.labels import figure_predictions
from tenfold.methods.large_loss import map_evaluation
from tenfold.methods.large_loss.evaluation import annotation_counts, model_metrics, multilabel_metrics
from tenfold.methods.large_loss.figures import figure_detection, figure_memorisation
from tenfold.methods.large_loss.noise_record import write_manifest
from tenfold.methods.large_loss.objective import (
    TrainingLabels,
    WithLabelEstimator,
    check_labels,
    check_length,
    role_model,
)
from tenfold.methods.large_loss.observatory import LabelNoiseRecorder, detection_curve, memorisation_curve
from tenfold.methods.large_loss.predictor import BuildClassifier, MultiLabelPredictor, load, plain_classifier
from tenfold.methods.large_loss.settings import LARGE_LOSS_SCHEMES, Config
from tenfold.models.image_classifier import ImageClassifier, parameter_groups
from tenfold.pretraining.digits import load_embedded_pretraining
from tenfold.types import Batch

METRIC = "val/mAP"
NUM_PROBES = 8
NUM_IMAGES = 18

compare = map_evaluation.compare


def train(job: JobConfig, run: Run, build: BuildClassifier = plain_classifier) -> Outcome:
    """Train, select the epoch by clean validation mAP, test, and write a bundle, a label-noise record and figures.

    Args:
        job: Settings; ``job.method`` is this method's ``Config`` or a subclass.
        run: Execution context.
        build: Builder of the network, for a method with its own head.
    """
    check_length(job.method, job.run.num_epochs)
    data = run.once_per_node(lambda: load_multilabel(job.data))
    check_labels(job.method, data.train)
    trained = train_once(run, job, data.fingerprint, lambda folder: _train(job, data, run, folder, build))
    _log_figures(job, data, run, trained, build)
    return trained.outcome(METRIC, "max")


def evaluate(predictor: MultiLabelPredictor, data: Any, run: Run) -> dict[str, float]:
    """Compute the mAP of a trained model on the validation and test splits of any data set with the same classes.

    Args:
        predictor: The model.
        data: Settings of a data set.
        run: Execution context.

    Raises:
        ValueError: If the data set has other classes than the model.
    """
    loaded = run.once_per_node(lambda: load_multilabel(data))
    check_classes(predictor.classes, loaded.name, loaded.classes)

    def predict(images: Tensor) -> Tensor:
        return predictor(images)["logits"]

    metrics: dict[str, float] = {}
    counts = annotation_counts(loaded)
    for name, split in (("val", loaded.val), ("test", loaded.test)):
        metrics.update(model_metrics(run, predict, split, name, counts))
    return metrics


def _train(job: JobConfig, data: MultiLabelData, run: Run, folder: Path, build: BuildClassifier) -> None:
    """Run the training stage; all its output goes to ``folder``."""
    config: Config = job.method
    classifier = build(job.as_dict()["method"], job.model, len(data.classes), data.image_size)
    load_embedded_pretraining(run, job.model, job.data, classifier)
    recorder = None
    if config.observatory != "off" and (config.scheme in LARGE_LOSS_SCHEMES or config.scheme == "an"):
        recorder = LabelNoiseRecorder(
            folder / "observatory",
            rank=run.rank,
            num_samples=len(data.train.images),
            classes=data.classes,
            observed=data.train.observed,
            true=data.train.full,
            scheme=config.scheme,
            mode=config.observatory,
        )
    labels = TrainingLabels(config, data.train, run, mirror=data.mirrorable, recorder=recorder)
    if job.model.init == "linear":
        _linear_init(job, data, run, classifier)
    result = _fit(job, data, run, classifier, labels)
    best = _classifier(result.model)
    counts = annotation_counts(data)
    metrics = model_metrics(run, best, data.val, "val", counts) | model_metrics(run, best, data.test, "test", counts)
    if run.is_main:
        _save(job, data, folder, best, metrics, result)
        if recorder is not None:
            write_manifest(
                folder / "observatory",
                run_id=run.recorder.run_id if run.recorder is not None else "",
                seed=run.seed,
                scheme=config.scheme,
                delta_rel=config.delta_rel_percent / 100,
                config_digest=job.digest(),
                data_fingerprint=data.fingerprint,
            )


def _fit(
    job: JobConfig, data: MultiLabelData, run: Run, classifier: ImageClassifier, labels: TrainingLabels
) -> FitResult:
    config: Config = job.method
    model = role_model(classifier, data.train, run.seed) if config.scheme == "role" else classifier
    images = data.train.images
    source = run.loader(
        labels.read, len(images), job.run.batch_size, shuffle=True, prefetch=0 if images.in_memory else 4
    )
    plan = FitPlan.of(job.run, monitor=METRIC, mode="max", stop_after_drop=config.stop_after_drop)
    return fit(
        run,
        model,
        labels.objective(),
        source,
        plan,
        optimizer=lambda bare: _optimizer(config, bare),
        evaluate=lambda bare: model_metrics(run, _classifier(bare), data.val, "val"),
    )


def _linear_init(job: JobConfig, data: MultiLabelData, run: Run, classifier: ImageClassifier) -> None:
    """Initialise the head by linear probing on features of the frozen backbone, which are computed once."""

    def work(folder: Path) -> None:
        frozen = classifier.to(run.device).eval()
        features = {name: predict_images(run, frozen.features, getattr(data, name).images) for name in ("train", "val")}
        labels = TrainingLabels(job.method, data.train, run, mirror=False, recorder=None)

        def read(rows: np.ndarray) -> Batch:
            return {**labels.read_labels(rows), "images": features["train"][torch.from_numpy(rows)]}

        def validate(head: nn.Module) -> Mapping[str, float]:
            logits = _classifier(head)(features["val"].to(run.device)).cpu()
            return multilabel_metrics(logits, data.val, "val")

        head: nn.Module = nn.Linear(classifier.feature_dim, len(data.classes))
        if job.method.scheme == "role":
            head = role_model(head, data.train, run.seed)
        result = fit(
            run,
            head,
            labels.objective(),
            run.loader(read, len(data.train.images), job.run.batch_size, shuffle=True),
            FitPlan(num_epochs=job.model.linear_epochs, monitor=METRIC, mode="max", stage="linear"),
            optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=job.model.linear_learning_rate),
            evaluate=validate,
        )
        if run.is_main:
            save_file(_classifier(result.model).state_dict(), folder / "head.safetensors")

    folder = run.stage("linear_init", stage_key(job, data.fingerprint), work)
    trained = load_file(folder / "head.safetensors")
    with torch.no_grad():  # weight and bias only: other state of the head, such as the boost factor, is kept
        for name, parameter in classifier.head.named_parameters():
            parameter.copy_(trained[name])


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = list(
        parameter_groups(_classifier(model), config.learning_rate, config.head_multiplier)
    )
    if isinstance(model, WithLabelEstimator):
        groups.append({"params": [model.label_logits], "lr": config.learning_rate * config.head_multiplier})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.Adam(groups, weight_decay=config.weight_decay)


def _classifier(model: nn.Module) -> Any:
    """Return the part that is evaluated and saved."""
    return model.classifier if isinstance(model, WithLabelEstimator) else model


def _save(
    job: JobConfig,
    data: MultiLabelData,
    folder: Path,
    model: ImageClassifier,
    metrics: dict[str, float],
    result: FitResult,
) -> None:
    """Write the bundle with its probe set, and the results; output of a killed attempt is overwritten."""
    probes = data.test.images.read(np.arange(min(NUM_PROBES, len(data.test.images))))
    predictor = MultiLabelPredictor(model, data.classes, "cpu")
    save_results(
        folder,
        job,
        predictor,
        probes,
        tensors=predictor.model.state_dict(),
        metrics=metrics,
        history=result.history,
        data_name=data.name,
        data_fingerprint=data.fingerprint,
        best_epoch=result.best_epoch,
    )


def _log_figures(job: JobConfig, data: MultiLabelData, run: Run, trained: Trained, build: BuildClassifier) -> None:
    """Log training curves, images with predicted labels, and the figures of the observatory."""
    if not run.is_main or run.recorder is None:
        return
    names = ["train/loss", METRIC, "train/corrected_labels"]
    run.log_figure(
        "curves.png", figure_history(trained.results["history"], names, f"{job.method.scheme} on {data.name}")
    )
    rows = np.arange(min(NUM_IMAGES, len(data.test.images)))
    images = data.test.images.read(rows)
    probs = load(load_bundle(trained.bundle), build=build)(images)["probs"]
    figure = figure_predictions(images.numpy(), probs.numpy(), data.test.full[rows], data.classes)
    run.log_figure("predictions.png", figure)
    observatory = trained.folder / "observatory"
    if not observatory.exists():
        return
    run.log_file(observatory)
    if job.method.scheme in LARGE_LOSS_SCHEMES:
        run.log_figure("detected_false_negatives.png", figure_detection(detection_curve(observatory)))
    if job.method.observatory == "all":
        run.log_figure("memorisation.png", figure_memorisation(memorisation_curve(observatory)))
