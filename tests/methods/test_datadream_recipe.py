"""DataDream from shots to a bundle with a generator and a CLIP of random weights: seconds, on three classes."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from tenfold.bundle import check_probe, load_bundle, load_probes
from tenfold.config import job_from_dict
from tenfold.data.catalog import load_classification
from tenfold.engine.run import Interrupted, Outcome, PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.methods.datadream import adapt as adapting
from tenfold.methods.datadream import generate as generating
from tenfold.methods.datadream import recipe
from tenfold.methods.datadream.adapt import Adapters, adapt
from tenfold.methods.datadream.augment import lightly, photo_transform
from tenfold.methods.datadream.classify import ClassifierLoss
from tenfold.methods.datadream.comparators import captioner
from tenfold.methods.datadream.few_shot import FewShotData, draw_few_shot, square
from tenfold.methods.datadream.generate import generate, image_seed
from tenfold.methods.datadream.predictor import DataDreamPredictor, load
from tenfold.methods.datadream.source import SeededSource
from tenfold.models.clip import ClipConfig, load_clip
from tenfold.models.diffusion_lora import ADAPTER_FILE, load_adapter
from tenfold.pretraining.tiny.diffusion_architecture import build_pipeline
from tenfold.types import Preprocessing

CLASSES = ("blue", "green", "red")
NUM_TRAIN, NUM_SHOTS = 4, 2
CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic", "resize_mode": "shortest",
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders, a generator and a CLIP."""
    folder = tmp_path_factory.mktemp("datadream")
    draw_images(folder / "images")
    build_pipeline(vae_channels=(8, 16), unet_channels=(16, 32)).save_pretrained(folder / "generator")
    write_clip(folder / "clip", seed=0)
    return folder


