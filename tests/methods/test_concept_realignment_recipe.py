"""Concept realignment from settings to a model that is corrected: stages, base models, predictor, evaluation."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from jobs.config import compose_job
from tenfold import training
from tenfold.bundle import check_probe, load_bundle
from tenfold.catalog import load_predictor
from tenfold.config import ConfigError
from tenfold.data.catalog import load_concepts
from tenfold.data.concepts import ConceptData, ConceptSplit, concept_group_matrix
from tenfold.data.images import ArrayImages
from tenfold.engine.run import Interrupted, Outcome, PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.methods.concept_realignment import recipe, stages
from tenfold.methods.concept_realignment.augment import photo_augment
from tenfold.methods.concept_realignment.base import BaseLearner, concept_loss
from tenfold.methods.concept_realignment.evaluation import Expert, Setting, draw_curve
from tenfold.methods.concept_realignment.intcem import InterventionPolicy, draw_start, roll_out
from tenfold.methods.concept_realignment.network import (
    ConceptModel,
    GridHead,
    build_model,
    concept_map,
    new_realigner,
)
from tenfold.methods.concept_realignment.predictions import Predictions, fit_temperature, fold_rows
from tenfold.methods.concept_realignment.predictor import ConceptPredictor
from tenfold.methods.concept_realignment.questions import Asker, Questions, best_question
from tenfold.methods.concept_realignment.realigners import RealignerLearner, batch_tensors
from tenfold.methods.concept_realignment.settings import Config
from tenfold.models.image_classifier import ModelConfig
from tenfold.tasks import multi_label
from tenfold.types import Preprocessing

TINY = (
    "method=concept_realignment", "scale=local", "model.pretrained=false", "run.num_epochs=2", "run.batch_size=32",
    "data.num_train=96", "data.num_val=40", "data.num_test=40", "method.image_size=32", "method.grid=2",
    "method.crossfit=2", "method.head_epochs=3", "method.realigner_epochs=2", "method.validate_every=1",
    "method.repetitions=2",
)  # fmt: skip


class Drawer:
    """A recorder that keeps the figures."""

    run_id = "none"

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.files: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: Path, folder: str = "") -> None:
        self.files.append(path.name)

    def log_figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure


def job(*overrides: str) -> JobConfig:
    return compose_job([*TINY, *overrides])


def train(folder: Path, of_job: JobConfig, recorder: Drawer | None = None, **more: Any) -> Outcome:
    run = PlainRun(folder=folder / of_job.digest()[:12], shared=folder, recorder=recorder, progress=False)
    try:
        return recipe.train(of_job, run, **more)
    finally:
        run.close()


def predictor_of(outcome: Outcome) -> ConceptPredictor:
    predictor = load_predictor(outcome.bundle)
    assert isinstance(predictor, ConceptPredictor)
    return predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("concepts")


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return Drawer()


@pytest.fixture(scope="module")
def trained(folder: Path, drawer: Drawer) -> Outcome:
    return train(folder, job(), drawer)


@pytest.fixture(scope="module")
def data() -> ConceptData:
    return load_concepts(job().data, Preprocessing(image_size=32))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[PlainRun]:
    run = PlainRun(folder=tmp_path / "plain", progress=False)
    yield run
    run.close()


# ---- a training, and what it leaves ----


def test_a_training_compares_realigners_policies_and_experts(trained, drawer):
    results = json.loads((trained.bundle.parent / "results.json").read_text())
    seen = {(each["realigner"], each["policy"], each["expert"]) for each in results["curves"]}
    for realigner in ("none", "network", "patterns", "gaussian"):
        assert {(realigner, policy, "sure") for policy in ("ucp", "random", "ectp")} <= seen
    assert {(results["chosen"], "ucp", expert) for expert in ("errs", "does not know", "is unsure")} <= seen
    assert any(not each["coupled"] for each in results["curves"])
    for each in results["curves"]:
        if each["expert"] == "sure":  # whatever is asked, in the end everything is known
            assert each["curve"]["concept_loss"][-1] == 0
            assert each["curve"]["concept_accuracy"][-1] == 1
    assert {"realigners.png", "policies.png", "experts.png", "stop_rule.png", "base_model.png"} <= drawer.figures.keys()
    assert "interventions.csv" in drawer.files
    table = (trained.bundle.parent / "interventions.csv").read_text().splitlines()
    assert len(table) == 1 + len(results["curves"])
    assert trained.metrics["test/none/concept_loss_auc"] > 0
    assert {"test/accuracy_on_true_concepts", "test/accuracy_on_predicted_concepts"} <= trained.metrics.keys()


def test_the_chosen_realigner_has_the_smallest_validation_area(trained, folder):
    chosen = predictor_of(trained).realigner_name
    areas = {}
    for name in ("none", "network", "patterns", "gaussian"):
        areas[name] = train(folder, job(f"method.realigner={name}", "method.policies=[]")).metrics[
            "val/concept_loss_auc"
        ]
    assert min(areas, key=lambda name: areas[name]) == chosen
    assert areas[chosen] == trained.metrics["val/concept_loss_auc"]


def test_realigners_share_base_model_and_predictions(trained, folder, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(stages, "_fit", lambda *args, **kwargs: calls.append("trained"))
    train(
        folder, job("method.kind=gru", "method.realigner=network", "method.policies=[]", "data.costs={first_size: 2}")
    )
    assert not calls


def test_out_of_fold_predictions_come_from_models_that_have_not_seen_the_image(data, run, monkeypatch):
    seen: list[np.ndarray] = []
    fit = stages._fit

    def spy(job_: Any, data_: Any, run_: Any, learner: Any, rows: np.ndarray, stage: str) -> Any:
        seen.append(rows)
        return fit(job_, data_, run_, learner, rows, stage)

    monkeypatch.setattr(stages, "_fit", spy)
    stages._out_of_fold(job(), data, run, 2)
    folds = fold_rows(len(data.train), 2, 0)
    assert [sorted(rows) for rows in seen] == [sorted(folds[1]), sorted(folds[0])]
    assert sorted(np.concatenate(folds)) == list(range(len(data.train)))


@pytest.mark.parametrize(
    "overrides",
    [
        ("method.calibrate=true", "method.stop_at=0.5", "data.costs={first_segments: 3}", "method.imbalance=images"),
        ("method.base=joint", "method.single=true"),
        ("method.base=cem", "method.policies=[coop,information,fixed,skyline]", "method.reduce=max"),
        ("method.base=intcem", "method.policy=intcem", "method.policies=[]", "method.single=true"),
        ("method.base=intcem", "method.joint_realigner=true", "method.joint_loss=compat", "method.realigner=network"),
        (
            "method.base=sequential", "method.crossfit=1", "data.concept_task=scenes", "method.augment=photo",
            "method.realigner=none", "method.rivals=[none]",
        ),
        ("method.realigner=stochastic", "method.rivals=[none]", "method.adapter=true", "method.apply_from=0"),
        ("method.kind=lstm", "method.input_format=previous", "method.realigner=network", "method.train_policy=ectp"),
        ("data.concept_task=sums", "method.realigner=patterns", "method.imbalance=images", "method.rivals=[patterns]"),
    ],
)  # fmt: skip
def test_every_kind_of_model_ends_in_a_bundle_that_answers_as_the_training_did(overrides, tmp_path):
    outcome = train(tmp_path, job("run.num_epochs=1", *overrides))
    bundle = load_bundle(outcome.bundle)
    predictor = predictor_of(outcome)
    assert check_probe(bundle, predictor) == 0.0
    assert outcome.metrics["val/concept_loss_auc"] > 0
    assert all(np.isfinite(value) for value in outcome.metrics.values())


def test_an_interrupted_training_ends_with_the_same_metrics(tmp_path, monkeypatch, trained):
    asked = iter([False] * 9 + [True])
    stopped = PlainRun(folder=tmp_path / "run", shared=tmp_path, progress=False)
    monkeypatch.setattr(stopped, "stop_requested", lambda: next(asked, False))
    with pytest.raises(Interrupted):
        recipe.train(job(), stopped)
    stopped.close()
    again = PlainRun(folder=tmp_path / "run", shared=tmp_path, progress=False)
    assert recipe.train(job(), again).metrics == trained.metrics
    again.close()


def test_a_model_is_measured_on_other_data(trained, run):
    predictor = predictor_of(trained)
    same = recipe.evaluate(predictor, job().data, run)
    assert same["test/concept_loss_auc"] == pytest.approx(trained.metrics["test/concept_loss_auc"], rel=1e-5)
    assert same["test/none/accuracy_auc"] == pytest.approx(trained.metrics["test/none/accuracy_auc"], rel=1e-5)
    weighted = train(run.shared.local_path(), job("method.imbalance=images", "method.policies=[]"))
    again = recipe.evaluate(predictor_of(weighted), job().data, run)
    assert again["test/concept_loss_auc"] == pytest.approx(weighted.metrics["test/concept_loss_auc"], rel=1e-5)
    noisy = recipe.evaluate(predictor, job("data.noise=0.5").data, run)
    assert noisy["test/none/concept_loss_auc"] != same["test/none/concept_loss_auc"]
    with pytest.raises(ValueError, match="the model knows 100 classes"):
        recipe.evaluate(predictor, job("data.concept_task=scenes").data, run)


# ---- predictions of another model ----


def test_stored_predictions_are_realigned(tmp_path):
    draw = np.random.default_rng(0)
    rows = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    stored: dict[str, Any] = {}
    for part, length in (("train", 300), ("val", 100), ("test", 100)):
        labels = draw.integers(0, 3, length)
        noisy = np.clip(np.abs(rows[labels] - draw.beta(2, 3, (length, 4))), 0, 1)
        stored |= {f"{part}_concept_probs": noisy, f"{part}_concepts": rows[labels], f"{part}_labels": labels}
    np.savez(tmp_path / "of_ours.npz", **stored)
    settings = compose_job([
        "method=concept_realignment", "scale=local", "data=concept_predictions", "run.num_epochs=1",
        f"data.predictions={tmp_path / 'of_ours.npz'}", "method.realigner_epochs=5", "method.policies=[ucp]",
    ])  # fmt: skip
    outcome = train(tmp_path, settings)
    metrics = outcome.metrics
    assert metrics["test/patterns/concept_loss_auc"] < 0.7 * metrics["test/none/concept_loss_auc"]
    predictor = predictor_of(outcome)
    assert predictor.signature.required[0].name == "predictions"
    answer = predictor(predictions=torch.tensor([[0.9, 0.1, 0.8, 0.2]]), with_state=True)
    again = predictor(state=answer["state"])
    assert torch.equal(again["probs"], answer["probs"])
    with pytest.raises(ValueError, match=r"predictions must lie in \[0, 1\]"):
        predictor(predictions=torch.full((1, 4), 1.5))
    with pytest.raises(ValueError, match="base must be independent or sequential for stored predictions"):
        train(tmp_path, dataclasses.replace(settings, method=Config(base="cem")))


def test_a_model_of_another_method_gives_the_concepts(tmp_path, data):
    class Labels:
        """Knows the concepts among other labels, and is right where the image's first pixel is even."""

        signature = multi_label(("other", *reversed(data.concepts)), Preprocessing(image_size=32))

        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            shades = images.float().mean((1, 2, 3))[:, None] / 255
            return {"probs": (shades + torch.linspace(0, 0.5, 1 + len(data.concepts))).clamp(0, 1)}

    outcome = train(tmp_path, job("method.policies=[]"), base=Labels())
    predictor = predictor_of(outcome)
    assert predictor.preprocessing is None
    assert outcome.data_fingerprint != data.fingerprint
    Labels.signature = multi_label(("other",), Preprocessing(image_size=32))
    with pytest.raises(ValueError, match="base_model must predict every concept of handwriting; it lacks 26 of 26"):
        train(tmp_path, job("method.policies=[]"), base=Labels())
    Labels.signature = multi_label(data.concepts, Preprocessing(image_size=64))
    with pytest.raises(ValueError, match="image_size must be that of base_model, 64, got 32"):
        train(tmp_path, job("method.policies=[]"), base=Labels())


