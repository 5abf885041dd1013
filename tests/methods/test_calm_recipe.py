"""CALM from settings to a registered model with explanations, on a few dozen scenes; and the evaluation of maps."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jobs.config import compose_job
from tenfold.bundle import check_probe, load_bundle
from tenfold.catalog import load_predictor
from tenfold.config import ConfigError
from tenfold.data.images import ArrayImages
from tenfold.data.localisation import ArrayMasks, CueTruth, LocalisationData, LocalisationSplit
from tenfold.engine.fit import Clock
from tenfold.engine.run import Interrupted, Outcome, PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.methods.calm import cue_evaluation, recipe, sources
from tenfold.methods.calm import data as calm_data
from tenfold.methods.calm.attribution import MODES, attribution_map, counterfactual_map
from tenfold.methods.calm.cues import cue_mask, differing_parts, merge_parts
from tenfold.methods.calm.evaluation import measure_maps, usable_measures
from tenfold.methods.calm.figures import (
    figure_boxes,
    figure_maps,
    figure_pixel_precision,
    figure_precision_recall,
    figure_remove_and_classify,
)
from tenfold.methods.calm.map_metrics import Measured, mass_in_cue
from tenfold.methods.calm.network import TrainedClassifier, calm_classifier, calm_head
from tenfold.methods.calm.predictor import CalmPredictor
from tenfold.methods.calm.settings import Config
from tenfold.metrics.localisation.boxes import max_box_accuracy
from tenfold.metrics.localisation.erasure import random_erase_mask, topk_erase_mask
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map, score_thresholds
from tenfold.metrics.localisation.pixel_ap import PixelAveragePrecision
from tenfold.models.image_classifier import ImageClassifier, ModelConfig

SIZE, CLASSES = 16, ("a", "b", "c")
GROUPS = {0: (0, 1), 1: (0, 1), 2: (2,)}
TINY = (
    "method=calm", f"method.image_size={SIZE}", "method.baselines=[input_gradient]", "method.baseline_pictures=4",
    "method.interval=0.01", "scale=local", "model.pretrained=false", "run.num_epochs=2", "run.batch_size=16",
)  # fmt: skip


class Drawer:
    """A recorder that keeps the figures."""

    run_id = "none"

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: Path, folder: str = "") -> None: ...
    def log_figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure


@dataclass(frozen=True)
class Trained:
    """One training and its figures."""

    job: JobConfig
    outcome: Outcome
    figures: dict[str, Figure]


@pytest.fixture(scope="module", autouse=True)
def scenes() -> Iterator[None]:
    """Replace the scenes that the recipe loads by a few images in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calm_data, "load_localisation", lambda data, preprocessing, train_size: make_data())
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_in(tmp_path_factory.mktemp("calm"), job())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[PlainRun]:
    run = PlainRun(folder=tmp_path / "plain", progress=False)
    yield run
    run.close()


def job(*overrides: str) -> JobConfig:
    return compose_job([*TINY, *overrides])


def trained_in(folder: Path, of_job: JobConfig) -> Trained:
    drawer = Drawer()
    run = PlainRun(folder=folder / "run", shared=folder, recorder=drawer, progress=False)
    try:
        return Trained(of_job, recipe.train(of_job, run), drawer.figures)
    finally:
        run.close()


def settings(**changes: Any) -> Config:
    small = {"image_size": SIZE, "crop_from": None, "interval": 0.01, "erase_to": "picture_mean"}
    return Config(**{**small, **changes})


def network(config: Config, seed: int = 0) -> ImageClassifier:
    """Return an untrained network with sharper maps than those of a new head."""
    torch.manual_seed(seed)
    model = calm_classifier(config, ModelConfig(), len(CLASSES), config.image_size)
    with torch.no_grad():
        for parameter in calm_head(model).parameters():
            parameter.mul_(5)
    return model.eval()


def make_split(num: int = 7, *, seed: int = 0, boxes: bool = True, masks: bool = True) -> LocalisationSplit:
    draw = np.random.default_rng(seed)
    truth = np.zeros((num, SIZE, SIZE), dtype=np.uint8)
    corners = draw.integers(0, SIZE - 6, (num, 2))
    for mask, (x, y) in zip(truth, corners, strict=True):
        mask[y : y + 5, x : x + 5] = 1
        mask[0, 0] = 255
    spans = tuple(np.array([[x, y, x + 4, y + 4]], dtype=np.int64) for x, y in corners)
    return LocalisationSplit(
        images=ArrayImages(draw.integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8)),
        labels=draw.permutation(np.arange(num) % len(CLASSES)),
        boxes=spans if boxes else None,
        masks=truth if masks else None,
    )


