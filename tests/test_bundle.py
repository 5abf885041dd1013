"""Bundles: a round trip returns what was saved, and any change is refused."""

import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tenfold import bundle as bundle_module
from tenfold.bundle import (
    Bundle,
    BundleError,
    check_probe,
    git_revision,
    load_bundle,
    load_probes,
    package_versions,
    save_bundle,
    save_trained,
)
from tenfold.catalog import load_predictor
from tenfold.methods.gradient_uncertainty.predictor import PosteriorPredictor
from tenfold.methods.large_loss.predictor import MultiLabelPredictor, plain_classifier
from tenfold.methods.posterior_annealing.predictor import RegressionEnsemble
from tenfold.models.digit_cnn import DIGIT_SIZE, DigitCnnConfig, build_digit_cnn
from tenfold.models.image_classifier import ModelConfig
from tenfold.models.regressors.build import RegressorConfig, build_regressor
from tenfold.tasks import OUTSIDE, Pixels, Slot, classification, multi_label, prompts_by_class, regression
from tenfold.types import Preprocessing, Task

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7


class LinearPredictor:
    """Mean colour of an image times a weight (K, 3): small enough to check by hand."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.signature = multi_label(tuple("ab")[: len(weight)], Preprocessing(image_size=4))

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        logits = images.float().mean(dim=(1, 2)) / 255 @ self.weight.T
        return {"logits": logits, "probs": logits.sigmoid()}


def probe(weight: Tensor = WEIGHT) -> bytes:
    images = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return to_safetensors({"images": images, "logits": LinearPredictor(weight)(images)["logits"]})


def save(folder: Path, **changes: Any) -> bundle_module.Bundle:
    arguments: dict[str, Any] = {
        "config": {"backbone": "tiny", "rates": [1e-5, 0.5], "nested": {"on": True, "nothing": None}},
        "tensors": {"weight": WEIGHT},
        "method": "large_loss",
        "signature": multi_label(
            ("one", "zwölf"),
            Preprocessing(
                image_size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), resize="crop", interpolation="bicubic"
            ),
        ),
        "metrics": {"map": 0.1 + 0.2, "loss": math.nan, "worst": -math.inf},
        "data_name": "scenes",
        "data_fingerprint": "f" * 64,
        "files": {"probe.safetensors": probe(), "notes.txt": b"two lines\nof text\n"},
    }
    return save_bundle(folder, **{**arguments, **changes})


def test_everything_comes_back(tmp_path: Path) -> None:
    copied = tmp_path / "figure.png"
    copied.write_bytes(bytes(range(256)))
    saved = save(tmp_path / "new" / "b", files={"figure.png": copied, "notes.txt": b"n"})
    loaded = load_bundle(str(tmp_path / "new" / "b"))

    assert loaded.config == {"backbone": "tiny", "rates": [1e-5, 0.5], "nested": {"on": True, "nothing": None}}
    assert torch.equal(loaded.tensors()["weight"], WEIGHT)
    assert loaded.file("figure.png").read_bytes() == bytes(range(256))
    metadata = loaded.metadata
    assert (metadata.method, metadata.task, metadata.format) == ("large_loss", Task.MULTI_LABEL, 2)
    assert metadata.signature == saved.metadata.signature
    assert metadata.classes == ("one", "zwölf")
    assert metadata.preprocessing == Preprocessing(
        image_size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), resize="crop", interpolation="bicubic"
    )
    assert metadata.metrics["map"] == 0.1 + 0.2
    assert math.isnan(metadata.metrics["loss"])
    assert metadata.metrics["worst"] == -math.inf
    assert set(metadata.files) == {"config.yaml", "model.safetensors", "figure.png", "notes.txt"}
    assert metadata.versions == package_versions()
    assert metadata.created.endswith("+00:00")
    assert loaded.digest == saved.digest
    # Strict JSON has no NaN: readers in other languages must be able to parse it.
    json.loads((loaded.folder / "metadata.json").read_text(), parse_constant=pytest.fail)


def test_tensors_on_shared_storage_and_views_are_stored_each_on_its_own(tmp_path: Path) -> None:
    tied = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": tied, "b": tied, "row": tied[1], "transposed": tied.T, "half": tied.bfloat16(), "empty": tied[:0]}
    loaded = save(tmp_path / "b", tensors=tensors).tensors()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_all_files_are_readable_by_the_same_people(tmp_path: Path) -> None:
    folder = save(tmp_path / "b").folder
    plain = tmp_path / "plain"
    plain.touch()  # what the umask gives
    assert {path.stat().st_mode for path in folder.iterdir()} == {plain.stat().st_mode}


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "metadata.json", "notes.txt"])
def test_any_changed_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "b").folder / name
    content = path.read_bytes()
    # Every byte of small files; large ones at a stride that covers header and payload.
    for position in range(0, len(content), max(1, len(content) // 97)):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=re.escape(str(path))):
            load_bundle(path.parent)
    path.write_bytes(content)
    load_bundle(path.parent)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "metadata.json", "probe.safetensors"])
def test_truncated_and_lengthened_files_are_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "b").folder / name
    content = path.read_bytes()
    for other in (content[:-1], content[: len(content) // 2], b"", content + b"\n"):
        path.write_bytes(other)
        with pytest.raises(BundleError, match=re.escape(name)):
            load_bundle(path.parent)


def test_metadata_with_the_same_meaning_in_other_bytes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "b").folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(BundleError, match=r"metadata\.json is not the file that was saved"):
        load_bundle(path.parent)


@pytest.mark.parametrize("name", ["config.yaml", "metadata.json", "notes.txt"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "b").folder / name
    path.unlink()
    with pytest.raises(BundleError, match=re.escape(name)):
        load_bundle(path.parent)


def test_surplus_file_and_folder_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "b").folder
    (folder / "model.pkl").write_bytes(b"")
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match=r"\['model\.pkl', 'more'\]"):
        load_bundle(folder)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_text(""), lambda p: p.mkdir()])
def test_what_is_no_bundle_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "b")
    with pytest.raises(BundleError, match=r"metadata\.json"):
        load_bundle(tmp_path / "b")


def test_metadata_that_points_outside_is_refused_even_with_a_right_digest(tmp_path: Path) -> None:
    folder = save(tmp_path / "b").folder
    with pytest.raises(BundleError, match=r"'\.\./outside'"):
        load_bundle(rewrite(folder, lambda document: document["files"].update({"../outside": "0" * 64})))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the metadata of a bundle and its digest with them."""
    path = folder / "metadata.json"
    document = json.loads(path.read_text())
    del document["digest"]
    change(document)
    path.write_text(bundle_module._render({**document, "digest": bundle_module._digest(document)}))
    return folder


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = rewrite(save(tmp_path / "b").folder, lambda document: document.update(format=3))
    message = "must have format 2, or 1, got 3; read it with the version of tenfold that wrote it"
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("signature"),
        lambda document: document.update(signature="images"),
        lambda document: document["signature"].update(inputs=[]),
        lambda document: document["signature"].update(task="oracle"),
        lambda document: document["signature"]["inputs"][0].update(dtype="complex64"),
        lambda document: document["signature"]["outputs"][0].update(colour="red"),
        lambda document: document.update(more=1),
        lambda document: document.update(files={}),
    ],
)
def test_metadata_that_describe_no_model_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(BundleError, match=r"does not describe a bundle|must list config\.yaml"):
        load_bundle(rewrite(save(tmp_path / "b").folder, change))


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc/x", "", ".hidden", "a b", "a\n", "a\x00", "ä.txt"])
def test_extra_names_with_path_parts_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="file name"):
        save(tmp_path / "b", files={name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metadata.json", "Config.yaml"])
def test_extra_names_that_are_taken_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="is taken"):
        save(tmp_path / "b", files={name: b""})


def test_asking_for_a_file_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no file '\.\./b/notes\.txt'; it holds .*notes\.txt"):
        save(tmp_path / "b").file("../b/notes.txt")


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    first = save(tmp_path / "b")
    with pytest.raises(BundleError, match="exists already"):
        save(tmp_path / "b", method="other")
    assert load_bundle(tmp_path / "b").digest == first.digest
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        save(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "empty"]


def test_rival_that_appears_while_saving_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = save(tmp_path / "rival", method="rival")

    def look_away(folder: Path) -> None:
        if not folder.exists():
            os.rename(rival.folder, folder)

    monkeypatch.setattr(bundle_module, "_refuse_existing", look_away)
    with pytest.raises(BundleError, match="could not be put in place"):
        save(tmp_path / "b")
    assert load_bundle(tmp_path / "b").metadata.method == "rival"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("step", ["save_file", "_encode", "sync"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    def stop(*arguments: Any, **named: Any) -> None:
        raise error("stopped here")

    monkeypatch.setattr(bundle_module, step, stop)
    with pytest.raises(error, match="stopped here"):
        save(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "b", files={"figure.png": tmp_path / "absent.png"})
    assert list(tmp_path.iterdir()) == []


def test_config_that_is_not_plain_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="config must be plain data"):
        save(tmp_path / "b", config={"where": tmp_path})
    with pytest.raises(TypeError, match=r"tensors\['w'\] must be a torch\.Tensor, got list"):
        save(tmp_path / "b", tensors={"w": [1.0]})
    assert list(tmp_path.iterdir()) == []


def test_probe_tells_the_trained_model_from_another(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    assert check_probe(bundle, LinearPredictor(bundle.tensors()["weight"])) == 0
    # Logits are colours in [0, 1] times the weight: a shift of 1e-6 moves them by at most 3e-6, 1e-2 by far more.
    assert 0 < check_probe(bundle, LinearPredictor(WEIGHT + 1e-6)) <= 3.1e-6
    with pytest.raises(BundleError, match=r"differ by 0\.0\d+ from those stored in training"):
        check_probe(bundle, LinearPredictor(WEIGHT + 1e-2))
    with pytest.raises(BundleError, match="differ by nan"):
        check_probe(bundle, LinearPredictor(WEIGHT * math.nan))
    with pytest.raises(BundleError, match=r"probs must be float32 \(B, 2\), got float32 \(5, 1\)"):
        check_probe(bundle, LinearPredictor(WEIGHT[:1]))
    many = save(
        tmp_path / "many", signature=classification(tuple("ab"), Preprocessing(image_size=4), prompt_template="{}")
    )
    with pytest.raises(BundleError, match=r"logits must be \(5, 2\) as in the probe set, got \(5, 1\)"):
        check_probe(many, LinearPredictor(WEIGHT[:1]))


class Renamed(LinearPredictor):
    """A predictor whose outputs are not those of its signature."""

    def __init__(self, change: Callable[[dict[str, Tensor]], Any]) -> None:
        super().__init__(WEIGHT)
        self.change = change

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        outputs = {**super().__call__(images)}
        self.change(outputs)
        return outputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs.pop("probs"), "outputs must be probs, logits, got logits"),
        (lambda outputs: outputs.update(more=WEIGHT), "outputs must be probs, logits, got logits, more, probs"),
        (
            lambda outputs: outputs.update(probs=outputs["probs"].double()),
            r"probs must be float32 \(B, 2\), got float64",
        ),
        (lambda outputs: outputs.update(probs=outputs["probs"][:1]), "outputs must have one row for each example"),
    ],
)
def test_outputs_that_are_not_those_of_the_signature_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    bundle = save(tmp_path / "b")
    with pytest.raises(BundleError, match=message):
        check_probe(bundle, Renamed(change))
    with pytest.raises(BundleError, match=message):
        save_with_probes(tmp_path / "c", Renamed(change), torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    assert not (tmp_path / "c").exists()


def test_probe_that_is_absent_or_incomplete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no file 'probe\.safetensors'"):
        check_probe(save(tmp_path / "none", files={}), LinearPredictor(WEIGHT))
    half = save(tmp_path / "half", files={"probe.safetensors": to_safetensors({"logits": WEIGHT})})
    with pytest.raises(BundleError, match=r"lacks inputs or outputs; it holds \['logits'\]"):
        check_probe(half, LinearPredictor(WEIGHT))


class Oscillator:
    """Model with named inputs: a series and a count."""

    inputs = (
        Slot(name="series", dtype="float32", shape=(2, -1)),
        Slot(name="count", dtype="int64"),
    )
    signature = regression(("height [m]",), inputs)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, *, series: Tensor, count: Tensor, level: float | None = None) -> dict[str, Tensor]:
        self.signature.check_inputs({"series": series, "count": count})
        mean = (self.scale * series.mean((1, 2)) + count)[:, None]
        return {"mean": mean, "std": mean.abs() + 1}