def test_a_job_loads_the_model_that_it_names(trained, tmp_path):
    of_job = job(f"method.base_model={trained.bundle}", "run.register=false", f"scale.storage={tmp_path}")
    with pytest.raises(ValueError, match="base_model must predict every concept of handwriting; it lacks 26 of 26"):
        training.train(of_job, progress=False)
    with pytest.raises(ValueError, match="no-such-bundle"):
        training.train(
            dataclasses.replace(of_job, method=dataclasses.replace(of_job.method, base_model="no-such-bundle")),
            progress=False,
        )


# ---- the predictor ----


def images_of(data: ConceptData, num: int = 3) -> Tensor:
    return data.test.images.read(np.arange(num))


def test_corrections_are_pinned_and_move_the_rest(trained, data):
    predictor = predictor_of(trained)
    seen = images_of(data)
    plain = predictor(seen)
    torch.testing.assert_close(plain["concepts"], plain["concept_probs"])  # nobody has said anything
    values = torch.zeros(3, 26)
    values[:, 0] = 1.0
    mask = torch.zeros(3, 26, dtype=torch.uint8)
    mask[:, :7] = 1
    answer = predictor(seen, concept_values=values, concept_mask=mask)
    assert torch.equal(answer["concepts"][:, :7], values[:, :7])
    assert torch.equal(answer["concept_probs"], plain["concept_probs"])
    assert not torch.equal(answer["concepts"][:, 7:], plain["concepts"][:, 7:])
    assert not torch.equal(answer["logits"], plain["logits"])
    assert (answer["next_concept"] != 0).all()  # the first segments are known


