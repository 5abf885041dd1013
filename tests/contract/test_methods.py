"""What every method keeps to, whatever it does. A new method adds one row to ``ROWS``."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jobs.config import compose_job
from tenfold.bundle import check_probe, load_bundle, load_probes
from tenfold.catalog import METHODS, load_predictor
from tenfold.config import job_from_dict
from tenfold.data.catalog import (
    load_classification,
    load_concepts,
    load_localisation,
    load_multilabel,
    load_regression,
)
from tenfold.engine.fit import Clock, Objective
from tenfold.engine.run import Outcome, PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.probes import Inputs
from tenfold.tasks import Param, Signature, scalar_params
from tenfold.tracking.model import mlflow_signature
from tenfold.types import Batch


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A method in the middle of its training: what learns, from what, at which moment."""

    model: nn.Module
    objective: Objective
    batch: Callable[[], Batch]
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's line of the table."""

    settings: tuple[str, ...]
    """A training of seconds, as on a command line."""
    learner: Callable[[JobConfig, PlainRun], Learner] | None
    """None: the method trains nothing, or walks a chain of its own instead of the common loop."""


def partial_labels(job: JobConfig, run: PlainRun) -> Learner:
    import numpy as np

    from tenfold.methods.boostlu.predictor import boosted_classifier
    from tenfold.methods.large_loss.objective import TrainingLabels
    from tenfold.methods.large_loss.predictor import plain_classifier

    data = load_multilabel(job.data)
    labels = TrainingLabels(job.method, data.train, run, mirror=data.mirrorable, recorder=None)
    rows = np.arange(16)
    build = boosted_classifier if job.method_name == "boostlu" else plain_classifier
    return Learner(
        model=build(job.as_dict()["method"], job.model, len(data.classes), data.image_size),
        objective=labels.objective(),
        batch=lambda: {**labels.read(rows), "index": torch.from_numpy(rows)},
        clock=Clock(epoch=2, num_epochs=10, step=8, total_steps=80),
    )


def datadream(job: JobConfig, run: PlainRun) -> Learner:
    import numpy as np

    from tenfold.methods.datadream.augment import TrainingPool
    from tenfold.methods.datadream.classifiers import build_network
    from tenfold.methods.datadream.classify import ClassifierLoss
    from tenfold.methods.datadream.few_shot import draw_few_shot
    from tenfold.models.clip import load_clip

    clip = load_clip(job.model)
    data = load_classification(job.data, clip.preprocessing)
    few_shot = draw_few_shot(data, job.method.num_shots, job.method.num_templates, run.seed)
    network = build_network(job.method, clip, few_shot.prompts)
    pool = TrainingPool(few_shot, None, 1, network.preprocessing, "none")
    rows = np.arange(len(pool))
    return Learner(
        model=network,
        objective=Objective(loss=ClassifierLoss(job.method, network, len(few_shot.classes), run)),
        batch=lambda: {**pool.read(rows, 0), "index": torch.from_numpy(rows)},
        clock=Clock(epoch=2, num_epochs=10, step=8, total_steps=80),
    )


def calm(job: JobConfig, run: PlainRun) -> Learner:
    import numpy as np

    from tenfold.methods.calm.data import read_batch
    from tenfold.methods.calm.network import TrainedClassifier, calm_classifier
    from tenfold.methods.calm.recipe import training_loss
    from tenfold.types import Preprocessing

    data = load_localisation(job.data, Preprocessing(image_size=job.method.image_size))
    rows = np.arange(16)
    return Learner(
        model=TrainedClassifier(calm_classifier(job.method, job.model, len(data.classes), data.image_size)),
        objective=Objective(loss=training_loss(job.method, mirrorable=False)),
        batch=lambda: {**read_batch(data.train, rows), "index": torch.from_numpy(rows)},
        clock=Clock(epoch=2, num_epochs=10, step=8, total_steps=80),
    )


def concept_realignment(job: JobConfig, run: PlainRun) -> Learner:
    import numpy as np

    from tenfold.methods.concept_realignment.base import training_loss
    from tenfold.methods.concept_realignment.stages import build_learner, read_batch
    from tenfold.types import Preprocessing

    data = load_concepts(job.data, Preprocessing(image_size=job.method.image_size))
    rows = np.arange(32)
    return Learner(
        model=build_learner(job, data),
        objective=Objective(loss=training_loss(job.method, mirrorable=False)),
        batch=lambda: {**read_batch(data.train, rows), "index": torch.from_numpy(rows)},
        clock=Clock(epoch=2, num_epochs=10, step=8, total_steps=80),
    )


def posterior_annealing(job: JobConfig, run: PlainRun) -> Learner:
    import numpy as np

    from tenfold.methods.posterior_annealing.recipe import target_statistics, training_loss
    from tenfold.models.regressors.build import build_regressor

    data = load_regression(job.data)
    rows = np.arange(16)
    return Learner(
        model=build_regressor(job.model, data.inputs, len(data.targets)),
        objective=Objective(loss=training_loss(job.method, data, *target_statistics(data.train, rows))),
        batch=lambda: {**data.train.read(rows), "index": torch.from_numpy(rows)},
        clock=Clock(epoch=2, num_epochs=10, step=8, total_steps=80),
    )


