"""Stages of concept realignment: base model, its predictions, realigner with its rivals, curves."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.data.catalog import load_concepts
from tenfold.data.concepts import ConceptData
from tenfold.engine.predict import check_classes
from tenfold.engine.recipe import save_results, train_once
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.methods.concept_realignment.evaluation import (
    Expert,
    Row,
    Setting,
    compare,
    concept_gains,
    draw_curve,
    leakage,
    table,
)
from tenfold.methods.concept_realignment.figures import TABLE_FILE, log_figures
from tenfold.methods.concept_realignment.intcem import InterventionPolicy
from tenfold.methods.concept_realignment.network import ConceptModel
from tenfold.methods.concept_realignment.predictions import Predictions, of_split, predict_split
from tenfold.methods.concept_realignment.predictor import ConceptPredictor
from tenfold.methods.concept_realignment.questions import Asker, Questions
from tenfold.methods.concept_realignment.realigners import adapted, choose, fit_rival, to_device, train_network
from tenfold.methods.concept_realignment.settings import Config, Policy
from tenfold.methods.concept_realignment.sources import predicted_by
from tenfold.methods.concept_realignment.stages import concept_weights, predict_all, train_base, train_head
from tenfold.probes import Inputs
from tenfold.tasks import CONCEPT_MASK, CONCEPT_UNKNOWN, CONCEPT_VALUES
from tenfold.types import Preprocessing

METRIC = "val/concept_loss_auc"
NUM_PROBES = 8


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A trained base model with its predictions for every part."""

    model: ConceptModel
    parts: Mapping[str, Predictions]
    weight: Tensor | None
    """Factor of each concept's loss ``(K,)``; None: 1."""
    history: list[dict[str, float]]
    learned: InterventionPolicy | None = None
    """Policy of ``intcem``."""
    joint: nn.Module | None = None
    """Realigner that was trained with the base model."""


def train(job: JobConfig, run: Run, base: Any = None) -> Outcome:
    """Train the base model, predict every image, fit the realigners, measure them and write a bundle.

    Args:
        job: Settings; ``job.method`` is a ``Config`` of this method.
        run: Execution context.
        base: Predictor of another method whose labels name the concepts, in place of a base model; None: train one.
    """
    config: Config = job.method
    data = run.once_per_node(lambda: load_data(job.data, config))
    if base is not None:
        data = predicted_by(run, base, data)
    check_data(config, data)
    frozen = _frozen(job, data, run)
    trained = train_once(run, job, data.fingerprint, lambda folder: _realign(job, data, run, folder, frozen))
    if run.is_main and run.recorder is not None:
        log_figures(run, trained.folder, data, config)
    return trained.outcome(METRIC, "min")


def evaluate(predictor: Any, data: Any, run: Run) -> dict[str, float]:
    """Measure a trained model, with and without its realigner, on the validation and test parts of any data with its
    concepts and classes.

    Raises:
        ValueError: The data have other concepts or classes than the model.
    """
    if not isinstance(predictor, ConceptPredictor):
        raise ValueError(f"the model must be one of concept_realignment, got {type(predictor).__name__}")  # noqa: TRY004 - the user chooses it
    config = predictor.config
    loaded = run.once_per_node(lambda: load_data(data, config))
    check_classes(predictor.classes, loaded.name, loaded.classes)
    if predictor.names != loaded.concepts:
        raise ValueError(
            f"data {loaded.name!r} must have the {len(predictor.names)} concepts of the model "
            f"({', '.join(predictor.names[:4])} ...), got {len(loaded.concepts)} ({', '.join(loaded.concepts[:4])} ...)"
        )
    if (predictor.preprocessing is None) != loaded.predicted:
        wanted = "stored predictions" if predictor.preprocessing is None else "images"
        raise ValueError(f"the model takes {wanted}, which data {loaded.name!r} don't have")
    model, weight = predictor.model, predictor.weight
    setting = Setting(
        config=config,
        model=model,
        questions=predictor.questions,
        weight=None if weight is None else torch.tensor(weight, device=run.device),
        seed=run.seed,
    )
    metrics: dict[str, float] = {}
    for part, split in (("val", loaded.val), ("test", loaded.test)):
        predictions = adapted(of_split(split, *predict_split(run, model, split)), predictor.adapter)
        for name, realigner in (("", predictor.realigner), ("none/", None)):
            asker = _asker(setting, realigner, predictor.learned, config.policy)
            curve = draw_curve(setting, predictions, asker, coupled=config.coupled)
            metrics |= {f"{part}/{name}{key}": value for key, value in curve.summary().items()}
        metrics |= {f"{part}/{key}": value for key, value in leakage(setting, predictions).items()}
    return metrics