def test_a_state_answers_as_the_image_does_bit_for_bit(trained, data):
    predictor = predictor_of(trained)
    seen = images_of(data, 1)
    state = predictor(seen, with_state=True)["state"]
    values, mask = torch.ones(1, 26), torch.zeros(1, 26, dtype=torch.uint8)
    mask[0, 3] = 1
    by_image = predictor(seen, concept_values=values, concept_mask=mask)
    by_state = predictor(state=state, concept_values=values, concept_mask=mask)
    for name, value in by_image.items():
        assert torch.equal(by_state[name], value), name


def test_a_changed_state_and_that_of_another_model_are_refused(trained, data, folder):
    predictor = predictor_of(trained)
    state = predictor(images_of(data, 2), with_state=True)["state"]
    changed = state.clone()
    changed[1, 0] ^= 1
    with pytest.raises(ValueError, match="state 1 must come unchanged"):
        predictor(state=changed)
    renamed = ConceptPredictor(
        predictor.model,
        predictor.config,
        predictor.classes,
        predictor.names[::-1],
        groups=None,
        exclusive={},
        costs={},
        realigner=predictor.realigner,
        realigner_name=predictor.realigner_name,
    )
    with pytest.raises(ValueError, match="state 0 must come unchanged"):
        renamed(state=state)
    other = predictor_of(train(folder, job("method.realigner=none")))
    assert other.realigner_name != predictor.realigner_name
    with pytest.raises(ValueError, match="state 0 must come unchanged"):
        other(state=state)
    with pytest.raises(ValueError, match="either images or a state"):
        predictor(images_of(data, 2), state=state)
    with pytest.raises(ValueError, match="explain needs images"):
        predictor(state=state, explain=True)


