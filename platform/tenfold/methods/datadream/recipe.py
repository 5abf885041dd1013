"""Stages from a few real images of each class to a classifier: adapt the generator, generate, classify."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tenfold import __version__
from tenfold.data.catalog import load_classification
from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.engine.predict import check_classes
from tenfold.engine.recipe import Trained, save_results, train_once
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.methods.datadream.adapt import Adapters, adapt
from tenfold.methods.datadream.classifiers import PromptedClip, ScratchClassifier, build_network
from tenfold.methods.datadream.classify import check_run, train_classifier
from tenfold.methods.datadream.comparators import captioner, clip_filter
from tenfold.methods.datadream.evaluation import split_metrics
from tenfold.methods.datadream.exports import open_clip_files, peft_files
from tenfold.methods.datadream.few_shot import FewShotData, draw_few_shot
from tenfold.methods.datadream.figures import log_figures
from tenfold.methods.datadream.generate import Start, generate
from tenfold.methods.datadream.image_store import ImageStore
from tenfold.methods.datadream.predictor import (
    ADAPTER,
    LOG_SCALE,
    PROTOTYPES,
    REFERENCE_FILE,
    DataDreamPredictor,
    ScratchPredictor,
)
from tenfold.methods.datadream.settings import REGENERATING, Config
from tenfold.models.clip import Clip, load_clip
from tenfold.models.clip_lora import lora_tensors, merge_lora
from tenfold.probes import Inputs as ProbeInputs
from tenfold.tasks import CLASSES, IMAGES

VAL_METRIC = "val/accuracy"
SHOTS_METRIC = "shots/accuracy"
"""Metric of a data set without a validation split: accuracy on the shots, unseen in training on synthetic images."""
NUM_PROBES = 8
"""Test images in the probe set of a bundle."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of a training."""

    job: JobConfig
    data: ClassificationData
    few_shot: FewShotData
    clip: Clip
    """CLIP without adapters."""


def train(job: JobConfig, run: Run) -> Outcome:
    """Draw the shots, adapt, generate, train the classifier, select by validation accuracy, test once."""
    config: Config = job.method
    check_run(config, job.run)
    clip = run.once_per_node(lambda: load_clip(job.model, run.device))
    data = run.once_per_node(lambda: load_classification(job.data, clip.preprocessing))
    few_shot = draw_few_shot(data, config.num_shots, config.num_templates, run.seed)
    inputs = Inputs(job=job, data=data, few_shot=few_shot, clip=clip)

    adapters = adapt(job, run, few_shot)
    store = _generate(inputs, run, adapters)
    trained = _classify(inputs, run, store)
    log_figures(job, run, data, few_shot, clip, adapters, store, trained)
    return trained.outcome(VAL_METRIC if data.val is not None else SHOTS_METRIC, "max")


def evaluate(predictor: DataDreamPredictor | ScratchPredictor, data: Any, run: Run) -> dict[str, float]:
    """Measure a trained model on the validation and test splits of any data with its classes.

    Raises:
        ValueError: The data have other classes than the model.
    """
    loaded = run.once_per_node(lambda: load_classification(data, predictor.preprocessing, ("val", "test")))
    check_classes(predictor.classes, loaded.name, loaded.classes)
    metrics: dict[str, float] = {}
    for name, split in loaded.splits().items():
        metrics.update(split_metrics(run, lambda images: predictor(images)["logits"], split, name)[0])
    return metrics


def _generate(inputs: Inputs, run: Run, adapters: Adapters) -> ImageStore | None:
    """Fill the store with the requested number of images of each class; None for schemes without synthetic images."""
    config: Config = inputs.job.method
    if not config.synthetic:
        return None
    start = None
    if config.scheme in REGENERATING:
        start = Start(strength=config.noise_strength, texts=_captions(inputs, run))
    return generate(inputs.job, run, inputs.few_shot, adapters, count=config.images_per_class, start=start)


def _captions(inputs: Inputs, run: Run) -> list[list[list[str]]]:
    """Caption every shot once, for disef; is_synth has no captions."""
    config: Config = inputs.job.method
    if config.scheme != "disef":
        return []
    few_shot = inputs.few_shot
    key = {
        "shots": few_shot.fingerprint,
        "clip": inputs.clip.fingerprint,
        "names": few_shot.names,
        "captioner": config.captioner,
        "version": __version__,
    }

    def work(folder: Path) -> None:
        few_shot.check()
        if not run.is_main:
            return
        caption = captioner(config.captioner, inputs.clip, run.device)
        texts = [caption(few_shot, label) for label in range(len(few_shot.classes))]
        (folder / "captions.json").write_text(json.dumps(texts, ensure_ascii=False))

    folder = run.stage("datadream_caption", key, work)
    return json.loads((folder / "captions.json").read_text())


