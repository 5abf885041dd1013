"""WaffleCLIP from settings to a bundle and its predictions, with a CLIP of one layer and random weights."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tenfold.bundle import check_probe, load_bundle, load_probes
from tenfold.data.catalog import load_classification
from tenfold.data.classification import ClassificationData, ClassificationSplit
from tenfold.data.descriptors import read_descriptors, shipped_descriptors
from tenfold.data.embedded.handwriting.classification import load_digits
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.data.images import ArrayImages
from tenfold.engine.launch import LaunchOptions, launch
from tenfold.engine.run import Outcome, PlainRun, Run
from tenfold.engine.settings import JobConfig, RunConfig, ScaleConfig
from tenfold.methods.waffleclip import class_scores, recipe, topk_accuracy
from tenfold.methods.waffleclip.embeddings import PIECE
from tenfold.methods.waffleclip.evaluation import index_prompts, pooled, score_repetitions
from tenfold.methods.waffleclip.predictor import WaffleClipPredictor, load
from tenfold.methods.waffleclip.prompt_inputs import gather_prompt_inputs
from tenfold.methods.waffleclip.prompt_modes import MODES
from tenfold.methods.waffleclip.settings import Config
from tenfold.models.clip import Clip, ClipConfig, load_clip
from tenfold.tracking.model import example_and_signature, write_model
from tenfold.types import Preprocessing

NUM_TEST, NUM_VAL, NUM_PROBES = 1250, 750, 8 + 2
"""Images that are embedded; of the probes two are again, with texts."""
PROBE_TEXTS = ["A photo of a one.", "A photo of a zero."]
"""Texts that are encoded once more, by themselves, as where the model is served."""


@dataclass(frozen=True)
class Place:
    """A small CLIP and the handwriting data, made once for the file."""

    folder: Path

    @property
    def model(self) -> ClipConfig:
        return ClipConfig(name=f"local-dir:{self.folder / 'clip'}")

    @property
    def data(self) -> HandwritingConfig:
        return HandwritingConfig(cache=str(self.folder / "cache"))

    def job(self, *, seed: int = 0, **settings: Any) -> JobConfig:
        scale = ScaleConfig(name="local", kind="plain", workers=1, storage=str(self.folder / "runs"))
        method = Config(**{"repetitions": 3, "num_pairs": 2, **settings})
        run = RunConfig(seed=seed)
        return JobConfig(
            method_name="waffleclip", method=method, data=self.data, model=self.model, scale=scale, run=run
        )


@dataclass
class Record:
    """Recorder that keeps everything a run logs."""

    run_id: str = "none"
    metrics: list[tuple[dict[str, float], int]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((metrics, step))

    def log_figure(self, name: str, figure: Any) -> None:
        self.figures[name] = figure

    def log_text(self, name: str, text: str) -> None:
        self.files.append(name)

    def log_file(self, path: Path, folder: str = "") -> None:
        self.files.append(path.name)


@dataclass
class Counts:
    """Number of images and the prompts that went through the towers."""

    images: int = 0
    prompts: list[str] = field(default_factory=list)


def write_clip(folder: Path, data: HandwritingConfig, seed: int = 0) -> None:
    import open_clip
    from open_clip.model import CLIP

    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    reading = {
        "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = CLIP(**settings)
    # Embeddings of random towers are nearly parallel: the direction that all images, and all texts, share is removed.
    images = load_digits(data, Preprocessing(image_size=32), ("test",)).test.images.read(range(256))
    pixels = images.permute(0, 3, 1, 2) / 127.5 - 1
    words = [
        f"A photo of a {word}, which has {letters}." for word in DIGIT_WORDS for letters in ("loop", "xq, zt", "bend")
    ]
    with torch.no_grad():
        network.token_embedding.weight.normal_()
        for projection, outputs in (
            (network.visual.proj, network.encode_image(pixels)),
            (network.text_projection, network.encode_text(open_clip.tokenize(words))),
        ):
            shared = torch.nn.functional.normalize(outputs.mean(dim=0), dim=0)
            projection -= (projection @ shared)[:, None] * shared
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": reading}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("waffle"))
    write_clip(place.folder / "clip", place.data)
    return place


@pytest.fixture(scope="module")
def clip(place: Place) -> Clip:
    return load_clip(place.model)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counts = Counts()
    images, tokenize = Clip.image_features, Clip.tokenize

    def image_features(self: Clip, pixels: Tensor) -> Tensor:
        counts.images += len(pixels)
        return images(self, pixels)

    def tokens(self: Clip, texts: list[str]) -> Tensor:
        counts.prompts += texts
        return tokenize(self, texts)

    monkeypatch.setattr(Clip, "image_features", image_features)
    monkeypatch.setattr(Clip, "tokenize", tokens)
    return counts


def train(job: JobConfig, folder: Path, record: Record | None = None, shared: Path | None = None) -> Outcome:
    run = PlainRun(folder=folder, shared=shared, seed=job.run.seed, recorder=record, progress=False)
    try:
        return recipe.train(job, run)
    finally:
        run.close()


@pytest.fixture(scope="module")
def record() -> Record:
    return Record()


@pytest.fixture(scope="module")
def job(place: Place) -> JobConfig:
    return place.job(compare=("gpt_descriptions", "swapped_descriptions"))


@pytest.fixture(scope="module")
def trained(job: JobConfig, record: Record, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(job, tmp_path_factory.mktemp("run"), record)


# -- one evaluation, and all that it leaves


def test_it_reports_the_mean_and_spread_of_its_repetitions(trained):
    metrics = trained.metrics
    assert trained.metric == "val/accuracy"
    assert [row["epoch"] for row in trained.history] == [1, 2, 3]
    assert [row["seed"] for row in trained.history] == [0, 1, 2]
    for part in ("val", "test"):
        drawn = np.array([row[f"{part}/repetition_accuracy"] for row in trained.history])
        assert drawn.std() > 0
        assert metrics[f"{part}/accuracy_mean"] == pytest.approx(drawn.mean())
        assert metrics[f"{part}/accuracy_std"] == pytest.approx(drawn.std())  # of the population
        assert metrics[f"{part}/accuracy_min"] == pytest.approx(drawn.min())
        assert metrics[f"{part}/accuracy_max"] == pytest.approx(drawn.max())
        assert metrics[f"{part}/gain"] == pytest.approx(drawn.mean() - metrics[f"{part}/clip_accuracy"])
        assert metrics[f"{part}/gpt_descriptions/accuracy_std"] == 0  # nothing random in it
        assert metrics[f"{part}/swapped_descriptions/accuracy_std"] > 0
        assert metrics[f"{part}/top5_mean"] > metrics[f"{part}/accuracy_mean"]


def test_the_bundle_answers_as_the_evaluation_did(trained, job, place, clip):
    bundle = load_bundle(trained.bundle)
    predictor = load(bundle)
    assert check_probe(bundle, predictor) == 0.0
    data = load_classification(place.data, clip.preprocessing)
    own, asked = load_probes(bundle)
    assert torch.equal(own["images"], data.test.images.read(range(8)))
    assert torch.equal(asked["images"], own["images"][:2])
    assert asked["classes"] == list(data.classes[:2])
    run = PlainRun(folder=trained.bundle.parent / "evaluate", progress=False)
    found = recipe.evaluate(predictor, place.data, run)
    assert found == {name: trained.metrics[name] for name in found}
    assert {"val/accuracy", "test/accuracy", "test/top5", "test/macro_accuracy"} <= set(found)
    predictor.classes = (*predictor.classes[:-1], "eleven")
    with pytest.raises(ValueError, match=r"the model knows 10 classes .* data 'handwriting' has 10"):
        recipe.evaluate(predictor, place.data, run)


def test_the_prototypes_are_the_mean_of_all_prompts_not_normalised(trained, clip):
    bundle = load_bundle(trained.bundle)
    sets = json.loads(bundle.file(recipe.PROMPTS_FILE).read_text())
    assert len(sets) == 3
    found = bundle.tensors()["prototypes"]
    for label, name in enumerate(bundle.metadata.classes):
        prompts = [prompt for one in sets for prompt in one[name]]
        assert len(prompts) == 3 * 2 * 2
        assert all(prompt.startswith(f"A photo of a {name}, ") for prompt in prompts)
        torch.testing.assert_close(found[label], clip.embed_texts(prompts).mean(dim=0))
    assert (found.norm(dim=1) < 0.999).all()


def test_curves_figures_and_prompts_are_on_record(trained, record):
    steps = {step: metrics for metrics, step in record.metrics}
    assert steps[2]["test/repetition_accuracy"] == trained.history[1]["test/repetition_accuracy"]
    assert set(record.figures) == {"repetitions.png", "class_gain.png", "modes.png"}
    assert "prompts.json" in record.files
    modes = record.figures["modes.png"].axes[0]
    assert [text.get_text() for text in modes.get_yticklabels()] == [
        "waffle", "gpt_descriptions", "swapped_descriptions",
    ]  # fmt: skip
    bars = record.figures["class_gain.png"].axes[0].patches
    widths = sorted(bar.get_width() for bar in bars)
    # Classes have different numbers of images, so the bars' mean is the macro gain.
    assert len(widths) == 10
    assert min(widths) < 0 < max(widths)


def test_other_settings_use_the_images_that_are_embedded_already(trained, place, counts, tmp_path):
    train(place.job(num_pairs=1), tmp_path / "other", shared=trained.bundle.parents[2])
    assert counts.images == NUM_PROBES  # asked once more, as the predictor is asked
    assert counts.prompts
    counts.images = 0
    train(place.job(num_pairs=1), tmp_path / "alone", shared=tmp_path / "alone")
    assert counts.images == NUM_TEST + NUM_VAL + NUM_PROBES


def test_each_distinct_prompt_goes_through_the_tower_once(place, counts, tmp_path):
    # Shared descriptors: most prompts come in several repetitions and in both modes.
    job = place.job(mode="random_descriptions", compare=("gpt_descriptions", "waffle_and_gpt"))
    outcome = train(job, tmp_path)
    sets = json.loads(load_bundle(outcome.bundle).file(recipe.PROMPTS_FILE).read_text())
    prompts = [prompt for one in sets for each in one.values() for prompt in each]
    assert len(set(prompts)) < len(prompts)
    assert set(prompts) < set(counts.prompts)
    assert counts.prompts[-2:] == PROBE_TEXTS
    assert len(set(counts.prompts[:-2])) == len(counts.prompts) - 2


def test_a_killed_evaluation_goes_on_with_the_next_piece(trained, job, counts, tmp_path, monkeypatch):
    limit = NUM_VAL + NUM_TEST // PIECE * PIECE  # all of the validation part, of the test part all but the last piece
    whole = Clip.embed_images

    def dies(self: Clip, images: Tensor) -> Tensor:
        if counts.images >= limit:
            raise RuntimeError("killed")
        return whole(self, images)

    monkeypatch.setattr(Clip, "embed_images", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train(job, tmp_path)
    assert counts.images == limit
    monkeypatch.setattr(Clip, "embed_images", whole)
    counts.prompts.clear()
    again = train(job, tmp_path)
    assert counts.images == NUM_VAL + NUM_TEST + NUM_PROBES
    assert counts.prompts == PROBE_TEXTS
    assert again.metrics == trained.metrics
    counts.images = 0
    counts.prompts.clear()
    assert train(job, tmp_path).metrics == trained.metrics
    assert counts == Counts()


# -- all modes, all aggregates


@pytest.mark.parametrize("aggregate", ["mean", "max", "sum", "merged"])
def test_scoring_repetitions_at_once_is_scoring_them_one_by_one(aggregate, monkeypatch):
    torch.manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    images = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    labels = torch.randint(7, (50,))
    rs = np.random.RandomState(0)
    sets = [{c: [str(row) for row in rs.choice(40, 1 + (c + r) % 4)] for c in range(7)} for r in range(3)]
    prompts, indexed = index_prompts(sets)
    table = texts[[int(prompt) for prompt in prompts]]
    monkeypatch.setattr("tenfold.methods.waffleclip.evaluation.SCORES_AT_ONCE", 300)  # several chunks
    hits = score_repetitions(images, labels, table, indexed, aggregate)
    for at, one in enumerate(sets):
        rows = [int(prompt) for own in one.values() for prompt in own]
        scores = class_scores(images, texts[rows], [len(own) for own in one.values()], aggregate)
        assert 100 * hits.top1[at].double().mean().item() == pytest.approx(topk_accuracy(scores, labels, 1))
        assert 100 * hits.top5[at].double().mean().item() == pytest.approx(topk_accuracy(scores, labels, 5))
    together = pooled(indexed)
    assert together.counts.tolist() == [sum(len(one[c]) for one in sets) for c in range(7)]
    assert [prompts[row] for row in together.rows[: together.counts[0]]] == [p for one in sets for p in one[0]]


@pytest.mark.parametrize("aggregate", ["mean", "max", "sum", "merged"])
def test_the_predictor_scores_as_its_aggregate_says(place, clip, tmp_path, aggregate):
    outcome = train(place.job(mode="swapped_descriptions", aggregate=aggregate), tmp_path)
    bundle = load_bundle(outcome.bundle)
    predictor = load(bundle)
    assert check_probe(bundle, predictor) == 0.0
    images = load_probes(bundle)[0]["images"]
    sets = json.loads(bundle.file(recipe.PROMPTS_FILE).read_text())
    prompts = {name: [prompt for one in sets for prompt in one[name]] for name in bundle.metadata.classes}
    texts = clip.embed_texts([prompt for own in prompts.values() for prompt in own])
    lengths = [len(own) for own in prompts.values()]
    expected = class_scores(clip.embed_images(images), texts, lengths, aggregate)
    if aggregate == "sum":
        expected = expected / np.mean(lengths)
    logits = predictor(images)["logits"]
    torch.testing.assert_close(logits, clip.log_scale.exp() * expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(predictor(images)["probs"], logits.softmax(dim=1))
    assert torch.equal(predictor.answer(predictor.embed(images))["logits"], logits)


@pytest.fixture(scope="module")
def data(place: Place, clip: Clip) -> ClassificationData:
    return load_classification(place.data, clip.preprocessing, ("test",))


def sets_of(data: ClassificationData, *, seed: int = 0, **settings: Any) -> list[dict[str, list[str]]]:
    config = Config(**{"repetitions": 2, "num_pairs": 2, **settings})
    return recipe.prompt_sets(config, gather_prompt_inputs(config, data), config.seeds(seed))[config.mode]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_makes_prompts_of_every_class(data, mode):
    sets = sets_of(data, mode=mode, concept="auto")
    assert len(sets) == (1 if mode in ("clip", "gpt_descriptions", "sentences") else 2)
    for one in sets:
        assert tuple(one) == data.classes
        assert all(prompts for prompts in one.values())
    if len(sets) == 2 and mode != "swapped_descriptions":
        assert sets[0] != sets[1]


def test_runs_with_other_seeds_draw_other_streams(data):
    assert list(Config().seeds(0)) == [0, 1, 2, 3, 4, 5, 6]
    assert list(Config(repetitions=3).seeds(2)) == [6, 7, 8]
    first, second = (sets_of(data, seed=seed) for seed in (0, 1))
    assert len({json.dumps(one) for one in (*first, *second)}) == 4
    with pytest.raises(ValueError, match=r"run\.seed \* repetitions must stay below"):
        Config().seeds(2**31 - 1)


def test_words_and_characters_alone_are_the_halves_of_the_pairs(data):
    both, words, characters = (sets_of(data, parts=parts)[0]["two"] for parts in ("both", "words", "characters"))
    assert len(both) == 4
    assert [both[0], both[2]] == words
    assert [both[1], both[3]] == characters


def test_the_concept_stands_before_the_name(data):
    assert sets_of(data, mode="clip", concept="auto")[0]["two"] == ["A photo of a digit: a two."]
    assert sets_of(data, mode="clip", concept="sign")[0]["two"] == ["A photo of a sign: a two."]
    assert sets_of(data, mode="clip", prefix="a scan of the digit ")[0]["two"] == ["a scan of the digit two."]


# -- classes of the caller


@pytest.fixture
def predictor(trained: Outcome) -> WaffleClipPredictor:
    return load(load_bundle(trained.bundle))


def test_the_callers_classes_come_with_a_call_too(predictor):
    images = torch.randint(0, 256, (3, *predictor.signature.inputs[0].shape), dtype=torch.uint8)
    prompts = {"cat": ["a photo of a cat.", "a drawn cat"], "dog": ["a dog"]}
    expected = predictor.classify(predictor.embed(images), predictor.prototypes_of(prompts))
    texts, names = ["a photo of a cat.", "a dog", "a drawn cat"], ["cat", "dog", "cat"]
    answer = predictor(images, prompts=texts, prompt_classes=names)
    assert torch.equal(answer["probs"], expected["probs"])
    template = {name: [predictor.prompt_template.format(name)] for name in ("cat", "dog")}
    named = predictor.classify(predictor.embed(images), predictor.prototypes_of(template))
    assert torch.equal(predictor(images, classes=["cat", "dog"])["logits"], named["logits"])
    for wrong in ({"prompts": texts}, {"classes": ["cat"], "prompts": texts, "prompt_classes": names}):
        with pytest.raises(ValueError, match="prompts"):
            predictor(images, **wrong)


def test_mlflow_asks_for_the_callers_classes(trained, predictor, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    bundle, loader = load_bundle(trained.bundle), "tenfold.catalog:load_predictor"
    example, signature = example_and_signature(bundle, loader)
    write_model(tmp_path / "model", bundle, loader, example, signature, model_id="m-0", run_id="0" * 32)
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    images = load_probes(bundle)[0]["images"][:3]
    for texts in ({}, {"classes": ["cat", "dog"]}, {"prompts": ["a cat", "a dog"], "prompt_classes": ["cat", "dog"]}):
        answer = model.predict(images.numpy(), params=texts)
        assert np.array_equal(answer["logits"], predictor(images, **texts)["logits"].numpy())
    assert answer["logits"].shape == (3, 2)


def test_the_callers_classes_are_answered_and_remembered(predictor, counts, clip):
    prompts = {"cat": ["A photo of a cat.", "a cat"], "dog": ["A photo of a dog."]}
    first = predictor.prototypes_of(prompts)
    assert first.shape == (2, 16)
    torch.testing.assert_close(first[0], clip.embed_texts(prompts["cat"]).mean(dim=0))
    asked = len(counts.prompts)
    predictor.clip.text_cache.clear()
    # The same texts under other names are the same prototypes.
    assert torch.equal(predictor.prototypes_of({"a": prompts["cat"], "b": tuple(prompts["dog"])}), first)
    assert len(counts.prompts) == asked
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    answer = predictor.classify(predictor.embed(images), first)
    assert answer["logits"].shape == (3, 2)
    torch.testing.assert_close(answer["probs"].sum(dim=1), torch.ones(3))
    own = predictor.tensors["prototypes"]
    assert torch.equal(predictor.classify(predictor.embed(images), own)["logits"], predictor(images)["logits"])
    template = predictor.prompt_template
    assert template == "A photo of a {}."
    assert template.count("{}") == 1


def test_many_threads_ask_at_once(predictor):
    questions = [{"one": [f"A photo of a {at}."], "other": ["nothing"]} for at in range(6)] * 4
    expected = [predictor.prototypes_of(question) for question in questions]
    predictor.clip.text_cache.clear()
    found: dict[int, Tensor] = {}

    def ask(at: int) -> None:
        found[at] = predictor.prototypes_of(questions[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, prototypes in enumerate(expected):
        torch.testing.assert_close(found[at], prototypes)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "prompts must hold at least one class"),
        ({"cat": []}, r"prompts of class 'cat' must be a list of at least one text, none empty, got \[\]"),
        ({"cat": ["a cat"], "dog": [" "]}, "prompts of class 'dog' must be"),
        ({"cat": "a cat"}, "prompts of class 'cat' must be a list"),
    ],
)
def test_classes_without_prompts_are_refused(predictor, prompts, message):
    with pytest.raises(ValueError, match=message):
        predictor.prototypes_of(prompts)


def test_prototypes_of_another_width_are_refused(predictor):
    with pytest.raises(ValueError, match=r"one width D, got \(1, 16\) and \(2, 8\)"):
        predictor.classify(torch.zeros(1, 16), torch.zeros(2, 8))


def test_prototypes_are_not_used_with_another_clip(trained, place, tmp_path):
    write_clip(tmp_path / "other", place.data, seed=1)
    bundle = load_bundle(trained.bundle)
    config = {**bundle.config, "model": {"name": f"local-dir:{tmp_path / 'other'}", "pretrained": None}}
    with pytest.raises(ValueError, match=r"must have the fingerprint .*, got .*; restore those weights"):
        load(replace(bundle, config=config))


# -- what is refused


def write_lists(path: Path, lists: Mapping[str, object]) -> str:
    path.write_text(json.dumps(lists))
    return str(path)


@pytest.fixture(scope="module")
def lists() -> dict[str, list[str]]:
    path = shipped_descriptors("handwriting")
    assert path is not None
    return read_descriptors(path)


def test_a_descriptor_file_of_other_classes_is_refused_before_anything_is_embedded(place, lists, counts, tmp_path):
    renamed = {("eleven" if name == "nine" else name): own for name, own in lists.items()}
    path = write_lists(tmp_path / "renamed.json", renamed)
    with pytest.raises(ValueError, match=r"renamed\.json .*'eleven'"):
        train(place.job(descriptors=path), tmp_path / "run")
    assert counts == Counts()


def test_an_empty_list_is_refused_by_file_and_class_or_made_blank(data, lists, tmp_path):
    path = write_lists(tmp_path / "holes.json", {**lists, "four": []})
    with pytest.raises(ValueError, match=r"holes\.json must hold .* got an empty list for 'four' .*empty_lists=blank"):
        sets_of(data, mode="gpt_descriptions", descriptors=path)
    found = sets_of(data, mode="gpt_descriptions", descriptors=path, empty_lists="blank")
    assert found[0]["four"] == ["A photo of a four, which has ."]


def foreign(data: ClassificationData) -> ClassificationData:
    """Data for which the package ships no descriptors."""
    images = ArrayImages(np.zeros((4, 32, 32, 3), dtype=np.uint8))
    split = ClassificationSplit(images=images, labels=np.array([0, 1, 1, 0]))
    return ClassificationData(name="folders", classes=("big_cat", "dog"), test=split, image_size=32, fingerprint="f")


@pytest.mark.parametrize("mode", ["gpt_descriptions", "waffle_and_gpt", "scrambled_descriptions", "sentences"])
def test_a_mode_that_needs_descriptors_says_which_file(data, mode):
    with pytest.raises(ValueError, match=rf"mode {mode} needs descriptors of the 2 classes of 'folders'.*JSON"):
        gather_prompt_inputs(Config(mode=mode), foreign(data))


def test_random_words_need_no_descriptors(data):
    found = sets_of(foreign(data), mode="waffle")
    assert list(found[0]) == ["big_cat", "dog"]
    assert all(prompt.startswith("A photo of a big cat, which ") for prompt in found[0]["big_cat"])
    assert [prompt.removeprefix("A photo of a dog") for prompt in found[0]["dog"]] == [
        prompt.removeprefix("A photo of a big cat") for prompt in found[0]["big_cat"]
    ]


def test_words_come_from_where_they_are_said_to(data, lists, tmp_path):
    (tmp_path / "words.txt").write_text("apple\nbanana\n")
    words = gather_prompt_inputs(Config(vocabulary=str(tmp_path / "words.txt")), data).vocabulary
    assert words == ["apple", "banana"]
    own = gather_prompt_inputs(Config(), data).vocabulary
    assert {"oval", "stroke"} <= set(own)
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(ValueError, match="must be a folder with descriptor files"):
        gather_prompt_inputs(Config(vocabulary=str(folder)), data)
    write_lists(folder / "a.json", {"x": ["zebra, or (stripes)"]})
    assert gather_prompt_inputs(Config(vocabulary=str(folder)), data).vocabulary == ["or", "stripes", "zebra"]
    assert len(gather_prompt_inputs(Config(vocabulary="clip"), data).vocabulary) > 10_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ({"mode": "waffle_and_gpt", "num_pairs": 1}, "num_pairs must be at least 2 with waffle_and_gpt, got 1"),
        ({"compare": ("adaptive_randomness_and_gpt_descriptions",), "num_pairs": 1}, "num_pairs must be at least 2"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"repetitions": 0}, "repetitions must be at least 1"),
        ({"compare": ("waffle",)}, "each once, got 'waffle' twice"),
        ({"concept": " "}, "concept must be auto, none or a text"),
        ({"concept": "bird", "prefix": "a "}, "prefix must be null with a concept"),
        ({"parts": "words", "mode": "clip"}, "parts must be both with clip"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_a_context_needs_a_concept(data):
    with pytest.raises(ValueError, match="context_prompt_ensemble needs a concept"):
        gather_prompt_inputs(Config(mode="context_prompt_ensemble"), data)


# -- several workers


def work(run: Run, job: JobConfig) -> dict[str, Any]:
    """Train in every worker, counting the inputs of the towers."""
    counts = {"images": 0, "prompts": 0}
    images, tokenize = Clip.image_features, Clip.tokenize

    def image_features(self: Clip, pixels: Tensor) -> Tensor:
        counts["images"] += len(pixels)
        return images(self, pixels)

    def tokens(self: Clip, texts: list[str]) -> Tensor:
        counts["prompts"] += len(texts)
        return tokenize(self, texts)

    Clip.image_features, Clip.tokenize = image_features, tokens  # type: ignore[method-assign]
    try:
        outcome = recipe.train(job, run)
    finally:
        Clip.image_features, Clip.tokenize = images, tokenize  # type: ignore[method-assign]
    return {"metrics": outcome.metrics, "bundle": str(outcome.bundle), "made": run.share_all(counts)}


@pytest.mark.ray
@pytest.mark.slow  # a minute, most of it the start of two workers; the loop's own test is in test_ray_run.py
def test_two_workers_share_the_work_and_find_the_same_to_the_last_bit(ray_cluster, place, tmp_path):
    job = place.job()
    found = {}
    for workers in (1, 2):
        scale = ScaleConfig(workers=workers, cpus_per_worker=1.0, storage=str(tmp_path))
        name = f"waffle-{workers}"
        options = LaunchOptions(
            name=name, folder=str(tmp_path / name), shared=str(tmp_path / f"shared-{workers}"), progress=False
        )
        found[workers] = launch(work, job, scale, options)
    one, two = found[1], found[2]
    assert two["metrics"] == one["metrics"]
    for name, tensor in load_bundle(one["bundle"]).tensors().items():
        assert torch.equal(load_bundle(two["bundle"]).tensors()[name], tensor), name
    (alone,) = one["made"]
    assert alone["images"] == NUM_TEST + NUM_VAL + NUM_PROBES
    assert sum(each["images"] for each in two["made"]) == alone["images"]
    assert all(each["images"] >= PIECE for each in two["made"])
    assert sum(each["prompts"] for each in two["made"]) == alone["prompts"]