@pytest.mark.parametrize(
    ("values", "mask", "unknown", "message"),
    [
        (None, [1, 0], None, "concept_mask needs concept_values"),
        ([1.5, 0.0], [1, 0], None, r"concept_values must lie in \[0, 1\] where concept_mask is 1"),
        ([float("nan"), 0.0], [1, 0], None, r"concept_values must lie in \[0, 1\]"),
        ([1.0, 0.0], [2, 0], None, "concept_mask must be 0 or 1"),
        ([1.0, 0.0], [1, 0], [1, 0], "concept_unknown must be 0 where concept_mask is 1"),
        ([1.0, 0.0], [1, 0], [3, 0], "concept_unknown must be 0 or 1"),
    ],
)
def test_corrections_that_make_no_sense_are_refused(trained, data, values, mask, unknown, message):
    def whole(part: Any, dtype: torch.dtype) -> Tensor | None:
        return None if part is None else torch.tensor([[*part, *[0] * 24]], dtype=dtype)

    with pytest.raises(ValueError, match=message):
        predictor_of(trained)(
            images_of(data, 1),
            concept_values=whole(values, torch.float32),
            concept_mask=whole(mask, torch.uint8),
            concept_unknown=whole(unknown, torch.uint8),
        )
    with pytest.raises(ValueError, match=r"concept_mask must be \(1, 26\), got \(1, 3\)"):
        predictor_of(trained)(images_of(data, 1), concept_mask=torch.zeros(1, 3, dtype=torch.uint8))