def make_data() -> LocalisationData:
    return LocalisationData(
        name="handwriting",
        classes=CLASSES,
        train=make_split(40, seed=1, boxes=False, masks=False),
        val=make_split(20, seed=2),
        test=make_split(20, seed=3),
        image_size=SIZE,
        fingerprint="0",
        superclasses=GROUPS,
        cues=make_cues(20),
    )


# -- settings


def test_the_defaults_are_those_of_the_released_code():
    config = Config()
    assert (config.mode, config.optimizer, config.learning_rate, config.head_multiplier) == ("em", "sgd", 0.01, 10)
    assert (config.weight_decay, config.schedule, config.decay_every_epochs) == (1e-4, "step", 30)
    assert (config.image_size, config.crop_from, config.fractions) == (224, 256, (0.1, 0.3, 0.5, 0.7, 0.9))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("jointll", ("clipping", "log"))),
        ({"mode": "ml", "attribution": "saliency"}, ("saliency", ("clipping", "log"))),
        ({"mode": "cam"}, ("vanilla", ("minmax", "even"))),
        ({"normalization": "max", "thresholds": "even"}, ("jointll", ("max", "even"))),
    ],
)
def test_what_is_not_chosen_follows_the_mode(changes, expected):
    config = Config(**changes)
    assert (config.map_mode, config.pixel_precision) == expected


@pytest.mark.parametrize("data", ["cub_localisation", "imagenet_localisation", "openimages_localisation"])
def test_photographs_are_seen_by_the_published_network(data):
    of_job = compose_job(["method=calm", f"data={data}", "data.root=/data"])
    model, run = of_job.model, of_job.run
    assert (model.name, model.pretrained, model.output_stride) == ("torchvision:resnet50", True, 16)
    assert (run.num_epochs, run.batch_size) == (40, 64)
    assert of_job.method == Config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"head_multiplier": float("inf")}, "head_multiplier must be positive and finite"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"crop_from": 200}, "crop_from must be at least image_size = 224"),
        ({"max_shift": 224}, r"max_shift must lie in \[0, image_size = 224\)"),
        ({"fractions": (0.5, 0.1)}, r"fractions must ascend within \(0, 1\)"),
        ({"fractions": (1.0,)}, r"fractions must ascend within \(0, 1\)"),
        ({"iou_thresholds": ()}, r"iou_thresholds must ascend within \(0, 1\]"),
        ({"interval": 0}, r"interval must lie in \(0, 1\)"),
        ({"holdout_fraction": 1}, r"holdout_fraction must lie in \(0, 1\)"),
        ({"decay_factor": 0}, r"decay_factor must lie in \(0, 1\]"),
        ({"decay_every_epochs": 0}, "decay_every_epochs must be at least 1"),
        ({"summary_pictures": 0}, "summary_pictures must be at least 1, or null"),
        ({"baseline_pictures": -1}, "baseline_pictures must be at least 0"),
        ({"measures": ("mass", "mass")}, "measures must be unique"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_all_offences_of_a_command_line_are_named():
    with pytest.raises(ConfigError) as error:
        compose_job(["method=calm", "method.mode=map", "method.measures=[heat]", "method.prior=exp"])
    for key in ("method.mode", "method.measures.0", "method.prior"):
        assert key in str(error.value)


def test_attention_that_is_not_trained_explains_nothing():
    with pytest.raises(ValueError, match="attribution must be a vanilla mode for mode cam"):
        Config(mode="cam", attribution="jointll")


def test_the_rate_falls_when_the_thirtieth_epoch_begins():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = recipe._schedule(Config(), optimizer, 120, steps_per_epoch=2)
    rates = []
    for _ in range(120):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:58] == [1.0] * 58  # 29 epochs of two steps
    assert rates[58:118] == pytest.approx([0.1] * 60)
    assert rates[118:] == pytest.approx([0.01] * 2)


# -- images


