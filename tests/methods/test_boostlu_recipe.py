"""BoostLU from settings to a registered model and to a comparison of explanations, on a few dozen scenes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from safetensors.torch import load_file

from jobs import evaluate as evaluate_job
from jobs.cli import as_reference
from jobs.config import compose_container, compose_job
from tenfold.bundle import check_probe, load_bundle
from tenfold.catalog import load_predictor
from tenfold.config import ConfigError
from tenfold.data.catalog import load_multilabel
from tenfold.engine.run import Interrupted, PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.methods.boostlu import recipe
from tenfold.methods.boostlu.predictor import boosted_classifier
from tenfold.methods.large_loss import map_evaluation
from tenfold.methods.large_loss.figures import NUM_EXAMPLES
from tenfold.methods.large_loss.predictor import MultiLabelPredictor, plain_classifier
from tenfold.models.activation_maps import cam_logits
from tenfold.models.image_classifier import ModelConfig
from tenfold.training import TrainResult, train
from tests.methods.partial_labels import TINY, Place, open_place

SCHEMES = ("LL-Ct", "LL-Cp", "an", "an_ls", "asl", "role", "em", "em_apl")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with open_place(tmp_path_factory.mktemp("boostlu"), "boostlu", "method.delta_rel_percent=5") as place:
        yield place


@pytest.fixture(scope="module")
def job(place: Place) -> JobConfig:
    return place.job("method.boost=3")


@pytest.fixture(scope="module")
def trained(job: JobConfig) -> TrainResult:
    return train(job, progress=False)


@pytest.fixture(scope="module")
def full(place: Place) -> TrainResult:
    """Plain model with full labels, the reference of the comparison."""
    return train(place.job("method.scheme=full", method="large_loss"), progress=False)


@pytest.fixture
def predictor(trained: TrainResult) -> MultiLabelPredictor:
    return loaded(trained)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[PlainRun]:
    run = PlainRun(folder=tmp_path / "plain", progress=False)
    yield run
    run.close()


@pytest.fixture
def images(job: JobConfig) -> torch.Tensor:
    return load_multilabel(job.data).test.images.read(np.arange(5))


def loaded(result: TrainResult) -> MultiLabelPredictor:
    found = load_predictor(result.bundle)
    assert isinstance(found, MultiLabelPredictor)
    return found


def with_both_signs(predictor: Any, images: torch.Tensor) -> MultiLabelPredictor:
    """Shift the bias so that half of the map scores are positive: after a few steps all are below 0."""
    predictor.model.head.bias.data -= predictor.class_maps(images, boosted=False).median()
    return predictor


def fresh(boost: float, mode: str, build: Any = boosted_classifier) -> MultiLabelPredictor:
    """Return an untrained predictor, with the same weights for every factor and mode."""
    torch.manual_seed(0)
    model = build({"boost": boost, "boost_mode": mode}, ModelConfig(), 10, 64)
    return MultiLabelPredictor(model, tuple("0123456789"), "cpu")


# -- settings


def test_the_defaults_are_the_methods_own():
    config = compose_job(["method=boostlu"]).method
    assert (config.boost, config.boost_mode, config.scheme, config.stop_after_drop) == (5.0, "both", "LL-R", None)


@pytest.mark.parametrize("data", ["voc", "coco", "nuswide", "cub"])
def test_photographs_have_the_published_settings(data):
    job = compose_job(["method=boostlu", f"data={data}", "data.root=/data"])
    assert (job.method.learning_rate, job.method.head_multiplier, job.method.weight_decay) == (1e-5, 10, 0)
    assert (job.method.delta_rel_percent, job.method.boost, job.method.stop_after_drop) == (0.5, 5, None)
    assert (job.run.num_epochs, job.run.batch_size) == (10, 16)
    assert (job.model.name, job.model.pretrained) == ("torchvision:resnet50", True)


def test_openimages_is_seen_by_the_deeper_network():
    job = compose_job(["method=boostlu", "data=openimages", "data.root=/data"])
    assert job.model.name == "torchvision:resnet101"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.boost=0", r"method\.boost must be positive and finite, got 0"),
        ("method.boost=.inf", "method.boost"),
        ("method.boost_mode=never", r"method\.boost_mode.*'both', 'train', 'inference' or 'none'"),
        ("method.delta_rel_percent=100", r"delta_rel_percent must lie in \[0, 100\)"),
    ],
)
def test_settings_out_of_range_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_job(["method=boostlu", override])


# -- one training, and what it leaves


def test_the_bundle_answers_as_the_training_did(trained, job, run):
    bundle = load_bundle(trained.bundle)
    predictor = load_predictor(bundle)
    assert check_probe(bundle, predictor) == 0.0
    assert recipe.evaluate(predictor, job.data, run) == pytest.approx(trained.metrics, abs=1e-3)
    assert trained.registered is not None
    assert (trained.registered.name, trained.registered.alias) == ("boostlu", "champion")


def test_factor_and_mode_travel_with_the_bundle(trained, images):
    """The logits are means of the maps boosted with the factor of the training, which the bundle must keep."""
    predictor = with_both_signs(loaded(trained), images)
    raw = predictor.class_maps(images, boosted=False)
    boosted = torch.where(raw > 0, 3 * raw, raw)
    torch.testing.assert_close(predictor.class_maps(images), boosted)
    torch.testing.assert_close(predictor(images)["logits"], cam_logits(boosted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mode", "boosts"), [("both", True), ("inference", True), ("train", False), ("none", False)])
def test_the_mode_says_whether_answers_are_boosted(images, mode, boosts):
    plain, found = fresh(5.0, "none")(images)["logits"], fresh(5.0, mode)(images)["logits"]
    assert torch.equal(plain, found) != boosts
    assert bool((found >= plain - 1e-5).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_loss_trains_the_boosted_head(place, run, scheme):
    job = place.job(f"method.scheme={scheme}", "method.apl_warmup_epochs=1", "method.observatory=off")
    outcome = recipe.train(job, run)
    assert 0 < outcome.metrics["test/mAP"] <= 100
    assert all(np.isfinite(row["train/loss"]) for row in outcome.history)


def test_role_after_linear_initialisation(place, run):
    """The linear phase trains a plain head on pooled features; the boosted head takes its weights."""
    job = place.job("method.scheme=role", "model.init=linear", "model.linear_epochs=2", "method.learning_rate=1e-12")
    bundle = load_bundle(recipe.train(job, run).bundle)
    (file,) = Path(run.shared.url).rglob("head.safetensors")
    linear = load_file(file)
    for name in ("weight", "bias"):  # a rate of next to nothing left them where the first phase had brought them
        torch.testing.assert_close(bundle.tensors()[f"head.{name}"], linear[name], rtol=0, atol=1e-6)
    assert check_probe(bundle, load_predictor(bundle)) == 0.0


def test_averaged_weights_keep_factor_and_mode(place, run, images):
    job = place.job("run.ema_decay=0.9", "method.boost=7", "method.boost_mode=inference")
    predictor = with_both_signs(load_predictor(recipe.train(job, run).bundle), images)
    raw = predictor.class_maps(images, boosted=False)
    torch.testing.assert_close(predictor.class_maps(images), torch.where(raw > 0, 7 * raw, raw))


def test_a_stopped_training_ends_where_it_would_have(place, tmp_path):
    job = place.job("run.num_epochs=3", "method.scheme=LL-Cp")

    def tensors(storage: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        stop = threading.Event()

        def on_epoch(metrics: dict[str, float], epoch: int) -> None:
            if epoch == stop_after:
                stop.set()

        run = PlainRun(folder=storage / "run", shared=storage, stop=stop, on_epoch=on_epoch, progress=False)
        try:
            return load_bundle(recipe.train(job, run).bundle).tensors()
        finally:
            run.close()

    whole = tensors(tmp_path / "whole")
    with pytest.raises(Interrupted):
        tensors(tmp_path / "cut", stop_after=2)
    resumed = tensors(tmp_path / "cut")
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_a_network_without_a_feature_map_is_refused_before_training(place, run):
    job = place.job("model.name=timm:vit_tiny_patch16_224", "method.observatory=off")
    with pytest.raises(ValueError, match=r"feature map .*choose a convolutional network"):
        recipe.train(job, run)
    assert not (Path(run.storage.url) / "checkpoints").exists()


# -- explanations


@pytest.mark.parametrize("build", [boosted_classifier, plain_classifier])
def test_an_explanation_comes_with_the_answer(images, build):
    predictor = fresh(5.0, "both", build)
    answer, explained = predictor(images), predictor.explain(images)
    for name in ("probs", "logits"):
        assert torch.equal(answer[name], explained[name])
    assert torch.equal(explained["explained"], answer["logits"].argmax(1))
    maps = explained["attributions"]
    assert (maps.dtype, maps.shape) == (torch.float32, (5, 64, 64))
    assert torch.equal(maps.amin((1, 2)), torch.zeros(5))
    assert torch.equal(maps.amax((1, 2)), torch.ones(5))


@pytest.mark.parametrize("build", [boosted_classifier, plain_classifier])
def test_an_explanation_shows_the_map_behind_the_logit(images, build):
    predictor = fresh(5.0, "both", build)
    labels = torch.tensor([3, 1, 4, 1, 5])
    explained = predictor.explain(images, labels)
    assert torch.equal(explained["explained"], labels)
    raw = predictor.class_maps(images)[torch.arange(5), labels]
    torch.testing.assert_close(cam_logits(predictor.class_maps(images)), explained["logits"], rtol=1e-4, atol=1e-5)
    large = torch.nn.functional.interpolate(raw[None], (64, 64), mode="bilinear")[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    torch.testing.assert_close(explained["attributions"], (large - low) / (high - low), rtol=1e-4, atol=1e-4)


def test_one_pass_through_the_network_explains(images, predictor):
    calls = []
    predictor.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    predictor.explain(images)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((5,), 10), r"labels must lie in 0\.\.9"),
        (torch.full((5,), -1), r"labels must lie in 0\.\.9"),
        (torch.zeros(4, dtype=torch.int64), r"labels must be int64 \(5,\)"),
        (torch.zeros(5), r"labels must be int64 \(5,\)"),
    ],
)
def test_labels_that_are_no_class_are_refused(images, predictor, labels, message):
    with pytest.raises(ValueError, match=message):
        predictor.explain(images, labels)


# -- two models' explanations


class Shelf:
    """A recorder that keeps figures."""

    run_id = "none"

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def log_figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: Path, folder: str = "") -> None: ...


def test_a_model_agrees_with_itself(predictor, job, run):
    split = load_multilabel(job.data).test
    pairs = map_evaluation.measure(predictor, predictor, split, run)
    assert len(pairs) == split.full.size  # ten classes: no negative is left out
    assert int(pairs.positive.sum()) == int((split.full == 1).sum())
    correlation = pairs.loc[pairs.positive, "correlation"]
    np.testing.assert_allclose(correlation.dropna(), 1, atol=1e-12)
    assert correlation.notna().any()
    assert pairs.loc[~pairs.positive, ["correlation", "control"]].isna().all(axis=None)
    for column in ("top", "bottom", "prob"):
        np.testing.assert_array_equal(pairs[f"{column}_model"], pairs[f"{column}_reference"])
    # The boost raises what is above 0 and nothing else.
    np.testing.assert_array_less(pairs["top_unboosted"] - 1e-6, pairs["top_model"])
    np.testing.assert_allclose(pairs["bottom_unboosted"].clip(upper=0), pairs["bottom_model"].clip(upper=0), atol=1e-6)


def test_what_is_measured_is_what_the_maps_say(predictor, full, job, run):
    split = load_multilabel(job.data).test
    pairs = map_evaluation.measure(predictor, loaded(full), split, run)
    pair = pairs[pairs.positive].iloc[7]
    row, label = int(pair["row"]), int(pair["label"])
    image = split.images.read([row])
    maps = {"model": predictor.class_maps(image), "reference": loaded(full).class_maps(image)}
    maps = {name: each[0, label].flatten() for name, each in maps.items()}
    ranks = [pd.Series(each.numpy()).rank() for each in maps.values()]
    assert ranks[0].corr(ranks[1]) == pytest.approx(pair["correlation"], abs=1e-6)
    for name, each in maps.items():  # 5 % of 64 places are 4
        ordered = each.sort().values
        assert float(ordered[-4:].mean()) == pytest.approx(pair[f"top_{name}"], rel=1e-4)
        assert float(ordered[:4].mean()) == pytest.approx(pair[f"bottom_{name}"], rel=1e-4)
        assert float(each.mean().sigmoid()) == pytest.approx(pair[f"prob_{name}"], rel=1e-4)


def test_few_of_many_negatives_are_drawn_and_none_of_the_positives_is_lost():
    truth = np.zeros((3, 100), np.int8)
    truth[0, 5], truth[1, :90], truth[2, 7] = 1, 1, -1
    images, labels = map_evaluation._known_pairs(truth, np.random.default_rng(0))
    drawn = truth[images, labels]
    assert (drawn >= 0).all()  # what nobody looked at is left out
    for image, (positives, negatives) in enumerate([(1, 20), (90, 10), (0, 20)]):
        assert [(drawn[images == image] == value).sum() for value in (1, 0)] == [positives, negatives]


def test_a_comparison_reports_and_draws(predictor, full, job, tmp_path):
    shelf = Shelf()
    run = PlainRun(folder=tmp_path, progress=False, recorder=shelf)
    metrics = recipe.compare(predictor, loaded(full), job.data, run, ["boostlu/1", "large_loss/2"])
    assert -1 <= metrics["correlation_q25"] <= metrics["correlation_median"] <= metrics["correlation_q75"] <= 1
    assert metrics["num_positives"] + metrics["num_negatives"] == 320
    assert metrics["top_positives_model"] >= metrics["top_positives_unboosted"]
    assert metrics["top_positives_reference"] >= metrics["bottom_positives_reference"]
    stem = "explanations_boostlu-1_large_loss-2_handwriting"
    assert set(shelf.figures) == {f"{stem}.png", f"{stem}_maps.png"}
    for figure in shelf.figures.values():
        figure.canvas.draw()
    assert len(shelf.figures[f"{stem}_maps.png"].axes) == 3 * NUM_EXAMPLES


def test_a_plain_model_is_compared_too(predictor, full, job, run):
    metrics = recipe.compare(loaded(full), predictor, job.data, run)
    assert "top_positives_unboosted" not in metrics


def test_models_that_can_not_be_compared_are_refused(predictor, job, run):
    with pytest.raises(ValueError, match="reference has no class activation maps"):
        recipe.compare(predictor, object(), job.data, run)
    finer = MultiLabelPredictor(
        plain_classifier({}, ModelConfig(name="torchvision:mobilenet_v3_small"), 10, 64), predictor.classes, "cpu"
    )
    with pytest.raises(ValueError, match=r"maps must be 2x2 as the reference's, got 8x8; compare networks"):
        recipe.compare(predictor, finer, job.data, run)
    finer.classes = (*finer.classes[:-1], "eleven")
    with pytest.raises(ValueError, match="the model knows 10 classes"):
        recipe.compare(predictor, finer, job.data, run)


# -- the command


def words(place: Place, *given: str) -> list[str]:
    data = [word for word in TINY if word.startswith("data.")]
    return as_reference([*given, *data, f"scale.storage={place.folder}/runs", f"tracking_uri={place.uri}"])


def test_the_command_compares_two_registered_models(place, trained, full, capsys, job):
    given = words(place, "model=models:/boostlu/1", "against=models:/large_loss/1")
    evaluate_job.work(evaluate_job.check(compose_container("evaluate", given)))
    said = capsys.readouterr().out
    assert "models:/boostlu/1 against models:/large_loss/1 on handwriting" in said
    assert "correlation_median" in said
    client = MlflowClient(place.uri)
    record = client.get_run(trained.run_id)
    assert record.info.status == "FINISHED"
    assert "against/large_loss/1/handwriting/correlation_median" in record.data.metrics
    stem = "explanations_boostlu-1_large_loss-1_handwriting"
    figures = {Path(entry.path).name for entry in client.list_artifacts(trained.run_id, "figures")}
    assert {f"{stem}.png", f"{stem}_maps.png"} <= figures


def test_the_command_measures_one_model_where_no_other_is_named(place, trained, capsys):
    evaluate_job.work(evaluate_job.check(compose_container("evaluate", words(place, "model=models:/boostlu@champion"))))
    assert "test/mAP" in capsys.readouterr().out


def test_a_method_without_a_comparison_says_so():
    with pytest.raises(ValueError, match="method 'datadream' can't compare two models; leave out"):
        evaluate_job.check_comparable("datadream")