@pytest.mark.parametrize("single", ["true", "false"])
def test_two_true_concepts_of_an_exclusive_group_are_refused(single, tmp_path):
    overrides = ("data.concept_task=scenes", "method.policies=[]", "method.crossfit=1", f"method.single={single}")
    outcome = train(tmp_path, job(*overrides))
    predictor = predictor_of(outcome)
    columns = [predictor.names.index(f"count_{number}") for number in (1, 2)]
    values, mask = torch.zeros(1, 37), torch.zeros(1, 37, dtype=torch.uint8)
    values[0, columns] = 1.0
    mask[0, columns] = 1
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"at most one concept of count \(count_1, .*\) must be true"):
        predictor(image, concept_values=values, concept_mask=mask)
    mask[0, columns[1]] = 0
    predictor(image, concept_values=values, concept_mask=mask)


def test_nothing_is_asked_that_is_known_or_that_nobody_knows(trained, data):
    predictor = predictor_of(trained)
    groups = predictor.questions.groups
    seen = images_of(data, 1)
    unknown, mask, values = (torch.zeros(1, 26, dtype=torch.uint8) for _ in range(3))
    asked = []
    for number in range(len(groups)):
        answer = predictor(seen, concept_values=values.float(), concept_mask=mask, concept_unknown=unknown)
        question = int(answer["next_concept"])
        asked.append(question)
        assert answer["next_gain"].isfinite().all()
        part = mask if number % 2 else unknown
        part[0, groups[question] == 1] = 1
    assert sorted(asked) == list(range(len(groups)))
    done = predictor(seen, concept_values=values.float(), concept_mask=mask, concept_unknown=unknown)
    assert int(done["next_concept"]) == -1
    assert float(done["next_gain"]) == 0


def test_a_random_question_does_not_depend_on_who_is_asked_beside(folder, data):
    predictor = predictor_of(train(folder, job("method.policy=random", "method.policies=[]", "method.rivals=[none]")))
    together = predictor(images_of(data, 4))["next_concept"].tolist()
    alone = [int(predictor(images_of(data, 4)[row : row + 1])["next_concept"]) for row in range(4)]
    assert together == alone


def test_the_gain_is_the_expected_drop_of_the_class_entropy(trained, data):
    predictor = predictor_of(trained)
    seen = images_of(data, 1)
    answer = predictor(seen)
    members = (predictor.questions.groups[answer["next_concept"][0]] == 1).nonzero()[:, 0]

    def entropy(probs: Tensor) -> float:
        return float(torch.special.entr(probs.double()).sum())

    gains = []
    for column in members.tolist():
        after = 0.0
        for value, weight in ((1.0, answer["concepts"][0, column]), (0.0, 1 - answer["concepts"][0, column])):
            values, mask = torch.zeros(1, 26), torch.zeros(1, 26, dtype=torch.uint8)
            values[0, column], mask[0, column] = value, 1
            after += float(weight) * entropy(predictor(seen, concept_values=values, concept_mask=mask)["probs"])
        gains.append(entropy(answer["probs"]) - after)
    assert float(answer["next_gain"]) == pytest.approx(np.mean(gains), abs=1e-5)


def test_the_map_of_a_concept_adds_up_to_its_logit(data):
    """For a head that is linear in the map, gradient times map is the class activation map."""
    model = build_model(Config(image_size=32, grid=2), ModelConfig(), 26, 100).eval()
    assert model.image is not None
    seen = images_of(data)
    columns = torch.tensor([0, 7, 25])
    maps = concept_map(model, seen, columns)
    head = model.image.head
    assert isinstance(head, GridHead)
    logits = model.encode(seen)[torch.arange(3), columns]
    torch.testing.assert_close(maps.sum((1, 2)), (logits - head.linear.bias[columns]).detach())
    with torch.inference_mode():  # as MLflow calls a model
        torch.testing.assert_close(concept_map(model, images_of(data), columns), maps)
    with pytest.raises(ValueError, match=r"concepts must lie in 0..25, got 26..26"):
        concept_map(model, seen[:1], torch.tensor([26]))