def draw_images(root: Path) -> None:
    """Write noisy fields of one colour, 40 x 36 and some 48 x 32, to train, val and test."""
    generator = np.random.default_rng(0)
    for part, count in (("train", NUM_TRAIN), ("val", 3), ("test", 4)):
        for channel, name in enumerate(reversed(CLASSES)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = generator.integers(0, 60, (40, 36) if number % 2 else (32, 48)).astype(np.uint8)
                image = np.repeat(image[..., None], 3, 2)
                image[..., channel] += 180
                Image.fromarray(image).save(root / part / name / f"{number}.png")


def write_clip(folder: Path, seed: int) -> None:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")


def job(place: Path, **settings: Any) -> JobConfig:
    method = {
        "name": "datadream", "num_shots": NUM_SHOTS, "generator": str(place / "generator"), "adapt_rank": 2,
        "adapt_epochs": 4, "adapt_batch_size": 2, "adapt_warmup_steps": 2, "adapt_learning_rate": 0.01,
        "images_per_class": 4, "block_size": 2, "num_inference_steps": 2, "warmup_epochs": 1, "lora_rank": 2,
        "learning_rate": 0.01, "augment": "light",
    }  # fmt: skip
    groups: dict[str, dict[str, Any]] = {
        "method": method,
        "data": {"name": "folders", "root": str(place / "images"), "num_workers": 2},
        "model": {"name": f"local-dir:{place / 'clip'}"},
        "scale": {"kind": "plain"},
        "run": {"num_epochs": 2, "batch_size": 8},
    }
    for key, value in settings.items():
        group, _, name = key.rpartition("__")
        groups[group or "method"][name] = value
    return job_from_dict(groups)


def new_run(folder: Path, name: str = "run", **options: Any) -> PlainRun:
    return PlainRun(folder=folder / name, shared=folder / "shared", progress=False, **options)


def few_shot_of(job: JobConfig) -> FewShotData:
    data = load_classification(job.data, Preprocessing(image_size=32, resize="crop"))
    return draw_few_shot(data, job.method.num_shots, job.method.num_templates, seed=0)


def in_run(folder: Path, work: Callable[[PlainRun], Any], **options: Any) -> Any:
    run = new_run(folder, **options)
    try:
        return work(run)
    finally:
        run.close()


def train(job: JobConfig, folder: Path) -> Outcome:
    return in_run(folder, lambda run: recipe.train(job, run), name=job.run_name)


class StoppingRun(PlainRun):
    """Run that is asked to stop at the n-th poll."""

    looks_left = 10**9

    def stop_requested(self) -> bool:
        self.looks_left -= 1
        return self.looks_left < 0


def stopped(folder: Path, looks: int, work: Callable[[PlainRun], Any]) -> None:
    run = StoppingRun(folder=folder / "run", shared=folder / "shared", progress=False)
    run.looks_left = looks
    try:
        with pytest.raises(Interrupted):
            work(run)
    finally:
        run.close()


def images_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def trained(place: Path) -> Outcome:
    return train(job(place, export_open_clip=True), place / "trained")


# -- the three stages and their results


def test_three_stages_end_in_a_bundle_with_metrics_and_history(trained, place):
    assert (trained.metric, trained.mode) == ("val/accuracy", "max")
    assert {"val/accuracy", "test/accuracy", "test/macro_accuracy"} <= trained.metrics.keys()
    assert [row["epoch"] for row in trained.history] == [1, 2]
    assert max(row["val/accuracy"] for row in trained.history) == trained.metrics["val/accuracy"]
    stages = sorted(path.name.split("-")[0] for path in (place / "trained/shared/stages").iterdir())
    assert stages == ["datadream_adapt", "datadream_classify"]
    assert len(images_in(place / "trained/shared/pools")) == 3 * 4


def test_the_predictor_answers_as_the_training_did(trained):
    bundle = load_bundle(trained.bundle)
    predictor = load(bundle)
    assert check_probe(bundle, predictor) == 0.0
    data = load_classification(job_from_dict(as_job(bundle.config)).data, predictor.preprocessing, ("test",))
    answer = predictor(data.test.images.read(np.arange(len(data.test))))
    # Training keeps adapters apart, the predictor has them merged: float32 rounding at a scale of 14.
    expected = load_file(trained.bundle.parent / "logits.safetensors")["test"]
    torch.testing.assert_close(answer["logits"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer["probs"].sum(1), torch.ones(len(data.test)))


def as_job(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("method", "data", "model", "scale", "run")}


def test_evaluating_the_predictor_gives_the_metrics_of_the_training(trained, place, tmp_path):
    bundle = load_bundle(trained.bundle)
    found = in_run(tmp_path, lambda run: recipe.evaluate(load(bundle), job(place).data, run))
    assert found == pytest.approx(trained.metrics)


def test_a_caller_can_bring_classes_of_its_own(trained):
    predictor = load(load_bundle(trained.bundle))
    assert isinstance(predictor, DataDreamPredictor)
    own = predictor.prototypes_of({name: [predictor.prompt_template.format(name)] for name in CLASSES})
    torch.testing.assert_close(own, predictor.prototypes, rtol=1e-4, atol=1e-5)
    embeddings = predictor.embed(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    two = predictor.prototypes_of({"day": ["a bright sky", "noon"], "night": ["a dark sky"]})
    assert predictor.classify(embeddings, two)["probs"].shape == (2, 2)
    texts = {"prompts": ["a bright sky", "a dark sky", "noon"], "prompt_classes": ["day", "night", "day"]}
    answer = predictor(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), **texts)
    torch.testing.assert_close(answer["logits"], predictor.classify(embeddings, two)["logits"])
    own, asked = load_probes(load_bundle(trained.bundle))
    assert asked["classes"] == list(CLASSES[:2])
    assert torch.equal(asked["images"], own["images"][:2])
    torch.testing.assert_close(two.norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="prompts of class 'day' must be a list of at least one text"):
        predictor.prototypes_of({"day": []})


def test_the_same_settings_again_do_no_stage_twice(trained, place, monkeypatch):
    for module, name in ((adapting, "load_pipeline"), (generating, "load_pipeline"), (recipe, "train_classifier")):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("done twice"))
    assert train(job(place, export_open_clip=True), place / "trained").metrics == trained.metrics


def test_another_clip_under_the_same_name_is_refused(trained, place, tmp_path):
    bundle = load_bundle(trained.bundle)
    write_clip(tmp_path / "other", seed=1)
    bundle.config["model"]["name"] = f"local-dir:{tmp_path / 'other'}"
    with pytest.raises(ValueError, match=r"must have the weights that .* was trained with .*; restore those weights"):
        load(bundle)


# -- formats of other libraries


def test_each_class_has_an_adapter_that_diffusers_loads(trained, place):
    folder = next((place / "trained/shared/stages").glob("datadream_adapt-*"))
    states = {}
    for label, name in enumerate(CLASSES):
        assert json.loads((folder / f"{label:05d}/class.json").read_text())["class"] == name
        pipeline = StableDiffusionPipeline.from_pretrained(place / "generator", safety_checker=None)
        before = predictions(pipeline)
        pipeline.load_lora_weights(folder / f"{label:05d}")
        theirs = predictions(pipeline)
        assert (theirs - before).abs().max() > 1e-4
        pipeline.unload_lora_weights()
        load_adapter(pipeline, folder / f"{label:05d}")
        torch.testing.assert_close(predictions(pipeline), theirs)
        states[name] = theirs
    assert (states["red"] - states["blue"]).abs().max() > 1e-4


@torch.no_grad()
def predictions(pipeline: Any) -> Tensor:
    tokens = pipeline.tokenizer("a photo", padding="max_length", return_tensors="pt").input_ids
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    return pipeline.unet(noise, torch.tensor(500), pipeline.text_encoder(tokens)[0]).sample


def test_peft_and_open_clip_load_the_bundle_folder(trained, place):
    predictor = load(load_bundle(trained.bundle))
    images = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours = predictor.embed(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = open_clip.create_model(f"local-dir:{place / 'clip'}").eval()
        pixels = predictor.clip.normalise(images)
        with torch.no_grad():
            before = torch.nn.functional.normalize(plain.encode_image(pixels), dim=-1)
            adapted = PeftModel.from_pretrained(plain, str(trained.bundle)).eval()
            theirs = torch.nn.functional.normalize(adapted.encode_image(pixels), dim=-1)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert (before - ours).abs().max() > 1e-3
    merged = load_clip(ClipConfig(name=f"local-dir:{trained.bundle}"))
    torch.testing.assert_close(merged.embed_images(images), ours, rtol=1e-4, atol=1e-5)


# -- stopping, killing, growing


def test_a_killed_generation_goes_on_to_the_same_bytes(place, tmp_path, monkeypatch):
    settings = job(place, scheme="unadapted")
    few_shot = few_shot_of(settings)

    def work(run: PlainRun) -> Any:
        return generate(settings, run, few_shot, Adapters(digest=None), count=4)

    whole = in_run(tmp_path / "whole", work)
    drawn: list[str] = []
    atomically = generating.ImageStore.write.__globals__["write_atomically"]

    def dying(path: Path, content: bytes) -> None:
        drawn.append(path.name)
        if len(drawn) == 6:  # a prompts.json, two blocks and half of the third
            raise KeyboardInterrupt
        atomically(path, content)

    monkeypatch.setitem(generating.ImageStore.write.__globals__, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        in_run(tmp_path / "killed", work)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.png")}
    assert len(before) == 4
    again = in_run(tmp_path / "killed", work)
    assert images_in(again.folder) == images_in(whole.folder)
    assert len(images_in(whole.folder)) == 12
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    content = json.loads((whole.folder / "prompts.json").read_text())
    assert content["classes"][0] == {"class": "blue", "prompts": ["a photo of a blue"]}


def test_a_stop_between_blocks_keeps_whole_blocks(place, tmp_path):
    settings = job(place, scheme="unadapted")
    few_shot = few_shot_of(settings)

    def work(run: PlainRun) -> Any:
        return generate(settings, run, few_shot, Adapters(digest=None), count=4)

    stopped(tmp_path, 2, work)
    assert len(images_in(tmp_path)) == 2 * 2
    store = in_run(tmp_path, work)
    assert len(images_in(store.folder)) == 12


def test_a_store_grows_by_what_is_missing(place, tmp_path, monkeypatch):
    settings = job(place, scheme="unadapted")
    few_shot = few_shot_of(settings)
    calls: list[int] = []
    draw = generating.draw_images
    monkeypatch.setattr(
        generating, "draw_images", lambda *args, **options: calls.append(len(args[1])) or draw(*args, **options)
    )

    def filled(count: int) -> dict[str, bytes]:
        store = in_run(tmp_path, lambda run: generate(settings, run, few_shot, Adapters(digest=None), count=count))
        return images_in(store.folder)

    three = filled(3)  # two blocks of two in each class
    assert calls == [2] * 6
    seven = filled(7)
    assert calls == [2] * 12
    assert {name: seven[name] for name in three} == three
    assert len(seven) == 3 * 8
    filled(5)
    assert calls == [2] * 12


def test_images_do_not_depend_on_the_classes_drawn_with_them(place, tmp_path):
    settings = job(place, scheme="unadapted")
    few_shot = few_shot_of(settings)
    options: dict[str, Any] = {"count": 2}
    every = in_run(tmp_path / "a", lambda run: generate(settings, run, few_shot, Adapters(digest=None), **options))
    one = in_run(
        tmp_path / "b", lambda run: generate(settings, run, few_shot, Adapters(digest=None), labels=[2], **options)
    )
    assert one.digest == every.digest
    assert images_in(one.folder).items() <= images_in(every.folder).items()
    seeds = {image_seed(seed, label, index) for seed in range(3) for label in range(20) for index in range(20)}
    assert len(seeds) == 1200


def test_a_killed_adaptation_goes_on_with_the_classes_that_are_missing(place, tmp_path, monkeypatch):
    settings = job(place)
    few_shot = few_shot_of(settings)
    whole = in_run(tmp_path / "whole", lambda run: adapt(settings, run, few_shot))
    saved: list[Path] = []
    save = adapting.save_adapter

    def dying(pipeline: Any, folder: Path) -> None:
        saved.append(folder)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(pipeline, folder)

    monkeypatch.setattr(adapting, "save_adapter", dying)
    with pytest.raises(KeyboardInterrupt):
        in_run(tmp_path / "cut", lambda run: adapt(settings, run, few_shot))
    assert len(list((tmp_path / "cut").rglob(ADAPTER_FILE))) == 1
    again = in_run(tmp_path / "cut", lambda run: adapt(settings, run, few_shot))
    assert len(saved) == 4  # one, the one that died, and the two that were missing
    assert again.digest == whole.digest
    same_adapters(again, whole)
    assert not list((tmp_path / "cut/run").glob("adapt-*/*")), "checkpoints of finished classes are left"


@pytest.mark.parametrize(("scheme", "looks"), [("cls", 12), ("dset", 5)])
def test_a_stopped_adaptation_ends_where_it_would_have(place, tmp_path, scheme, looks):
    """Stopped within a class, and within the training of the common adapter; latents are sampled in each step."""
    settings = job(place, scheme=scheme, adapt_batch_size=1)
    few_shot = few_shot_of(settings)
    whole = in_run(tmp_path / "whole", lambda run: adapt(settings, run, few_shot))
    stopped(tmp_path / "cut", looks, lambda run: adapt(settings, run, few_shot))
    assert list((tmp_path / "cut/run").rglob("state.pt"))
    again = in_run(tmp_path / "cut", lambda run: adapt(settings, run, few_shot))
    same_adapters(again, whole)


def same_adapters(first: Adapters, second: Adapters) -> None:
    for label in range(len(CLASSES)):
        one, other = first.of(label), second.of(label)
        assert one is not None
        assert other is not None
        mine, theirs = load_file(one / ADAPTER_FILE), load_file(other / ADAPTER_FILE)
        assert mine.keys() == theirs.keys()
        assert any(".text_" in name or name.startswith("text_encoder") for name in mine)
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


def test_trials_share_what_does_not_differ(trained, place, monkeypatch):
    """Another number of images and another classifier train no adapter and generate only the missing images."""
    monkeypatch.setattr(adapting, "load_pipeline", lambda *args: pytest.fail("adapted twice"))
    outcome = train(job(place, images_per_class=5, classifier="small_cnn", mixing=0), place / "trained")
    assert len(images_in(place / "trained/shared/pools")) == 3 * 6
    bundle = load_bundle(outcome.bundle)
    assert check_probe(bundle, load(bundle)) == 0.0
    assert not isinstance(load(bundle), DataDreamPredictor)


# -- baselines


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"scheme": "zero_shot"}, []),
        ({"scheme": "real", "augment": "photo"}, []),
        ({"scheme": "unadapted", "train_on": "synthetic", "classes_per_step": 2}, [4, 4, 4]),
        ({"scheme": "disef", "num_templates": 2, "filter_keep": 1.0}, [4, 4, 4]),
        ({"scheme": "is_synth", "train_on": "synthetic", "filter_keep": 0.5, "adapt_text_tower": False}, None),
    ],
    ids=lambda value: value.get("scheme") if isinstance(value, dict) else "",
)
def test_every_comparator_trains(place, settings, kept):
    outcome = train(job(place, **settings), place / "compared")
    bundle = load_bundle(outcome.bundle)
    assert check_probe(bundle, load(bundle)) == 0.0
    results = json.loads((outcome.bundle.parent / "results.json").read_text())
    if kept is not None:
        assert results["synthetic"] == kept
    else:
        assert all(2 <= number <= 4 for number in results["synthetic"])
    assert bool(outcome.history) == (settings["scheme"] != "zero_shot")