def test_every_image_is_cut_and_mirrored_on_its_own():
    numbered = torch.arange(40 * 6 * 6, dtype=torch.int32).view(40, 6, 6)
    images = torch.stack([numbered % 251, numbered // 251, numbered * 0], -1).byte()  # a pixel's name in two channels
    torch.manual_seed(0)
    cut = calm_data.augment(images, 4, mirror=True).int()
    names = cut[..., 0] + 251 * cut[..., 1] - 36 * torch.arange(40)[:, None, None]
    down, across = names // 6, names % 6
    assert (down.diff(dim=1) == 1).all()
    steps = across.diff(dim=2)
    assert (steps.abs() == 1).all()
    assert (steps == steps[:, :1, :1]).all()
    assert 5 < int((steps[:, 0, 0] < 0).sum()) < 35
    assert set(down[:, 0, 0].tolist()) == {0, 1, 2}


def test_moved_images_go_on_as_if_reflected():
    row = torch.arange(5, dtype=torch.uint8)
    images = row.view(1, 1, 5, 1).expand(60, 5, 5, 3)
    torch.manual_seed(0)
    moved = {tuple(each.tolist()) for each in calm_data.augment(images, 5, mirror=False, shift=2)[:, 0, :, 0]}
    assert moved == {(2, 1, 0, 1, 2), (1, 0, 1, 2, 3), (0, 1, 2, 3, 4), (1, 2, 3, 4, 3), (2, 3, 4, 3, 2)}


def test_images_without_augmentation_are_left_alone():
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    before = torch.get_rng_state()
    assert calm_data.augment(images, 4, mirror=False) is images
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="training images must be at least 5 pixels"):
        calm_data.augment(images, 5, mirror=False)


def test_a_share_of_every_class_is_held_out():
    labels = np.repeat(np.arange(3), (20, 10, 1))
    kept, held = calm_data.holdout(labels, 0.2)
    assert np.bincount(labels[held], minlength=3).tolist() == [4, 2, 0]
    assert sorted([*kept, *held]) == list(range(31))
    with pytest.raises(ValueError, match="must leave an image to validate on"):
        calm_data.holdout(labels, 0.01)


# -- one training, and what it leaves


def test_the_bundle_answers_as_the_training_did(trained, run):
    outcome = trained.outcome
    bundle = load_bundle(outcome.bundle)
    predictor = load_predictor(bundle)
    assert check_probe(bundle, predictor) == 0.0
    assert outcome.metric == "val/accuracy"
    expected = {"val/accuracy", "val/mass_in_cue", "test/pxap_clipping_log", "test/pxap_minmax_even"}
    assert {*expected, "test/max_box_acc_50", "test/max_box_acc_v2"} <= set(outcome.metrics)
    again = recipe.evaluate(predictor, trained.job.data, run)
    for name, value in outcome.metrics.items():
        assert again[name] == pytest.approx(value, abs=1e-3), name
    further = ("jointll", "saliency", "jointll-superclass", "input_gradient")
    assert {f"test/{name}/mass_in_cue" for name in further} <= set(again)
    assert "cues/pxap_clipping_log" in again
    assert isinstance(predictor, CalmPredictor)
    assert predictor.superclasses == GROUPS


def test_the_figures_are_drawn(trained):
    expected = {"curves", "remove_and_classify", "pixel_precision", "precision_recall", "boxes", "maps"}
    assert set(trained.figures) == {f"{name}.png" for name in expected}


def test_a_training_stopped_in_mid_epoch_ends_where_it_would_have(tmp_path):
    of_job = job("run.num_epochs=3", "method.max_shift=4", "method.measures=[]", "method.mode=ml")

    class Stopped(PlainRun):
        asked = 0

        def stop_requested(self) -> bool:
            self.asked += 1
            return self.asked == 4

    def tensors(folder: Path, kind: type[PlainRun]) -> dict[str, Tensor]:
        run = kind(folder=folder / "run", shared=folder, progress=False)
        try:
            return load_bundle(recipe.train(of_job, run).bundle).tensors()
        finally:
            run.close()

    whole = tensors(tmp_path / "whole", PlainRun)
    with pytest.raises(Interrupted):
        tensors(tmp_path / "cut", Stopped)
    resumed = tensors(tmp_path / "cut", PlainRun)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_cam_is_trained_without_its_attention_and_compared(trained, tmp_path):
    of_job = job("method.mode=cam", "method.keep=best", "method.optimizer=sgd", "method.schedule=constant")
    outcome = trained_in(tmp_path, of_job).outcome
    assert not load_bundle(outcome.bundle).tensors()["head.calm.attention.bias"].any()
    assert max(row["val/accuracy"] for row in outcome.history) == outcome.metrics["val/accuracy"]
    calm, cam = (load_predictor(each.bundle) for each in (trained.outcome, outcome))
    drawer = Drawer()
    run = PlainRun(folder=tmp_path / "run", recorder=drawer, progress=False)
    try:
        found = recipe.compare(calm, cam, of_job.data, run, ("calm/1", "calm/2"))
        with pytest.raises(ValueError, match=r"calm/2 must be a model of calm, got object"):
            recipe.compare(calm, object(), of_job.data, run, ("calm/1", "calm/2"))
    finally:
        run.close()
    for key, metrics in (("model", trained.outcome.metrics), ("reference", outcome.metrics)):
        for name in ("accuracy", "mass_in_cue", "pxap_minmax_even", "max_box_acc_50"):
            assert found[f"{key}/{name}"] == pytest.approx(metrics[f"test/{name}"], abs=1e-3)
    assert "against_calm-1_calm-2_handwriting_maps.png" in drawer.figures


def test_plain_classification_data_train_without_truth(run, tmp_path):
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        for part, num in (("train", 10), ("test", 3)):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for number in range(num):
                noise = draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "set" / part / name / f"{number}.png")
    words = [*TINY, "data=folders", f"data.root={tmp_path / 'set'}", "method.crop_from=20"]
    with pytest.warns(UserWarning, match="no validation split: 2 of its training images"):
        outcome = recipe.train(compose_job(words), run)
    assert {"val/accuracy", "test/accuracy"} <= set(outcome.metrics)
    assert not [name for name in outcome.metrics if "pxap" in name or "box" in name]
    with (
        pytest.warns(UserWarning, match="no validation split"),
        pytest.raises(ValueError, match="measures must not have boxes, as the val split has no boxes"),
    ):
        recipe.train(compose_job([*words, "method.measures=[boxes]"]), run)