def test_a_grid_tells_left_from_right():
    head = GridHead(1, 1, 2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
        head.linear.bias.zero_()
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    torch.testing.assert_close(head(left), -head(left.flip(3)))


# ---- base models ----


def learner_of(data: ConceptData, **settings: Any) -> BaseLearner:
    torch.manual_seed(0)
    config = Config(image_size=32, grid=2, **settings)
    model = build_model(config, ModelConfig(), len(data.concepts), len(data.classes))
    return BaseLearner(config, model, concept_group_matrix(data.groups, len(data.concepts)), None)


def test_rollouts_start_with_as_many_groups_in_every_image():
    groups = concept_group_matrix({"a": [0, 1], "b": [2], "c": [3, 4], "d": [5]}, 6)
    lengths = set()
    for seed in range(60):
        torch.manual_seed(seed)
        shared, chosen, length = draw_start(groups, 5, 0.25, horizon=4, longest=6)
        of_groups = (chosen @ groups.T) / groups.sum(1)
        assert ((of_groups == 0) | (of_groups == 1)).all()  # whole groups
        assert len(set(of_groups.sum(1).tolist())) == 1
        assert (chosen >= shared).all()
        assert length + of_groups[0].sum() <= len(groups)
        lengths.add(length)
    assert lengths == {0, 1, 2, 3}


def test_a_rollout_learns_the_question_that_helps_the_true_class():
    """With an embedding of one value and a head of known weights the best question is known."""
    from tenfold.methods.concept_realignment.embeddings import ConceptEmbeddingHead

    torch.manual_seed(0)
    head = ConceptEmbeddingHead(4, 3, 2, embedding_size=1)
    with torch.no_grad():
        head.head.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 5.0, 2.0]]))
    policy = InterventionPolicy(3, 3, 1)
    pos, neg = torch.ones(8, 3, 1), torch.zeros(8, 3, 1)
    predicted, truth = torch.full((8, 3), 0.5), torch.ones(8, 3)
    labels = torch.ones(8, dtype=torch.int64)
    nothing = torch.zeros(3), torch.zeros(8, 3), 1
    rolled = roll_out(head, policy, None, (predicted, pos, neg), truth, labels, torch.eye(3), nothing)
    scores = policy(predicted, torch.zeros(8, 3), pos, neg)
    best = torch.ones(8, dtype=torch.int64)  # the second concept, of weight 5
    torch.testing.assert_close(rolled.policy_loss, nn.functional.cross_entropy(scores, best))
    moved = (rolled.last_concepts - predicted).sum(1)
    torch.testing.assert_close(moved, torch.full((8,), 0.5))  # one concept went from 0.5 to 1


def test_the_horizon_grows_with_training_only(data):
    learner = learner_of(data, base="intcem").train()
    batch = stages.read_batch(data.train, np.arange(8))
    before = float(learner.horizon)
    learner(batch["images"], batch["concepts"], batch["labels"])
    assert float(learner.horizon) == pytest.approx(before * 1.005)
    learner.eval()
    learner(batch["images"], batch["concepts"], batch["labels"])
    assert float(learner.horizon) == pytest.approx(before * 1.005)


def test_embeddings_learn_in_full_precision_under_mixed_precision(data):
    learner = learner_of(data, base="intcem", joint_realigner=True).train()
    batch = stages.read_batch(data.train, np.arange(16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = learner(batch["images"], batch["concepts"], batch["labels"])
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(weight.grad is not None for weight in learner.parameters())


def test_validation_of_a_realigner_draws_the_same_every_time():
    setting, predictions = setting_of(train_policy="random")
    learner = RealignerLearner(setting.config, new_realigner(setting.config, 6), setting.questions, None, 6).eval()
    batch = batch_tensors(setting, predictions)
    torch.manual_seed(0)
    first = learner(batch, 0.0)
    assert torch.equal(learner(batch, 0.0), first)
    learner.train()
    assert not torch.equal(learner(batch, 0.0), learner(batch, 0.0))


def test_only_concepts_that_an_image_shows_count():
    probs, targets = torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 0.0]])
    known = torch.tensor([[1.0, 0.0]])
    assert concept_loss(probs, targets, None, known).item() == pytest.approx(np.log(2))
    weighted = concept_loss(probs, targets, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * np.log(2) - np.log(0.1)) / 2)