def _classify(inputs: Inputs, run: Run, store: ImageStore | None) -> Trained:
    """Run stage C."""
    job, data = inputs.job, inputs.data

    def work(folder: Path) -> None:
        config: Config = job.method
        inputs.few_shot.check()
        synthetic = None
        if store is not None:
            synthetic = [store.paths(label, config.images_per_class) for label in range(len(data.classes))]
            if config.scheme in REGENERATING and config.clip_filter:
                synthetic = clip_filter(run, inputs.clip, inputs.few_shot, synthetic, config.filter_keep)
        network = build_network(config, load_clip(job.model, run.device), inputs.few_shot.prompts)
        history: list[dict[str, float]] = []
        best_epoch = 0
        if config.scheme != "zero_shot":
            if data.val is None:
                warnings.warn(f"{data.name} has no validation split: the last epoch is kept", stacklevel=2)
            monitor = None if data.val is None else VAL_METRIC
            result = train_classifier(job, run, data, inputs.few_shot, synthetic, network, monitor=monitor)
            history, best_epoch = result.history, result.best_epoch
        network.to(run.device).eval()
        metrics, logits = _metrics(inputs, run, network)
        if run.is_main:
            save_file({"test": logits.contiguous()}, folder / "logits.safetensors")
            kept = {"best_epoch": best_epoch, "synthetic": [len(group) for group in synthetic or []]}
            _save(inputs, run, folder, network, metrics, history, kept)

    return train_once(
        run,
        job,
        data.fingerprint,
        work,
        stage="datadream_classify",
        clip=inputs.clip.fingerprint,
        pool=None if store is None else store.digest,
    )


@torch.no_grad()
def _metrics(inputs: Inputs, run: Run, network: PromptedClip | ScratchClassifier) -> tuple[dict[str, float], Tensor]:
    """Accuracies of the selected weights, and the logits ``(N, C)`` of the test split, which is used only here."""
    data, few_shot = inputs.data, inputs.few_shot
    score = network.scorer()
    if data.val is not None:
        metrics, _ = split_metrics(run, score, data.val, "val")
    else:
        shots = ClassificationSplit(images=few_shot.images, labels=few_shot.labels)
        metrics, _ = split_metrics(run, score, shots, "shots")
    of_test, logits = split_metrics(run, score, data.test, "test")
    return {**metrics, **of_test}, logits


def _save(
    inputs: Inputs,
    run: Run,
    folder: Path,
    network: PromptedClip | ScratchClassifier,
    metrics: dict[str, float],
    history: list[dict[str, float]],
    kept: dict[str, Any],
) -> None:
    job, data, few_shot = inputs.job, inputs.data, inputs.few_shot
    # On the CPU and in one batch: the probe set is compared where the model is served, which may have no GPU.
    network = network.cpu().eval()
    files: dict[str, bytes | Path] = {}
    predictor: DataDreamPredictor | ScratchPredictor
    if isinstance(network, PromptedClip):
        template = few_shot.templates[0].replace("{}", few_shot.domain_word, 1)
        with torch.no_grad():
            tensors = {PROTOTYPES: network.prototypes().float(), LOG_SCALE: network.clip.log_scale}
        reference = {"fingerprint": inputs.clip.fingerprint, "prompt_template": template}
        files[REFERENCE_FILE] = json.dumps(reference, indent=2).encode()
        if job.method.scheme != "zero_shot":
            adapter = lora_tensors(network.clip)
            tensors |= {f"{ADAPTER}{name}": value for name, value in adapter.items()}
            files |= peft_files(network.clip, run.scratch / "peft")
            if job.method.export_open_clip:
                files |= open_clip_files(network.clip, job.model, run.scratch / "open_clip")
            merge_lora(network.clip)
        predictor = DataDreamPredictor(network.clip, data.classes, tensors[PROTOTYPES], tensors[LOG_SCALE], template)
    else:
        tensors = network.network.state_dict()
        predictor = ScratchPredictor(network.network, data.classes, "cpu")
    images = data.test.images.read(np.arange(min(NUM_PROBES, len(data.test.images))))
    probes: list[ProbeInputs] = [{IMAGES: images}]
    if isinstance(predictor, DataDreamPredictor):
        probes.append({IMAGES: images[:2], CLASSES: list(data.classes[:2])})
        predictor.clip.text_cache.clear()  # texts of the probes are encoded as where the model is served, in one batch
    save_results(
        folder,
        job,
        predictor,
        probes,
        tensors=tensors,
        metrics=metrics,
        history=history,
        data_name=data.name,
        data_fingerprint=data.fingerprint,
        files=files,
        **kept,
    )