@pytest.mark.parametrize("mode", ["em", "ml", "cam"])
def test_every_trained_weight_takes_part_in_a_distributed_step(mode, tmp_path):
    """A weight without a gradient would block the second step under DDP."""
    config = settings(mode=mode)
    batch = calm_data.read_batch(make_split(6), np.arange(6))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(TrainedClassifier(network(config).train()))
        loss = recipe.training_loss(config, mirrorable=True)
        for step in range(2):
            loss(model, batch, Clock(epoch=1, num_epochs=1, step=step, total_steps=2)).backward()
    finally:
        torch.distributed.destroy_process_group()
    trained = [name for name, weight in model.module.named_parameters() if weight.requires_grad]
    assert trained == [name for name, weight in model.module.named_parameters() if weight.grad is not None]
    assert any("attention" in name for name in trained) == (mode != "cam")


# -- explanations


@pytest.mark.parametrize("mode", ["em", "ml", "cam"])
def test_an_explanation_comes_with_the_answer_in_one_pass(mode):
    config = settings(mode=mode)
    predictor = CalmPredictor(network(config), config, CLASSES, "cpu")
    images, labels = make_split(5).images.read(np.arange(5)), torch.tensor([0, 2, 1, 1, 0])
    answer = predictor(images)
    passes = []
    predictor.model.backbone.register_forward_hook(lambda *_: passes.append(1))
    explained = predictor.explain(images, labels)
    assert passes == [1]
    for name in ("logits", "probs"):
        assert torch.equal(explained[name], answer[name])
    assert torch.equal(explained["explained"], labels)
    maps = explained["attributions"]
    assert (maps.dtype, maps.shape, maps.device.type) == (torch.float32, (5, SIZE, SIZE), "cpu")
    assert torch.equal(maps.amax((1, 2)), torch.ones(5))
    assert (maps.amin((1, 2)) == 0).all() == (mode == "cam")  # the least probability is not 0
    f, a = calm_head(predictor.model)(predictor.model.feature_map(images))
    raw = attribution_map(f, a, labels, config.map_mode).detach()
    expected = normalize_score_map(resize_score_map(raw, SIZE), "minmax" if mode == "cam" else "max")
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    own = predictor.explain(images)
    assert torch.equal(own["explained"], answer["logits"].argmax(1))


