"""Zero-shot classification from class names to a bundle, without training: prompts, embeddings, scores.

Seven independent draws of random descriptors are scored at once and reported as in the paper: mean and population
standard deviation. The bundle is one model with the prompts of all draws: it needs no labels to select a draw, varies
less than any of them, and costs one matrix whatever the number of prompts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data.catalog import load_classification
from tenfold.data.classification import ClassificationData
from tenfold.engine.predict import check_classes
from tenfold.engine.recipe import Trained, save_results, train_once
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.hashing import content_hash
from tenfold.methods.waffleclip.embeddings import embed_prompts, embed_split
from tenfold.methods.waffleclip.evaluation import (
    Hits,
    PromptSet,
    accuracy_summary,
    class_accuracies,
    class_matrix,
    index_prompts,
    percent,
    pooled,
    score_repetitions,
)
from tenfold.methods.waffleclip.figures import figure_class_gain, figure_modes, figure_repetitions
from tenfold.methods.waffleclip.predictor import REFERENCE_FILE, WaffleClipPredictor
from tenfold.methods.waffleclip.prompt_inputs import PromptInputs, gather_prompt_inputs
from tenfold.methods.waffleclip.prompt_sets import build_prompt_sets
from tenfold.methods.waffleclip.settings import FIXED_MODES, Config, Mode
from tenfold.metrics.classification import classification_metrics
from tenfold.models.clip import Clip, load_clip
from tenfold.tasks import CLASSES, IMAGES

PARTS = ("val", "test")
NUM_PROBES = 8
"""Test images in the probe set of a bundle."""
READABLE = ("handwriting", "folders")
"""Data sets whose images may be characters."""
PROMPTS_FILE = "prompts.json"

_HALF = {"both": slice(None), "words": slice(0, None, 2), "characters": slice(1, None, 2)}

PromptSets = dict[Mode, list[dict[str, list[str]]]]
"""Mode to one prompt set for each repetition: class key to prompts, in label order."""


def train(job: JobConfig, run: Run) -> Outcome:
    """Build the prompts, embed images and prompts once, score all repetitions, and write a bundle and figures."""
    config: Config = job.method
    _check_model(job)
    clip = run.once_per_node(lambda: load_clip(job.model, str(run.device)))
    data = run.once_per_node(lambda: load_classification(job.data, clip.preprocessing, PARTS))
    inputs = gather_prompt_inputs(config, data)
    sets = prompt_sets(config, inputs, config.seeds(run.seed))
    trained = train_once(
        run,
        job,
        data.fingerprint,
        lambda folder: _evaluate(job, clip, data, inputs.prefix, sets, run, folder),
        clip=clip.fingerprint,
        prompts=content_hash(sets),  # the files that they come from may have changed
    )
    _log(config, data, run, trained)
    return trained.outcome("val/accuracy" if data.val is not None else "test/accuracy", "max")


def evaluate(predictor: WaffleClipPredictor, data: Any, run: Run) -> dict[str, float]:
    """Measure a model on the validation and test splits of any data with its classes.

    Raises:
        ValueError: The data have other classes than the model.
    """
    loaded = run.once_per_node(lambda: load_classification(data, predictor.preprocessing, PARTS))
    check_classes(predictor.classes, loaded.name, loaded.classes)
    clip = predictor.clip.fingerprint
    metrics: dict[str, float] = {}
    for part, split in loaded.splits().items():
        images = embed_split(run, predictor.embed, split, part, loaded.fingerprint, clip)
        metrics.update(classification_metrics(predictor.answer(images)["logits"], torch.tensor(split.labels), part))
    return metrics


def prompt_sets(config: Config, inputs: PromptInputs, seeds: Sequence[int]) -> PromptSets:
    """Build the prompts of every mode and repetition, plain CLIP among the modes; classes in label order.

    Raises:
        ValueError: A mode cannot be built from the inputs.
    """
    sets: PromptSets = {}
    for mode in dict.fromkeys((*config.modes, "clip")):
        sets[mode] = []
        for seed in seeds[:1] if mode in FIXED_MODES else seeds:
            built = build_prompt_sets(
                mode,
                inputs.descriptors,
                inputs.vocabulary,
                seed=seed,
                n_pairs=config.num_pairs,
                budget=config.budget,
                prefix=inputs.prefix,
                suffix=config.suffix,
                separator=config.separator,
                pre=config.pre,
                phrase=config.phrase,
            )
            used = _HALF[config.parts] if mode == config.mode else slice(None)
            sets[mode].append({key: built[key][used] for key in inputs.keys})
    return sets


@dataclass(frozen=True)
class _Scored:
    """Embeddings, labels, and the hits of each mode on one split."""

    images: Tensor
    labels: Tensor
    hits: dict[Mode, Hits]


def _check_model(job: JobConfig) -> None:
    """Refuse data that the shipped CLIP, trained on printed characters alone, cannot recognise."""
    if job.model.name == "tiny" and job.data.name not in READABLE:
        raise ValueError(
            f"model must be a CLIP trained on photographs with data {job.data.name!r}, got tiny, which has seen "
            f"printed characters only; set model=clip_vit_b32, clip_vit_l14 or clip_rn50, as in the paper"
        )


def _evaluate(
    job: JobConfig, clip: Clip, data: ClassificationData, prefix: str, sets: PromptSets, run: Run, folder: Path
) -> None:
    """Work of the stage, written to ``folder``."""
    config: Config = job.method
    prompts, every = index_prompts([one for mode_sets in sets.values() for one in mode_sets])
    remaining = iter(every)
    indexed = {mode: [next(remaining) for _ in mode_sets] for mode, mode_sets in sets.items()}
    texts = embed_prompts(run, clip.embed_texts, prompts, clip.fingerprint)
    images = {
        part: embed_split(run, clip.embed_images, split, part, data.fingerprint, clip.fingerprint)
        for part, split in data.splits().items()
    }
    if not run.is_main:
        return  # the rest is one matrix product
    scored: dict[str, _Scored] = {}
    for part, split in data.splits().items():
        labels = torch.tensor(split.labels)
        on_device = images[part].to(run.device), labels.to(run.device), texts.to(run.device)
        hits = {mode: score_repetitions(*on_device, each, config.aggregate) for mode, each in indexed.items()}
        scored[part] = _Scored(images[part], labels, hits)
    predictor = WaffleClipPredictor(
        clip,
        data.classes,
        _prototypes(config, texts, indexed[config.mode]),
        config.aggregate,
        f"{prefix}{{}}{config.suffix}",
        "cpu",  # the probe set is compared where the model is served, which may have no GPU
    )
    reference = {"fingerprint": clip.fingerprint, "prompt_template": predictor.prompt_template}
    probes = data.test.images.read(np.arange(min(NUM_PROBES, len(data.test))))
    clip.text_cache.clear()  # texts of the probes are encoded as where the model is served, not in the batch above
    save_results(
        folder,
        job,
        predictor,
        [{IMAGES: probes}, {IMAGES: probes[:2], CLASSES: list(data.classes[:2])}],
        tensors=predictor.tensors,
        metrics=_metrics(config, predictor, scored),
        history=_history(config, run.seed, scored),
        data_name=data.name,
        data_fingerprint=data.fingerprint,
        files={
            REFERENCE_FILE: json.dumps(reference).encode(),
            PROMPTS_FILE: json.dumps(sets[config.mode], ensure_ascii=False).encode(),
        },
        repetitions={
            part: {mode: percent(hits.top1).tolist() for mode, hits in each.hits.items()}
            for part, each in scored.items()
        },
        class_gains=_class_gains(config, scored["test"], len(data.classes)).tolist(),
    )


def _prototypes(config: Config, texts: Tensor, sets: Sequence[PromptSet]) -> dict[str, Tensor]:
    """Tensors of the model: the prompts of all repetitions, aggregated as those of one."""
    together = pooled(sets)
    if config.aggregate == "max":
        rows, counts = torch.from_numpy(together.rows), torch.from_numpy(together.counts)
        return {"prompt_embeddings": texts[rows], "prompt_counts": counts}
    return {"prototypes": class_matrix(texts, together, config.aggregate)}


def _metrics(config: Config, predictor: WaffleClipPredictor, scored: Mapping[str, _Scored]) -> dict[str, float]:
    """Metrics of the bundle, and ``_mean``, ``_std``, ``_min``, ``_max`` over the repetitions."""
    metrics: dict[str, float] = {}
    for part, each in scored.items():
        metrics.update(classification_metrics(predictor.answer(each.images)["logits"], each.labels, part))
        plain = accuracy_summary(each.hits["clip"])
        summary = accuracy_summary(each.hits[config.mode])
        metrics.update({f"{part}/{name}": value for name, value in summary.items()})
        metrics[f"{part}/clip_accuracy"] = plain["accuracy_mean"]
        if "top5_mean" in plain:
            metrics[f"{part}/clip_top5"] = plain["top5_mean"]
        metrics[f"{part}/gain"] = summary["accuracy_mean"] - plain["accuracy_mean"]
        for mode in config.compare:
            beside = accuracy_summary(each.hits[mode])
            metrics.update({f"{part}/{mode}/{name}": beside[name] for name in ("accuracy_mean", "accuracy_std")})
    return metrics


def _history(config: Config, run_seed: int, scored: Mapping[str, _Scored]) -> list[dict[str, float]]:
    """Rows of the history, one for each repetition; ``epoch`` numbers them from 1."""
    num = len(scored["test"].hits[config.mode].top1)
    rows = [{"epoch": at + 1.0, "seed": float(seed)} for at, seed in enumerate(config.seeds(run_seed)[:num])]
    for part, each in scored.items():
        hits = each.hits[config.mode]
        for row, value in zip(rows, percent(hits.top1).tolist(), strict=True):
            row[f"{part}/repetition_accuracy"] = value
        if hits.top5 is not None:
            for row, value in zip(rows, percent(hits.top5).tolist(), strict=True):
                row[f"{part}/repetition_top5"] = value
    return rows


def _class_gains(config: Config, test: _Scored, num_classes: int) -> Tensor:
    """Gain of each class over plain CLIP in each repetition, in percentage points, ``(R, C)``."""
    plain = class_accuracies(test.hits["clip"], test.labels, num_classes)
    return class_accuracies(test.hits[config.mode], test.labels, num_classes) - plain


def _log(config: Config, data: ClassificationData, run: Run, trained: Trained) -> None:
    """Log curves, figures and the prompts."""
    if not run.is_main or run.recorder is None:
        return
    results = trained.results
    for row in results["history"]:
        run.log_metrics({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))
    accuracies = results["repetitions"]["test"]
    clip, together = accuracies["clip"][0], results["metrics"]["test/accuracy"]
    title = f"{config.mode} on {data.name}"
    run.log_figure("repetitions.png", figure_repetitions(accuracies[config.mode], clip, together, title))
    run.log_figure("class_gain.png", figure_class_gain(np.array(results["class_gains"]), data.classes, title))
    if config.compare:
        run.log_figure("modes.png", figure_modes(accuracies, f"{data.name}, {config.num_pairs} pairs"))
    run.log_file(trained.bundle / PROMPTS_FILE)