def test_captions_come_from_the_sentences_nearest_to_each_shot(place):
    stages = place / "compared/shared/stages"
    captions = json.loads(next(stages.glob("datadream_caption-*/captions.json")).read_text())
    assert [[len(texts) for texts in shots] for shots in captions] == [[4, 4]] * 3
    assert all("green" in text for texts in captions[1] for text in texts)


def test_captions_can_come_from_a_model_of_transformers(place, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "field"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "bos_token_id": 2, "sep_token_id": 4}
    config = BlipConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    caption = captioner(str(tmp_path), load_clip(job(place).model), torch.device("cpu"))
    texts = caption(few_shot_of(job(place)), 2)
    assert len(texts) == NUM_SHOTS
    assert all(text.startswith("a photo of a red") for shot in texts for text in shot)
    with pytest.raises(
        ValueError, match=r"captioner must be an image-to-text model .*, got '/nowhere': .* or to templates"
    ):
        captioner("/nowhere", load_clip(job(place).model), torch.device("cpu"))


def test_images_of_the_training_are_drawn(place, tmp_path):
    shown: dict[str, Any] = {}

    class Recorder:
        run_id = "one"

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            shown.update(metrics)

        def log_figure(self, name: str, figure: Any) -> None:
            figure.savefig(tmp_path / name)
            shown[name] = figure

        def log_text(self, name: str, text: str) -> None: ...
        def log_file(self, path: Path, folder: str = "") -> None: ...

    in_run(place / "trained", lambda run: recipe.train(job(place, export_open_clip=True), run), recorder=Recorder())
    assert {"samples.png", "feature_distance.png", "curves.png", "confusion.png"} <= shown.keys()
    assert shown["features/adapted"] != shown["features/generator_as_it_is"]
    titles = [axes.get_title() for axes in shown["samples.png"].axes]
    assert titles == ["real shots", "generator as it is", "adapted"]