@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.startswith("vanilla")])
def test_another_map_may_be_chosen(mode):
    config = settings(attribution=mode)
    maps = CalmPredictor(network(config), config, CLASSES, "cpu", GROUPS).explain(
        make_split(3).images.read([0, 1, 2]), torch.tensor([0, 1, 2])
    )["attributions"]
    assert ((maps >= 0) & (maps <= 1)).all()
    assert torch.equal(maps.amax((1, 2)), torch.ones(3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"labels must lie in 0\.\.2, got 0\.\.3"),
        (torch.tensor([0]), r"labels must be int64 \(2,\)"),
        (torch.tensor([0.0, 1.0]), "labels must be int64"),
    ],
)
def test_what_is_no_class_cannot_be_explained(labels, message):
    config = settings()
    predictor = CalmPredictor(network(config), config, CLASSES, "cpu")
    with pytest.raises(ValueError, match=message):
        predictor.explain(torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8), labels)


def test_a_superclass_map_needs_superclasses():
    config = settings(attribution="jointll-superclass")
    with pytest.raises(ValueError, match="attribution jointll-superclass needs data with superclasses"):
        CalmPredictor(network(config), config, CLASSES, "cpu")


# -- measuring maps


@pytest.mark.parametrize("mode", ["em", "cam"])
def test_maps_are_measured_as_one_by_one(mode, run):
    config, split = settings(mode=mode), make_split()
    model = network(config)
    measured = measure_maps(run, model, split, sources.own_source(model, config, None), config)[config.map_mode]
    images, labels = split.images.read(np.arange(len(split))), torch.from_numpy(split.labels)
    assert split.masks is not None
    assert split.boxes is not None
    still_right = np.zeros((2, len(config.fractions)), dtype=int)
    pixels_of = PixelAveragePrecision(score_thresholds(config.interval, config.pixel_precision[1]))
    shared = PixelAveragePrecision(score_thresholds(config.interval, "even"))
    mass = []
    with torch.no_grad():
        f, a = calm_head(model)(model.feature_map(images))
    maps = resize_score_map(attribution_map(f, a, labels, config.map_mode), SIZE)
    for row, one in enumerate(maps):
        pixels = model.normalise(images[row : row + 1])
        truth = torch.from_numpy(np.asarray(split.masks[row]))
        pixels_of.update(normalize_score_map(one, config.pixel_precision[0]), truth)
        shared.update(normalize_score_map(one, "minmax"), truth)
        positive = one.clamp(min=0) * (truth != 255)
        mass.append(float(positive[truth == 1].sum() / positive.sum()))
        seed = int(np.random.SeedSequence((run.seed, row)).generate_state(1)[0])
        for column, fraction in enumerate(config.fractions):
            random = random_erase_mask((1, 1, SIZE, SIZE), fraction, torch.Generator().manual_seed(seed))
            for which, mask in enumerate((topk_erase_mask(one[None, None], fraction), random)):
                erased = torch.where(mask > 0, pixels, pixels.mean((2, 3), keepdim=True))
                with torch.no_grad():
                    answer = model.head(model.backbone(erased)).argmax(1)
                still_right[which, column] += int(answer == labels[row])
    expected = {
        f"{100 * fraction:g}": top / random
        for fraction, top, random in zip(config.fractions, *still_right, strict=True)
        if random
    }
    assert measured.ratios == pytest.approx(expected)
    assert len(expected) > 2
    precision = measured.pixel_precision
    assert precision["_".join(config.pixel_precision)] == pytest.approx(pixels_of.compute())
    assert precision["minmax_even"] == pytest.approx(shared.compute())
    assert measured.mass == pytest.approx(np.mean(mass), rel=1e-4)
    stretched = normalize_score_map(maps, "minmax")
    thresholds = score_thresholds(config.interval)
    single = max_box_accuracy(stretched, split.boxes, thresholds, config.iou_thresholds)
    multi = max_box_accuracy(stretched, split.boxes, thresholds, config.iou_thresholds, multi=True)
    for level in config.iou_thresholds:
        assert measured.boxes[f"{100 * level:g}"] == pytest.approx(single[level])
        assert measured.boxes[f"v2_{100 * level:g}"] == pytest.approx(multi[level])
    assert measured.boxes["v2"] == pytest.approx(multi["mean"])