SERIES = {"series": torch.arange(24.0).view(4, 2, 3), "count": torch.arange(4)}


def save_with_probes(folder: Path, predictor: Any, probes: Any, **changes: Any) -> Bundle:
    arguments: dict[str, Any] = {
        "config": {}, "tensors": {"weight": WEIGHT}, "method": "annealing", "metrics": {}, "data_name": "swing",
        "data_fingerprint": "0",
    }  # fmt: skip
    return save_trained(folder, predictor, probes, **{**arguments, **changes})


def save_oscillator(folder: Path, predictor: Oscillator) -> Bundle:
    return save_with_probes(folder, predictor, SERIES)


def test_a_model_with_named_inputs_stores_them_and_is_checked_on_them(tmp_path: Path) -> None:
    bundle = save_oscillator(tmp_path / "b", Oscillator())
    assert bundle == load_bundle(tmp_path / "b")
    assert bundle.metadata.signature == Oscillator.signature
    (probes,) = load_probes(bundle)
    assert all(torch.equal(probes[name], value) for name, value in SERIES.items())
    assert check_probe(bundle, Oscillator()) == 0.0
    with pytest.raises(BundleError, match="the predictor's mean differ by"):
        check_probe(bundle, Oscillator(1.001))
    with pytest.raises(BundleError, match="must take images, got method 'annealing' with inputs series, count"):
        _ = bundle.preprocessing


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "half").write_text("")
    assert check_probe(save_oscillator(tmp_path / "b", Oscillator()), Oscillator()) == 0.0


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 2, 3).double(), r"series must be float32 \(B, 2, any\), got float64 \(4, 2, 3\)"),
        (torch.zeros(4, 3, 3), r"got float32 \(4, 3, 3\)"),
        (torch.zeros(4, 2), r"got float32 \(4, 2\)"),
    ],
)
def test_an_input_of_another_form_is_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Oscillator()(**{**SERIES, "series": tensor})