# -- refusals


def test_too_few_shots_name_the_class_and_the_count(place, tmp_path):
    with pytest.raises(ValueError, match=r"num_shots must be at most 4, the training images of class 'blue' .*, got 5"):
        train(job(place, num_shots=5), tmp_path)
    assert not (tmp_path / "shared").exists()


def test_a_damaged_shot_is_named_before_anything_is_trained(place, tmp_path):
    draw_images(tmp_path / "images")
    for path in (tmp_path / "images/train/red").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    settings = job(place, data__root=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"cannot decode .*images/train/red/\d\.png: .*truncated or damaged"):
        train(settings, tmp_path)
    assert not list(tmp_path.rglob(ADAPTER_FILE))


def test_a_generator_that_predicts_something_else_is_refused(place, tmp_path):
    pipeline = build_pipeline(vae_channels=(8, 16), unet_channels=(16, 32))
    pipeline.scheduler.register_to_config(prediction_type="sample")
    pipeline.save_pretrained(tmp_path / "generator")
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon, v_prediction, got 'sample'"):
        train(job(place, generator=str(tmp_path / "generator")), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "dreams"}, "method.scheme"),
        ({"num_shots": 0}, "num_shots must be at least 1, got 0"),
        ({"guidance_scale": 0.5}, "guidance_scale must be at least 1, got 0.5"),
        ({"real_weight": 1.5}, r"real_weight must lie in \[0, 1\], got 1.5"),
        ({"noise_strength": 0.0}, r"noise_strength must lie in \(0, 1\], got 0.0"),
        ({"adapt_image_tower": False, "adapt_text_tower": False}, "nothing would be trained"),
        (
            {"scheme": "zero_shot", "classifier": "resnet50"},
            "classifier must be clip with scheme zero_shot",
        ),
        ({"classes_per_step": 1}, "classes_per_step must be at least 2 or null, got 1"),
    ],
)
def test_settings_out_of_range_are_refused(place, settings, message):
    with pytest.raises(ValueError, match=message):
        job(place, **settings)