def test_a_temperature_undoes_a_scale():
    torch.manual_seed(0)
    logits = torch.randn(4000, 5) * 2
    targets = (torch.rand(4000, 5) < logits.sigmoid()).float()
    assert fit_temperature(3 * logits, targets) == pytest.approx(3.0, rel=0.1)


def test_augmented_photographs_keep_size_and_differ():
    torch.manual_seed(0)
    seen = torch.randint(0, 256, (4, 20, 20, 3), dtype=torch.uint8)
    first, second = (photo_augment(seen, 16, mirror=True) for _ in range(2))
    assert first.shape == (4, 16, 16, 3)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    grey = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    changed = photo_augment(grey, 8, mirror=False)
    assert (changed == changed[:, :1, :1]).all()  # one colour stays one colour
    assert ((changed.float() - 100).abs() <= 100 * 32 / 255 + 1).all()


# ---- experts and questions ----


def setting_of(num_concepts: int = 6, **settings: Any) -> tuple[Setting, Predictions]:
    torch.manual_seed(0)
    model = ConceptModel(None, num_concepts, 3).eval()
    predicted = torch.rand(200, num_concepts)
    truth = (torch.rand(200, num_concepts) < predicted).float()
    predictions = Predictions(
        encoded=predicted, concepts=predicted, truth=truth, answers=truth, labels=torch.randint(0, 3, (200,))
    )
    questions = Questions(
        names=tuple("abcdef"), groups=torch.eye(num_concepts), costs=torch.tensor([1.0, 1, 1, 1, 1, 4])
    )
    return Setting(config=Config(**settings), model=model, questions=questions, weight=None), predictions


def test_an_expert_who_errs_does_not_know_or_is_unsure():
    setting, predictions = setting_of()
    asker = Asker(name="ucp", config=setting.config, model=setting.model)
    sure = draw_curve(setting, predictions, asker)
    errs = draw_curve(setting, predictions, asker, expert=Expert(error=0.25))
    assert errs.concept_accuracy[-1] == pytest.approx(0.75, abs=0.04)
    unsure = draw_curve(setting, predictions, asker, expert=Expert(certainty=0.8))
    assert unsure.concept_loss[-1] == pytest.approx(-np.log(0.8), abs=1e-5)
    silent = draw_curve(setting, predictions, asker, expert=Expert(unknown=1.0))
    torch.testing.assert_close(silent.concept_loss, sure.concept_loss[:1].expand(7))
    assert sure.concept_loss[-1] == 0


def test_what_an_image_does_not_show_is_never_answered_and_never_counts():
    setting, predictions = setting_of()
    asker = Asker(name="ucp", config=setting.config, model=setting.model)
    known = torch.ones(200, 6)
    known[:150, 2] = 0
    hidden = dataclasses.replace(predictions, known=known)
    curve = draw_curve(setting, hidden, asker)
    assert curve.concept_loss[-1] == 0  # what is shown is known in the end
    seen = predictions.rows(150, 200)
    alone = draw_curve(setting, seen, asker)
    torch.testing.assert_close(curve.loss_by_concept[0, 2], alone.loss_by_concept[0, 2], rtol=1e-5, atol=0)
    learner = RealignerLearner(setting.config, new_realigner(setting.config, 6), setting.questions, None, 6).eval()
    batch = batch_tensors(setting, hidden)
    changed = {**batch, "answers": torch.where(known == 0, 1 - batch["answers"], batch["answers"])}
    assert torch.equal(learner(batch, 0.0), learner(changed, 0.0))


def test_costly_questions_come_later_and_cost_more():
    setting, predictions = setting_of()
    asker = Asker(name="fixed", config=setting.config, model=setting.model)
    curve = draw_curve(setting, predictions, asker)
    assert curve.cost.tolist() == [0, 1, 2, 3, 4, 5, 9]