def load_data(data: Any, config: Config) -> ConceptData:
    """Load the data set at the network's size."""
    return load_concepts(data, Preprocessing(image_size=config.image_size), config.train_size)


def check_data(config: Config, data: ConceptData) -> None:
    """Refuse settings that do not fit the data, before anything is trained.

    Raises:
        ValueError: More questions than there are, or what a model of stored predictions cannot have.
    """
    num_questions = len(data.concepts) if config.single else len(data.questions)
    for name in ("steps", "train_steps"):
        value = getattr(config, name)
        if value is not None and value > num_questions:
            raise ValueError(f"{name} must be at most the {num_questions} questions of {data.name}, got {value}")
    concept_weights(config, data)
    if config.crossfit > len(data.train):
        raise ValueError(
            f"crossfit must be at most the number of training images, {len(data.train)}, got {config.crossfit}"
        )
    if data.predicted and config.base not in ("independent", "sequential"):
        raise ValueError(f"base must be independent or sequential for stored predictions, got {config.base}")


def _frozen(job: JobConfig, data: ConceptData, run: Run) -> Frozen:
    config: Config = job.method
    weight = concept_weights(config, data)
    if data.predicted:
        model = ConceptModel(None, len(data.concepts), len(data.classes))
        train_head(job, data, run, model)
        parts: dict[str, Predictions] = {
            part: of_split(split, *predict_split(run, model, split)) for part, split in data.splits().items()
        }
        return Frozen(model=model, parts=parts, weight=weight, history=[])
    base = train_base(job, data, run)
    return Frozen(
        model=base.learner.model,
        parts=predict_all(job, data, run, base),
        weight=weight,
        history=base.history,
        learned=base.learner.policy,
        joint=base.learner.realigner,
    )


def _realign(job: JobConfig, data: ConceptData, run: Run, folder: Path, frozen: Frozen) -> None:
    """Fit the realigners, choose one, measure all and save; all output goes into ``folder``."""
    config: Config = job.method
    setting = Setting(
        config=config,
        model=frozen.model,
        questions=Questions.of(data, single=config.single),
        weight=None if frozen.weight is None else frozen.weight.to(run.device),
        seed=run.seed,
    )
    adapter = None
    parts = frozen.parts
    history: list[dict[str, float]] = []
    if config.adapter:
        adapter, _ = train_network(run, setting, parts, steps=0, stage="adapter")
        parts = {part: adapted(predictions, adapter) for part, predictions in parts.items()}
    realigners: dict[str, nn.Module | None] = {}
    wanted = {*config.rivals, *(() if config.realigner == "auto" else (config.realigner,))}
    if "none" in wanted:
        realigners["none"] = None
    if "network" in wanted:
        realigners["network"] = frozen.joint
        if frozen.joint is None:
            realigners["network"], result = train_network(
                run, setting, parts, steps=config.train_steps, stage="realigner"
            )
            history = result.history
    for name in ("patterns", "gaussian", "stochastic"):
        if name in wanted:
            fitted = fit_rival(name, setting, parts, realigners.get("network"))
            realigners[name] = to_device(fitted, run.device)
    chosen = choose(setting, parts["val"], realigners)
    if not run.is_main:
        return
    askers = {
        name: [
            _asker(setting, realigner, frozen.learned, policy)
            for policy in dict.fromkeys((config.policy, *config.policies))
        ]
        for name, realigner in realigners.items()
    }
    experts = [
        Expert(name="errs", error=config.expert_error),
        Expert(name="does not know", unknown=config.expert_unknown),
        Expert(name="is unsure", certainty=config.expert_certainty),
    ]
    rows = compare(setting, parts["test"], askers, chosen, experts)
    val = draw_curve(setting, parts["val"], askers[chosen][0], coupled=config.coupled)
    metrics = {f"val/{key}": value for key, value in val.summary().items()}
    metrics |= _test_metrics(rows, chosen, config) | {
        f"test/{key}": value for key, value in leakage(setting, parts["test"]).items()
    }
    metrics |= {f"data/{key}": value for key, value in data.facts.items()}
    predictor = ConceptPredictor(
        frozen.model.cpu(),
        config,
        data.classes,
        data.concepts,
        groups=None if config.single else data.groups,
        exclusive={} if data.groups is None else {name: data.groups[name] for name in data.exclusive},
        weight=None if frozen.weight is None else frozen.weight.tolist(),
        costs=dict(zip(setting.questions.names, setting.questions.costs.tolist(), strict=True)),
        realigner=realigners[chosen],
        realigner_name=chosen,
        adapter=adapter,
        learned=frozen.learned,
    )
    _save(job, data, folder, predictor, metrics, rows, frozen.history, history, chosen)