def test_a_warm_up_longer_than_the_training_is_refused(place, tmp_path):
    with pytest.raises(ValueError, match=r"warmup_epochs must be at most run.num_epochs = 2, got 3"):
        train(job(place, warmup_epochs=3), tmp_path)
    with pytest.raises(ValueError, match=r"run.ema_decay must be null with datadream, got 0.9"):
        train(job(place, run__ema_decay=0.9), tmp_path)


def test_without_a_validation_part_the_last_epoch_is_kept_and_said(place, tmp_path):
    draw_images(tmp_path / "images")
    for path in sorted((tmp_path / "images/val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "images/val").rmdir()
    settings = job(place, data__root=str(tmp_path / "images"), scheme="real")
    with pytest.warns(UserWarning, match="no validation split: the last epoch is kept"):
        outcome = train(settings, tmp_path)
    assert outcome.metric == "shots/accuracy"
    assert {"shots/accuracy", "test/accuracy"} <= outcome.metrics.keys()
    assert not any(name.startswith(("val", "test")) for row in outcome.history for name in row)


# -- parts


def test_a_source_goes_on_in_mid_epoch_and_reads_the_same_in_another_process(tmp_path):
    run = new_run(tmp_path)
    loader = run.loader(lambda rows: {}, 7, 3, shuffle=True)

    def read(rows: np.ndarray, seed: int) -> dict[str, Tensor]:
        return {"noise": torch.rand(len(rows), generator=torch.Generator().manual_seed(seed))}

    source = SeededSource(loader, read, seed=1, passes=2)
    whole = list(source.epoch(1))
    assert len(whole) == source.num_batches() == 6
    assert len({batch["noise"][0].item() for batch in whole}) == 6
    ahead = SeededSource(loader, read, seed=1, passes=2, num_workers=1)
    for again, expected in ((list(source.epoch(1, 4)), whole[4:]), (list(ahead.epoch(1, 2)), whole[2:])):
        assert len(again) == len(expected)
        for one, other in zip(again, expected, strict=True):
            assert torch.equal(one["noise"], other["noise"])
            assert torch.equal(one["index"], other["index"])
    run.close()


def test_the_classes_of_a_step_hold_those_of_the_batch(place, tmp_path):
    settings = job(place, classes_per_step=4).method
    run = new_run(tmp_path)
    objective = ClassifierLoss(settings, None, 10, run)  # type: ignore[arg-type]  # the network is not asked
    labels = torch.tensor([7, 7, 2])
    for seed in range(5):
        classes = objective.draw_classes(labels, np.random.default_rng(seed))
        assert classes is not None
        assert len(classes) == 4
        assert {2, 7} <= set(classes.tolist())
        assert torch.equal(classes, classes.unique())
        assert torch.equal(classes[torch.searchsorted(classes, labels)], labels)
    run.close()


def test_an_image_is_cut_to_a_square_where_it_is_asked():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 34:] = 255
    assert square(image, 10).mean() == 0
    assert square(image, 10, (0, 1)).mean() > 60
    same = np.zeros((10, 10, 3), np.uint8)
    assert square(same, 10) is same


def test_augmentation_is_small_for_characters_and_repeats_for_its_seed():
    images = torch.zeros(64, 32, 32, 3, dtype=torch.uint8)
    images[:, 12:20, 12:20] = 255
    one, again = (lightly(images, torch.Generator().manual_seed(3), mirror=False) for _ in range(2))
    assert torch.equal(one, again)
    assert len({image.numpy().tobytes() for image in one}) == 64
    assert one[:, 13:19, 13:19].float().mean() > 150  # still in the middle
    assert one[:, :4].float().mean() < 1
    left = torch.zeros(200, 32, 32, 3, dtype=torch.uint8)
    left[:, :, :8] = 255
    mirrored = lightly(left, torch.Generator().manual_seed(0), mirror=True)[:, 16, 28, 0] > 128
    assert 0.3 < mirrored.float().mean() < 0.7


@pytest.mark.parametrize("size", [8, 32, 224])
def test_photographs_come_out_at_the_size_of_the_network(size):
    torch.manual_seed(0)
    transform = photo_transform(size, mirror=True)
    for _ in range(8):
        seen = transform(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8))
        assert seen.shape == (3, size, size)
        assert seen.dtype == torch.uint8