def test_the_stop_rule_asks_less_where_less_is_enough():
    setting, predictions = setting_of()
    asker = Asker(name="ucp", config=setting.config, model=setting.model)
    questions, _ = draw_curve(setting, predictions, asker).stopping
    assert (questions.diff() >= 0).all()
    assert questions[0] < questions[-1] <= 6


def test_a_partly_known_question_is_scored_by_what_is_free():
    questions = Questions(
        names=("a", "b"), groups=torch.tensor([[1.0, 1, 0], [0, 0, 1]]), costs=torch.tensor([1.0, 1.0])
    )
    scores = torch.tensor([[9.0, 1.0, 4.0], [9.0, 1.0, 4.0], [9.0, 1.0, 4.0]])
    spent = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 1]])
    assert best_question(scores, spent, questions, "mean").tolist() == [0, 1, -1]
    assert best_question(scores, spent, questions, "max").tolist() == [0, 1, -1]
    dear = dataclasses.replace(questions, costs=torch.tensor([3.0, 1.0]))
    assert best_question(scores, spent, dear, "mean").tolist() == [1, 1, -1]


def test_random_curves_are_repeated_and_reproducible():
    setting, predictions = setting_of(repetitions=3)
    asker = Asker(name="random", config=setting.config, model=setting.model)
    first, second = (draw_curve(setting, predictions, asker) for _ in range(2))
    assert torch.equal(first.concept_loss, second.concept_loss)
    single, _ = setting_of(repetitions=1)
    assert not torch.equal(draw_curve(single, predictions, asker).concept_loss, first.concept_loss)


# ---- refusals ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.base=cem", "method.joint_realigner=true"), "joint_realigner must be false for base cem"),
        (("method.policy=intcem",), "policy intcem needs base intcem"),
        (("method.policy=skyline",), "policy must not be skyline"),
        (("method.apply_from=2",), "apply_from must be 0 or 1"),
        (("method.stop_at=1.5",), r"stop_at must lie in \(0, 1\)"),
        (("method.dropout=1.0",), r"dropout must lie in \[0, 1\)"),
        (("method.rivals=[none,none]",), "rivals must be unique"),
        (("method.learning_rate=0",), "learning_rate must be positive"),
        (("method.expert_certainty=0.4",), r"expert_certainty must lie in \(0.5, 1\]"),
        (("method.kind=tree",), "method.kind"),
        (("method.rivals=[]",), "rivals must name a realigner to choose from where realigner is auto"),
        (
            ("method.base=intcem", "method.joint_realigner=true", "method.rivals=[none]", "method.realigner=none"),
            "joint_realigner needs network",
        ),
        (("method.base_model=here", "method.base=cem"), "base must be independent or sequential with base_model"),
        (("method.calibrate=true", "method.base=cem"), "calibrate must be false for base cem"),
    ],
)
def test_settings_out_of_range_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        job(*overrides)


def test_settings_that_do_not_fit_the_data_are_refused_before_training(data, tmp_path):
    with pytest.raises(ValueError, match="steps must be at most the 12 questions of handwriting, got 13"):
        train(tmp_path, job("method.steps=13"))
    with pytest.raises(ValueError, match="crossfit must be at most the number of training images, 96, got 97"):
        train(tmp_path, job("method.crossfit=97"))
    with pytest.raises(ValueError, match="imbalance must not be classes for handwriting"):
        train(tmp_path, job("method.imbalance=classes", "data.concept_task=scenes"))
    assert not list(tmp_path.glob("stages/*"))


def test_a_concept_that_is_never_true_is_named(data):
    absent = data.train.concepts.copy()
    absent[:, 4] = 0
    changed = dataclasses.replace(
        data, train=ConceptSplit(images=data.train.images, concepts=absent, labels=data.train.labels)
    )
    with pytest.raises(ValueError, match="never true: first_segment_lower_left of handwriting"):
        stages.concept_weights(Config(imbalance="images"), changed)
    weights = stages.concept_weights(Config(imbalance="images"), data)
    count = data.train.concepts.sum(0)
    np.testing.assert_allclose(weights, len(data.train) / count - 1, rtol=1e-6)
    assert isinstance(data.train.images, ArrayImages)