class Open:
    """An open-vocabulary model with a score and a decision: its prototypes are the lengths of the prompts."""

    signature = classification(
        ("one", "two"), Preprocessing(image_size=4), scores=("doubt", OUTSIDE), prompt_template="a {}"
    )

    def __init__(self, scale: float = 1.0, threshold: float = 2.0) -> None:
        self.scale, self.threshold = scale, threshold

    def __call__(
        self,
        images: Tensor,
        classes: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        prompt_classes: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        asked = prompts_by_class("a {}", classes, prompts, prompt_classes)
        scale = 1.0 if asked is None else self.scale
        lengths = [3.0, 4.0] if asked is None else [float(sum(map(len, texts))) for texts in asked.values()]
        doubt = images.float().mean((1, 2, 3)) / 255
        logits = scale * doubt[:, None] * torch.tensor(lengths)
        outside = (doubt > self.threshold).float()
        return {"probs": logits.softmax(1), "logits": logits, "doubt": doubt, "outside": outside}


IMAGES = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
COMBINATIONS = [
    {"images": IMAGES},
    {"images": IMAGES[:2], "classes": ["cat", "zwölf"]},
    {"images": IMAGES[:1], "prompts": ["a big cat", "a dog", "a cat"], "prompt_classes": ["cat", "dog", "cat"]},
]


def test_every_named_combination_of_inputs_is_stored_and_compared(tmp_path: Path) -> None:
    bundle = save_with_probes(tmp_path / "b", Open(), COMBINATIONS)
    found = load_probes(bundle)
    assert [list(each) for each in found] == [list(each) for each in COMBINATIONS]
    for loaded, given in zip(found, COMBINATIONS, strict=True):
        for name, value in given.items():
            assert torch.equal(loaded[name], value) if isinstance(value, Tensor) else loaded[name] == value
    assert check_probe(bundle, Open()) == 0.0
    assert check_probe(bundle, Open(threshold=0.0)) == 0.0  # a decision is not compared
    with pytest.raises(BundleError, match="differ by"):
        check_probe(bundle, Open(scale=1.01))  # which shows with the caller's classes alone


def test_every_output_is_compared(tmp_path: Path) -> None:
    class Doubtful(Open):
        def __call__(self, *images: Any, **inputs: Any) -> dict[str, Tensor]:
            outputs = super().__call__(*images, **inputs)
            return {**outputs, "doubt": outputs["doubt"] + 0.01}

    with pytest.raises(BundleError, match=r"the predictor's doubt differ by 0\.01"):
        check_probe(save_with_probes(tmp_path / "b", Open(), COMBINATIONS), Doubtful())


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ([], "at least one combination"),
        ({"pictures": IMAGES}, r"inputs must be images, classes \(optional\), .* got pictures"),
        ({"images": IMAGES.float()}, "images must be uint8"),
        ({"images": IMAGES, "classes": "cat"}, "classes must be a list of texts, got 'cat'"),
        ({"images": IMAGES, "classes": []}, "classes must be a list of at least one text"),
    ],
)
def test_probes_that_are_no_inputs_of_the_model_are_refused(tmp_path: Path, probes: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        save_with_probes(tmp_path / "b", Open(), probes)
    assert not (tmp_path / "b").exists()


def earlier_bundle(folder: Path, tensors: Mapping[str, Tensor], probe: Mapping[str, Tensor], **fields: Any) -> Bundle:
    """Write a bundle as format 1 was, by hand."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(fields.pop("config")))
    (folder / "model.safetensors").write_bytes(to_safetensors({name: each.clone() for name, each in tensors.items()}))
    if probe:
        (folder / "probe.safetensors").write_bytes(to_safetensors({name: each.clone() for name, each in probe.items()}))
    document = {
        "format": 1, "metrics": {"loss": "nan"}, "data_name": "made", "data_fingerprint": "0", "versions": {},
        "git_revision": None, "created": "2025-01-01T00:00:00+00:00", **fields,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())},
    }  # fmt: skip
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    document["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "metadata.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return load_bundle(folder)


def test_a_bundle_of_labels_of_format_1_loads_and_predicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ModelConfig(name="small_cnn", pretrained=False)
    predictor = MultiLabelPredictor(plain_classifier({}, settings, 2, 32), ("one", "zwölf"), "cpu")
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    preprocessing = asdict(predictor.preprocessing)
    del preprocessing["resize"], preprocessing["interpolation"]  # older still
    bundle = earlier_bundle(
        tmp_path / "b", predictor.model.state_dict(), {"images": images, "logits": predictor(images)["logits"]},
        config={"method": {"name": "large_loss"}, "model": asdict(settings)}, method="large_loss", task="multi_label",
        classes=["one", "zwölf"], preprocessing=preprocessing,
    )  # fmt: skip
    assert bundle.metadata.format == 1
    assert bundle.metadata.signature == multi_label(("one", "zwölf"), predictor.preprocessing)  # not that it explains
    assert bundle.preprocessing == predictor.preprocessing
    assert math.isnan(bundle.metadata.metrics["loss"])
    loaded = load_predictor(bundle)
    assert loaded.signature == predictor.signature
    assert check_probe(bundle, loaded) == 0.0
    (probes,) = load_probes(bundle)
    assert torch.equal(probes["images"], images)
    answer = loaded(images, explain=True)
    assert torch.equal(answer["attributions"], predictor.explain(images)["attributions"])


def test_a_bundle_of_classes_with_scores_of_format_1_loads_and_predicts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DigitCnnConfig(channels=(2, 2, 2), hidden=4)
    network = build_digit_cnn(config, 3)
    members = {name: value.detach()[None] for name, value in network.named_parameters()}
    predictor = PosteriorPredictor(network, members, tuple("abc"), threshold=0.5, false_positive_rate=0.05)
    images = torch.randint(0, 256, (2, DIGIT_SIZE, DIGIT_SIZE, 3), dtype=torch.uint8)
    bundle = earlier_bundle(
        tmp_path / "b",
        {**{f"members.{name}": value for name, value in members.items()}, "threshold": torch.tensor(0.5).double()},
        {"images": images, "logits": predictor(images)["logits"]},
        config={
            "method": {"name": "gradient_uncertainty"}, "model": asdict(config) | {"channels": list(config.channels)},
        },
        method="gradient_uncertainty", task="classification", classes=list("abc"),
        preprocessing=asdict(predictor.preprocessing), inputs=[],
    )  # fmt: skip
    assert bundle.metadata.signature == classification(tuple("abc"), predictor.preprocessing)
    loaded = load_predictor(bundle)
    assert loaded.signature == predictor.signature
    assert check_probe(bundle, loaded) == 0.0
    assert torch.equal(loaded(images)["predictive_entropy"], predictor(images)["predictive_entropy"])


@pytest.mark.parametrize("with_probes", [True, False])
def test_a_bundle_of_regression_of_format_1_loads_and_predicts(tmp_path: Path, with_probes: bool) -> None:
    torch.manual_seed(0)
    settings = RegressorConfig(name="cnn2d_sr_small", widths=(4, 4, 4), upscale=2)
    inputs = (Slot(name="input", dtype="float32", shape=(3, -1, -1), image=Pixels(max_value=1.0)),)
    network = build_regressor(settings, inputs, 3)
    predictor = RegressionEnsemble(
        [network], inputs=inputs, classes=("r", "g", "b"), mean=torch.zeros(3), std=torch.ones(3),
    )  # fmt: skip
    given = torch.rand(2, 3, 4, 6)
    answer = predictor(input=given)
    probe = {"inputs.input": given, **{f"outputs.{name}": value for name, value in answer.items()}}
    bundle = earlier_bundle(
        tmp_path / "b",
        {
            **{f"member0.{name}": value for name, value in network.state_dict().items()},
            "target.mean": torch.zeros(3), "target.std": torch.ones(3), "target.scale": torch.tensor(1.0),
        },
        probe if with_probes else {},
        config={
            "method": {"name": "posterior_annealing"}, "model": {**asdict(settings), "widths": [4, 4, 4]},
        },
        method="posterior_annealing", task="regression", classes=["r", "g", "b"], preprocessing=None,
        inputs=[{"name": "input", "dtype": "float32", "shape": [3, -1, -1], "max_value": 1.0}],
    )  # fmt: skip
    signature = bundle.metadata.signature
    parts = ("aleatoric", "epistemic")
    assert signature == regression(("r", "g", "b"), inputs, (3, -1, -1), parts if with_probes else ())
    loaded = load_predictor(bundle)
    assert loaded.signature == predictor.signature
    assert torch.equal(loaded(input=given)["std"], answer["std"])
    assert (loaded(input=given, level=0.9)["lower"] < answer["mean"]).all()
    if with_probes:
        assert check_probe(bundle, loaded) == 0.0
        assert [list(each) for each in load_probes(bundle)] == [["input"]]


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "retrieval", "preprocessing": asdict(Preprocessing(image_size=4))},
        {"task": "multi_label", "preprocessing": None},
        {"task": "regression", "preprocessing": asdict(Preprocessing(image_size=4))},
    ],
)
def test_metadata_of_format_1_that_describe_no_model_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="does not describe a bundle"):
        earlier_bundle(tmp_path / "b", {"weight": WEIGHT}, {}, config={}, method="calm", classes=["a"], **fields)


def test_git_revision(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", "-C", str(tmp_path), *identity, *arguments], text=True).strip()

    assert git_revision(tmp_path) is None
    git("init", "-q")
    assert git_revision(tmp_path) is None  # no commit yet
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert git_revision(source) == commit
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "log").write_text("untracked files are no change of the source")
    assert git_revision(source) == commit
    assert git_revision(tmp_path / "outputs") is None  # nothing tracked there: not this repository's code
    (source / "a.py").write_text("2")
    assert git_revision(source) == f"{commit}-dirty"


def test_package_versions_are_those_that_run() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"tenfold", "numpy"} <= versions.keys()


@pytest.mark.parametrize(("name", "content"), [("config.yaml", b"a: [1"), ("config.yaml", b"\xff\xfe\x00")])
def test_a_file_that_is_no_yaml_is_refused_even_with_a_right_checksum(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = save(tmp_path / "b").folder
    (folder / name).write_bytes(content)

    def change(document: dict[str, Any]) -> None:
        document["files"][name] = hashlib.sha256(content).hexdigest()

    with pytest.raises(BundleError, match="must be YAML"):
        load_bundle(rewrite(folder, change))


def test_a_probe_file_that_is_none_is_refused_even_with_a_right_checksum(tmp_path: Path) -> None:
    folder = save(tmp_path / "b", files={"probe.safetensors": b"nothing of the kind"}).folder
    with pytest.raises(BundleError, match="must be a probe set"):
        load_probes(load_bundle(folder))