def _asker(setting: Setting, realigner: nn.Module | None, learned: InterventionPolicy | None, policy: Policy) -> Asker:
    return Asker(
        name=policy,
        config=setting.config,
        model=setting.model,
        realigner=realigner,
        learned=learned,
        groups=setting.questions.groups.to(setting.device),
    )


def _test_metrics(rows: Sequence[Row], chosen: str, config: Config) -> dict[str, float]:
    """Return the summaries of the endpoint's policy by realigner; those of the chosen one stand without its name, and
    with experts by theirs."""
    metrics: dict[str, float] = {}
    for row in rows:
        if (row.policy, row.coupled) != (config.policy, config.coupled):
            continue
        summary = row.curve.summary()
        if row.expert != "sure":
            if row.realigner == chosen:
                expert = row.expert.replace(" ", "_")
                metrics |= {f"test/{expert}/{key}": value for key, value in summary.items()}
        else:
            metrics |= {f"test/{row.realigner}/{key}": value for key, value in summary.items()}
            if row.realigner == chosen:
                metrics |= {f"test/{key}": value for key, value in summary.items()}
    return metrics


def _save(
    job: JobConfig,
    data: ConceptData,
    folder: Path,
    predictor: ConceptPredictor,
    metrics: dict[str, float],
    rows: Sequence[Row],
    history: list[dict[str, float]],
    realigner_history: list[dict[str, float]],
    chosen: str,
) -> None:
    lines = table(rows)
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    (folder / TABLE_FILE).write_text(text.getvalue())
    curves = [
        {
            "realigner": row.realigner,
            "policy": row.policy,
            "coupled": row.coupled,
            "expert": row.expert,
            "curve": {name: value.tolist() for name, value in vars(row.curve).items()},
        }
        for row in rows
    ]
    save_results(
        folder,
        job,
        predictor,
        probes(data, predictor),
        tensors=predictor.tensors(),
        metrics=metrics,
        history=history or [{"epoch": 1.0, "step": 0.0}],
        data_name=data.name,
        data_fingerprint=data.fingerprint,
        files=predictor.files(),
        curves=curves,
        gains=_gains(rows, chosen, predictor),
        realigner_history=realigner_history,
        chosen=chosen,
    )


def _gains(rows: Sequence[Row], chosen: str, predictor: ConceptPredictor) -> dict[str, list[float]]:
    """Return by how much the chosen realigner lowers the mean loss of each concept and question; empty without it."""
    config = predictor.config
    curves = {
        row.realigner: row.curve
        for row in rows
        if (row.policy, row.coupled, row.expert) == (config.policy, config.coupled, "sure")
    }
    if chosen == "none" or "none" not in curves:
        return {}
    gains = concept_gains(curves[chosen], curves["none"], predictor.questions)
    return {kind: values.tolist() for kind, values in gains.items()}


def probes(data: ConceptData, predictor: ConceptPredictor) -> list[Inputs]:
    """Return test images alone, and with corrections."""
    rows = np.arange(min(NUM_PROBES, len(data.test)))
    seen = data.test.images.read(rows)
    first = predictor.signature.required[0].name
    truth = torch.from_numpy(data.test.concepts[rows].astype(np.float32))
    mask = torch.zeros(truth.shape, dtype=torch.uint8)
    mask[:, :: max(2, truth.shape[1] // 4)] = 1
    unknown = (1 - mask) * (torch.arange(truth.shape[1]) == 1).to(torch.uint8)
    return [{first: seen}, {first: seen, CONCEPT_VALUES: truth, CONCEPT_MASK: mask, CONCEPT_UNKNOWN: unknown}]