TINY_SCENES = ("data=handwriting", "data.num_train=64", "data.num_val=32", "data.num_test=32", "model.pretrained=false")
ROWS = {
    "boostlu": Row(settings=("method=boostlu", *TINY_SCENES), learner=partial_labels),
    "calm": Row(
        settings=(
            "method=calm", "model.pretrained=false", "data.num_train=64", "data.num_val=32", "data.num_test=32",
            "method.interval=0.05", "method.fractions=[0.3]", "method.learning_rate=1e-3",
        ),
        learner=calm,
    ),
    "concept_realignment": Row(
        settings=(
            "method=concept_realignment", "model.pretrained=false", "data.num_train=96", "data.num_val=32",
            "data.num_test=32", "method.image_size=32", "method.grid=2", "method.crossfit=2", "method.head_epochs=2",
            "method.realigner_epochs=2", "method.policies=[ucp]",
        ),
        learner=concept_realignment,
    ),
    "datadream": Row(
        settings=(
            "method=datadream", "method.scheme=real", "method.num_shots=2", "method.images_per_class=2",
            "method.warmup_epochs=0", "method.learning_rate=0.01", "method.augment=none", "method.mixing=0",
            "method.lora_dropout=0", "method.figures=false",
        ),
        learner=datadream,
    ),
    "gradient_uncertainty": Row(
        settings=(
            "method=gradient_uncertainty", "data.num_train=10", "data.num_val=10", "data.num_test=30",
            "model.channels=[2, 2, 2]", "model.hidden=8", "run.max_steps=24", "method.num_members=3",
            "method.warmup_steps=5", "method.threshold=-1e6", "method.noise_power=1.0", "method.judge_epochs=1",
        ),
        learner=None,
    ),
    "large_loss": Row(settings=("method=large_loss", *TINY_SCENES), learner=partial_labels),
    "posterior_annealing": Row(
        settings=("method=posterior_annealing", "data.num_train=16", "data.num_val=8", "data.num_test=8"),
        learner=posterior_annealing,
    ),
    "waffleclip": Row(settings=("method=waffleclip", "method.num_pairs=2", "method.repetitions=1"), learner=None),
}  # fmt: skip
LEARNERS = sorted(name for name, row in ROWS.items() if row.learner)


@pytest.fixture(params=sorted(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def job(name: str) -> JobConfig:
    return compose_job([*ROWS[name].settings, "scale=local", "run.num_epochs=1", "run.batch_size=32"])


def learner(name: str, job: JobConfig, folder: Path) -> Learner:
    torch.manual_seed(job.run.seed)
    make = ROWS[name].learner
    assert make is not None
    return make(job, PlainRun(folder=folder, seed=job.run.seed, progress=False))


def test_the_table_is_that_of_the_catalog():
    assert set(ROWS) == set(METHODS)


def test_the_defaults_are_valid_and_survive_being_written_down(name, job):
    config = METHODS[name].config_class()()
    assert type(job.method) is type(config)
    assert job_from_dict(json.loads(json.dumps(job.as_dict()))) == job


def loss_of(each: Learner) -> Tensor:
    return each.objective.loss(each.model, each.batch(), each.clock)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_loss_is_finite_and_reaches_every_weight(name, job, tmp_path):
    each = learner(name, job, tmp_path)
    loss = loss_of(each)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    for key, parameter in each.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_seed_gives_the_same_loss(name, job, tmp_path):
    first, second = (loss_of(learner(name, job, tmp_path)).item() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", LEARNERS)
def test_a_few_steps_lower_the_loss(name, job, tmp_path):
    each = learner(name, job, tmp_path)
    optimizer = torch.optim.Adam([weight for weight in each.model.parameters() if weight.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        loss = loss_of(each)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.9 * losses[0]


def test_a_training_ends_in_a_bundle_that_answers_as_the_training_did(name, job, tmp_path):
    run = PlainRun(folder=tmp_path / "run", shared=tmp_path, seed=job.run.seed, progress=False)
    try:
        outcome = METHODS[name].recipe().train(job, run)
    finally:
        run.close()
    assert isinstance(outcome, Outcome)
    assert outcome.metric in outcome.metrics
    assert outcome.mode in ("max", "min")
    assert len(outcome.history) == (job.run.num_epochs if name in LEARNERS else 1)
    bundle = load_bundle(outcome.bundle)
    assert bundle.metadata.method == name
    assert bundle.metadata.task == METHODS[name].task
    assert bundle.metadata.data_fingerprint == outcome.data_fingerprint
    assert bundle.metadata.metrics == outcome.metrics
    assert job_from_dict(bundle.config) == job
    predictor = load_predictor(bundle)
    signature = bundle.metadata.signature
    assert predictor.signature == signature
    assert check_probe(bundle, predictor) == 0.0  # same machine, same kernels, same batch
    probes = load_probes(bundle)
    if any(slot.optional for slot in signature.inputs):
        assert any(len(inputs) > len(signature.required) for inputs in probes)
    again = load_predictor(outcome.bundle)
    given_away: set[str] = set()
    for inputs in probes:
        given = two_rows(inputs, signature)
        for words in ({}, *({param.name: value_of(param)} for param in scalar_params(signature))):
            answer = predictor(**given, **words)
            signature.check_outputs(answer)
            assert {len(value) for value in answer.values()} == {2}
            for key, value in again(**given, **words).items():
                assert torch.equal(value, answer[key]), key
            given_away |= answer.keys()
        assert {slot.name for slot in signature.always} == set(predictor(**given))
    assert given_away == {slot.name for slot in signature.outputs}  # also those that a request has to ask for
    named = [spec.name for spec in mlflow_signature(signature).outputs]
    assert named == [slot.name for slot in signature.always]


def two_rows(inputs: Inputs, signature: Signature) -> Inputs:
    shared = {slot.name for slot in signature.inputs if slot.shared}
    return {name: value if name in shared else value[:2] for name, value in inputs.items()}


def value_of(param: Param) -> Any:
    """A value that asks for what the parameter gives."""
    return True if param.schema["type"] == "boolean" else param.schema["examples"][0]
