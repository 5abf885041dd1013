"""Bundles: a round trip returns what was saved, and any change is refused."""

import json
import math
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tenfold import bundle as bundle_module
from tenfold.bundle import (
    Bundle,
    BundleError,
    check_probe,
    git_revision,
    load_bundle,
    package_versions,
    save_bundle,
    save_trained,
)
from tenfold.types import Preprocessing, Task, TensorSchema

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7


class LinearPredictor:
    """Mean colour of an image times a weight (K, 3): small enough to check by hand."""

    task = Task.MULTI_LABEL
    classes = ("one", "two")
    preprocessing = Preprocessing(image_size=4)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

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
        "task": Task.MULTI_LABEL,
        "classes": ("one", "zwölf"),
        "preprocessing": Preprocessing(
            image_size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0), resize="crop", interpolation="bicubic"
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
    assert (metadata.method, metadata.task) == ("large_loss", Task.MULTI_LABEL)
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
    path = save(tmp_path / "b").folder / "metadata.json"
    document = json.loads(path.read_text())
    del document["digest"]
    document["files"]["../outside"] = "0" * 64
    document["digest"] = bundle_module._digest(document)
    path.write_text(bundle_module._render(document))
    with pytest.raises(BundleError, match=r"'\.\./outside'"):
        load_bundle(path.parent)


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
    with pytest.raises(BundleError, match=r"logits must be \(5, 2\) as in the probe set, got \(5, 1\)"):
        check_probe(bundle, LinearPredictor(WEIGHT[:1]))


def test_probe_that_is_absent_or_incomplete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no file 'probe\.safetensors'"):
        check_probe(save(tmp_path / "none", files={}), LinearPredictor(WEIGHT))
    half = save(tmp_path / "half", files={"probe.safetensors": to_safetensors({"logits": WEIGHT})})
    with pytest.raises(BundleError, match="lacks images or inputs"):
        check_probe(half, LinearPredictor(WEIGHT))


class Oscillator:
    """Model with named inputs: a series and a count."""

    task = Task.REGRESSION
    classes = ("height [m]",)
    inputs = (
        TensorSchema(name="series", dtype="float32", shape=(2, -1)),
        TensorSchema(name="count", dtype="int64", shape=()),
    )

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for schema in self.inputs:
            schema.check(inputs[schema.name])
        mean = (self.scale * inputs["series"].mean((1, 2)) + inputs["count"])[:, None]
        return {"mean": mean, "std": mean.abs() + 1}


SERIES = {"series": torch.arange(24.0).view(4, 2, 3), "count": torch.arange(4)}


def save_oscillator(folder: Path, predictor: Oscillator) -> Bundle:
    return save_trained(
        folder, predictor, SERIES, config={}, tensors={"weight": WEIGHT}, method="annealing", metrics={},
        data_name="swing", data_fingerprint="0",
    )  # fmt: skip


def test_a_model_with_named_inputs_stores_them_and_is_checked_on_them(tmp_path: Path) -> None:
    bundle = save_oscillator(tmp_path / "b", Oscillator())
    assert bundle == load_bundle(tmp_path / "b")
    assert bundle.metadata.inputs == Oscillator.inputs
    assert check_probe(bundle, Oscillator()) == 0.0
    with pytest.raises(BundleError, match=r"outputs\.mean differ by"):
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
        Oscillator()({**SERIES, "series": tensor})


@pytest.mark.parametrize("settings", [{"name": ""}, {"dtype": "float64"}, {"shape": (0,)}])
def test_a_schema_that_describes_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        TensorSchema(**{"name": "x", "dtype": "float32", "shape": (3,), **settings})


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