class OneOfTwo(PlainRun):
    """One of two workers, which keeps the values that it would reduce with the other."""

    world_size = 2

    def __init__(self, rank: int, **options: Any) -> None:
        super().__init__(**options)
        self.rank = rank
        self.parts: list[Tensor] = []

    def all_reduce(self, value: Tensor, op: str = "sum") -> Tensor:
        self.parts.append(value.clone())
        return value


def test_two_workers_count_every_image_once(tmp_path):
    config, split = settings(erase_to="zero", fractions=(0.1, 0.2)), make_split(7)
    model = network(config)
    workers = [OneOfTwo(rank, folder=tmp_path / f"{rank}", progress=False) for rank in (0, 1)]
    alone = OneOfTwo(0, folder=tmp_path / "alone", progress=False)
    alone.world_size = 1
    for each in (*workers, alone):
        measure_maps(each, model, split, sources.own_source(model, config, None), config)
        each.close()
    assert len(alone.parts) > 4
    for first, second, whole in zip(workers[0].parts, workers[1].parts, alone.parts, strict=True):
        torch.testing.assert_close(first + second, whole)


def test_only_what_there_is_truth_for_is_measured(run):
    everything = ("remove_and_classify", "pixels", "mass", "boxes")
    assert usable_measures(settings(), make_split()) == everything
    assert usable_measures(settings(), make_split(boxes=False)) == everything[:3]
    assert usable_measures(settings(), make_split(boxes=False, masks=False)) == everything[:1]
    assert usable_measures(settings(measures=("mass", "cues")), make_split()) == ("mass",)
    for name, lack in (("mass", "masks"), ("pixels", "masks"), ("boxes", "boxes")):
        with pytest.raises(ValueError, match=f"measures must not have {name}, as the test split has no {lack}"):
            usable_measures(settings(measures=(name,)), make_split(boxes=False, masks=False))


def test_labels_that_the_model_does_not_know_are_refused(run):
    config = settings()
    model = network(config)
    strange = dataclasses.replace(make_split(2), labels=np.array([0, 7]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 0\.\.7"):
        measure_maps(run, model, strange, sources.own_source(model, config, None), config)


def test_mass_is_that_of_the_positive_part_on_pixels_that_count():
    maps = torch.tensor([[[3.0, 1.0], [-5.0, 4.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    masks = torch.tensor([[[1, 0], [0, 255]], [[1, 1], [0, 0]]], dtype=torch.uint8)
    assert mass_in_cue(maps, masks).tolist() == [0.75, 0.0]


@pytest.mark.parametrize("name", ["input_gradient", "integrated_gradient", "smooth_gradient", "variance_gradient"])
def test_gradient_sources_explain_the_logit_of_the_class(name):
    config = settings()
    model, split = network(config), make_split(2)
    images, labels = split.images.read([0, 1]), torch.tensor([2, 0])
    source = sources.gradient_source(model, name)
    seen = sources.view(model, images, labels, seed=3)
    maps = source(seen)
    assert maps.shape == (2, SIZE, SIZE)
    assert torch.equal(maps, source(seen))  # the seed is the view's
    if name == "input_gradient":
        pixels = model.normalise(images).requires_grad_()
        model.head(model.backbone(pixels)).gather(1, labels[:, None]).sum().backward()
        torch.testing.assert_close(maps, pixels.grad.abs().amax(1))


def test_further_maps_of_a_head():
    calm, cam = settings(), settings(mode="cam")
    assert list(sources.further_sources(network(calm), calm, GROUPS)) == ["saliency", "jointll-superclass"]
    assert list(sources.further_sources(network(cam), cam, GROUPS)) == ["vanilla-superclass"]
    assert list(sources.further_sources(network(cam), cam, None)) == []


# -- what tells classes apart


NAMES = ("has_bill_shape::a", "has_wing_color::b", "has_belly_color::c", "has_tail_shape::d", "has_size::e")
PERCENT = np.array([[90, 10, 10, 90, 0], [10, 10, 10, 90, 90], [10, 90, 90, 10, 50.0]])


def make_cues(num: int) -> CueTruth:
    draw = np.random.default_rng(1)
    ids = [np.array([2, 3, 9, 14]) if row else np.array([], dtype=np.int64) for row in range(num)]
    return CueTruth(
        class_attribute_percent=PERCENT,
        attribute_names=NAMES,
        part_ids=tuple(ids),
        part_xy=tuple(draw.uniform(0, 30, (len(each), 2)) for each in ids),
        image_wh=np.full((num, 2), (30, 40)),
        foregrounds=ArrayMasks(draw.integers(0, 2, (num, SIZE, SIZE), dtype=np.uint8)),
    )


def test_pairs_differ_in_the_parts_that_the_functions_say():
    draw = np.random.default_rng(0)
    percent = draw.uniform(0, 100, (6, len(NAMES)))
    found = cue_evaluation.differing_pairs(percent, NAMES)
    for first in range(6):
        for second in range(first + 1, 6):
            parts = differing_parts(percent, NAMES, first, second)
            assert found.get((first, second), set()) == (parts if 1 <= len(parts) <= 3 else set())
    assert len(found) > 5


@pytest.mark.parametrize("mode", ["em", "cam"])
def test_cues_are_localised_as_pair_by_pair(mode, run):
    config, split, cues = settings(mode=mode), make_split(9), make_cues(9)
    model = network(config)
    found = cue_evaluation.measure_cues(run, model, split, cues, config)
    images = split.images.read(np.arange(9))
    with torch.no_grad():
        f, a = calm_head(model)(model.feature_map(images))
    by_count: dict[int, list[float]] = {1: [], 2: [], 3: []}
    kind, spacing = config.pixel_precision
    for first, second in ((0, 1), (0, 2), (1, 2)):
        parts = differing_parts(PERCENT, NAMES, first, second)
        metric = PixelAveragePrecision(score_thresholds(config.interval, spacing))
        for row in np.flatnonzero(np.isin(split.labels, (first, second))):
            if not len(cues.part_ids[row]):
                continue
            xy, ids = merge_parts(cues.part_ids[row], cues.part_xy[row], cues.image_wh[row], SIZE)
            truth = cue_mask(xy, ids, parts, cues.foregrounds.read([row])[0])
            if truth is None:
                continue
            of = [torch.tensor([label]) for label in (first, second)]
            way: Any = "vanilla" if mode == "cam" else "jointll"
            raw = counterfactual_map(f[row : row + 1], a[row : row + 1], *of, way).abs()
            metric.update(normalize_score_map(resize_score_map(raw, SIZE), kind)[0], torch.from_numpy(truth))
        if len(parts) in by_count:
            by_count[len(parts)].append(metric.compute())
    assert {count: len(values) for count, values in by_count.items()} == {1: 1, 2: 0, 3: 1}
    name = f"{kind}_{spacing}"
    for count, values in by_count.items():
        assert found[f"cues/pairs_{count}"] == len(values)
        if values:
            assert found[f"cues/pxap_{count}_{name}"] == pytest.approx(np.mean(values), abs=0.05)
    assert found[f"cues/pxap_{name}"] == pytest.approx(
        np.mean([value for each in by_count.values() for value in each]), abs=1e-3
    )
    assert "cues/pxap_minmax_even" in found


# -- figures


def test_figures_show_what_was_measured(run):
    config, split = settings(), make_split()
    model = network(config)
    every = sources.own_source(model, config, None) | sources.further_sources(model, config, None)
    measured = measure_maps(run, model, split, every, config)
    read_back = {name: Measured(**json.loads(json.dumps(dataclasses.asdict(each)))) for name, each in measured.items()}
    assert read_back == measured
    (panel,) = figure_remove_and_classify(measured).axes
    assert len(panel.lines) == len(every)
    assert panel.lines[0].get_xydata()[0].tolist() == [0, 1]
    assert len(figure_precision_recall(measured).axes) == 2  # its own thresholds, and the shared ones
    for draw in (figure_pixel_precision, figure_boxes):
        (panel,) = draw(measured).axes
        assert len(panel.patches) >= 2 * len(every)
    predictor = CalmPredictor(model, config, CLASSES, "cpu")
    for part in (split, make_split(masks=False), make_split(masks=False, boxes=False)):
        assert len(figure_maps({"em": predictor}, part, 3).axes) == 3 * 3
