"""A trained model on disk: a folder that is either whole and unchanged, or refused.

A bundle holds ``config.yaml`` (how to build the network), ``model.safetensors`` (its weights), ``metadata.json``
(where it came from and the SHA-256 of every other file) and extra files by name. Nothing in it is a pickle, so
reading one runs no code. ``metadata.json`` closes with a digest of itself; as it lists the checksums of all other
files, that one digest names the whole bundle.
"""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_bytes
from torch import Tensor

import tenfold
from tenfold.files import sync
from tenfold.types import Predictor, Preprocessing, RegressionPredictor, Task, TensorSchema

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.safetensors"
METADATA_FILE = "metadata.json"
PROBE_FILE = "probe.safetensors"
"""Stored probe set: ``images`` uint8 ``(P, S, S, 3)`` and the ``logits`` ``(P, K)`` that training computed for them; or
``inputs.NAME`` and ``outputs.NAME`` of a model that takes no pictures."""

_INPUT, _OUTPUT = "inputs.", "outputs."
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWN_FILES = (CONFIG_FILE, MODEL_FILE, METADATA_FILE)
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray")
_WAY_OUT = "restore the folder from where it was copied, or train again"


class BundleError(ValueError):
    """A bundle that can't be written as asked, or that is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Where a bundle comes from; all that is known of a model without reading its weights."""

    method: str
    task: Task
    classes: tuple[str, ...]
    """Names of the K outputs, in the order of the network's columns."""
    preprocessing: Preprocessing | None
    """How pictures become the network's input; None where it takes none (then ``inputs`` says what)."""
    metrics: dict[str, float]
    """Measured at the end of training; may hold NaN and infinities (stored as the texts ``nan``, ``inf``, ``-inf``)."""
    data_name: str
    data_fingerprint: str
    """Digest of the data that the metrics were measured on; metrics compare only where it is equal."""
    versions: dict[str, str]
    """Package name to version, as installed where the bundle was written."""
    git_revision: str | None
    """Commit of the source, with ``-dirty`` where tracked files had changed; None outside git."""
    created: str
    """ISO 8601 in UTC."""
    files: dict[str, str]
    """File name to SHA-256 (hex), every file but ``metadata.json`` itself."""
    inputs: tuple[TensorSchema, ...] = ()
    """What the model takes; empty where that is pictures."""

    def __post_init__(self) -> None:
        if (self.preprocessing is None) != bool(self.inputs):
            raise ValueError("a model takes either pictures, with their preprocessing, or named inputs")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder."""

    folder: Path
    config: dict[str, Any]
    metadata: Metadata
    digest: str
    """SHA-256 (hex) that names the whole content: equal digests, equal files."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become the network's input.

        Raises:
            BundleError: If the model takes none.
        """
        if self.metadata.preprocessing is None:
            inputs = ", ".join(each.name for each in self.metadata.inputs)
            raise BundleError(f"{self.folder} is of method {self.metadata.method!r} and takes no pictures but {inputs}")
        return self.metadata.preprocessing

    def tensors(self) -> dict[str, Tensor]:
        """All of ``model.safetensors``, by name, on the CPU."""
        return load_file(self.folder / MODEL_FILE)

    def file(self, name: str) -> Path:
        """Path of one file of the bundle.

        Raises:
            BundleError: If the bundle has no file of that name.
        """
        if name not in self.metadata.files:
            raise BundleError(f"{self.folder} has no file {name!r}; it holds {sorted(self.metadata.files)}")
        return self.folder / name


def save_bundle(
    folder: Path | str,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    method: str,
    task: Task,
    classes: tuple[str, ...] | list[str],
    preprocessing: Preprocessing | None,
    metrics: Mapping[str, float],
    data_name: str,
    data_fingerprint: str,
    files: Mapping[str, bytes | Path] | None = None,
    inputs: tuple[TensorSchema, ...] = (),
) -> Bundle:
    """Write a bundle in one step: ``folder`` appears whole, or not at all.

    Args:
        folder: Where the bundle is to be; must not exist. Missing parents are created.
        config: Plain data (texts, numbers, booleans, None, lists, mappings), enough to rebuild the network.
        tensors: Weights by name, on any device; tensors that share memory are stored each on its own.
        method: Name of the method that made it.
        task: What the model does.
        classes: Names of its outputs.
        preprocessing: How pictures become the network's input; None where it takes none.
        metrics: Figures measured at the end of training, NaN and infinities allowed.
        data_name: Name of the data set.
        data_fingerprint: Digest of its content.
        files: Extra files by name: their bytes, or the path of a file to copy.
        inputs: What a model takes that takes no pictures.

    Returns:
        The bundle, read back from its final place.

    Raises:
        BundleError: If the folder exists or a file name isn't a plain name.
        ValueError: If there is neither preprocessing nor inputs, or both.
        TypeError: If the config isn't plain data or a tensor isn't a tensor.
    """
    folder = Path(folder).absolute()
    files = files or {}
    _refuse_existing(folder)
    _check_extra_names(files)
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{name!r}] must be a torch.Tensor, got {type(tensor).__name__}")
    try:
        config_text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        raise TypeError(
            f"config must be plain data (texts, numbers, booleans, None, lists, mappings): {error}"
        ) from error

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the rename below stays on one file system and is therefore atomic.
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.partial"
    partial.mkdir()
    try:
        (partial / CONFIG_FILE).write_text(config_text, encoding="utf-8")
        save_file(_storable(tensors), partial / MODEL_FILE, metadata={"format": "pt"})
        # The library writes with mode 0600; another user's server must be able to read the weights too.
        (partial / MODEL_FILE).chmod((partial / CONFIG_FILE).stat().st_mode)
        for name, content in files.items():
            if isinstance(content, bytes):
                (partial / name).write_bytes(content)
            else:
                shutil.copyfile(content, partial / name)
        metadata = Metadata(
            method=method,
            task=Task(task),
            classes=tuple(classes),
            preprocessing=preprocessing,
            metrics={name: float(value) for name, value in metrics.items()},
            data_name=data_name,
            data_fingerprint=data_fingerprint,
            versions=package_versions(),
            git_revision=git_revision(Path(tenfold.__file__).parent),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: _sha256(path) for path in sorted(partial.iterdir())},
            inputs=inputs,
        )
        (partial / METADATA_FILE).write_bytes(_encode(metadata))
        for path in [*partial.iterdir(), partial]:
            sync(path)
        _refuse_existing(folder)
        try:
            partial.rename(folder)
        except OSError as error:
            # Somebody else's bundle took the place since the check above; theirs stays.
            raise BundleError(f"{folder} could not be put in place: {error}") from error
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already after the rename
    return load_bundle(folder)


def save_trained(
    folder: Path,
    predictor: Predictor | RegressionPredictor,
    probes: Tensor | Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    method: str,
    metrics: Mapping[str, float],
    data_name: str,
    data_fingerprint: str,
    files: Mapping[str, bytes | Path] | None = None,
) -> Bundle:
    """The bundle of a finished training, with its probe set; what a killed attempt left in the folder is replaced.

    Args:
        folder: Where it goes.
        predictor: The trained model on the CPU: the probes are compared where it is served, which may have no GPU.
        probes: Pictures to keep with their logits, uint8 ``(P, S, S, 3)``; or inputs by name, to keep with all outputs.
            They are computed as one batch.
        config, tensors, method, metrics, data_name, data_fingerprint, files: As in ``save_bundle``.

    Raises:
        BundleError: As in ``save_bundle``.
    """
    inputs: tuple[TensorSchema, ...] = getattr(predictor, "inputs", ())
    probe = _tensors_of_probes(probes) | _outputs_of_probes(predictor, probes)
    shutil.rmtree(folder, ignore_errors=True)
    return save_bundle(
        folder,
        config=config,
        tensors=tensors,
        method=method,
        task=predictor.task,
        classes=predictor.classes,
        preprocessing=None if inputs else getattr(predictor, "preprocessing", None),
        metrics=metrics,
        data_name=data_name,
        data_fingerprint=data_fingerprint,
        files={**(files or {}), PROBE_FILE: save_bytes(_storable(probe))},
        inputs=inputs,
    )


def load_bundle(folder: Path | str) -> Bundle:
    """Open a bundle after checking every byte of it against the checksums it was written with.

    The checksums tell damage and edits; they are no signature, and a forger who rewrites all of them goes unnoticed.

    Raises:
        BundleError: If a file is missing, surplus, truncated or changed, or the folder is no bundle.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder; a bundle is a folder with {', '.join(_OWN_FILES)}")
    path = folder / METADATA_FILE
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: {METADATA_FILE} is missing; {_WAY_OUT}")
    metadata, digest = _decode(path)

    present = {entry.name for entry in folder.iterdir()} - {METADATA_FILE}
    if missing := sorted(metadata.files.keys() - present):
        raise BundleError(f"{folder} lacks {missing}, which {METADATA_FILE} lists; {_WAY_OUT}")
    if surplus := sorted(present - metadata.files.keys()):
        raise BundleError(f"{folder} holds {surplus}, which {METADATA_FILE} does not list; move them elsewhere")
    for name, expected in metadata.files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != expected:
            raise BundleError(f"{folder / name} is not the file that was saved (its SHA-256 differs); {_WAY_OUT}")

    config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BundleError(f"{folder / CONFIG_FILE} must hold a mapping, got {type(config).__name__}")
    return Bundle(folder, config, metadata, digest)


def check_probe(bundle: Bundle, predictor: Predictor | RegressionPredictor, tolerance: float = 1e-5) -> float:
    """Show that a predictor is the model that was trained: compare its answers with those stored in training.

    Args:
        bundle: A bundle with the extra file ``probe.safetensors``: what ``save_trained`` keeps.
        predictor: Must answer with ``logits`` ``(P, K)``, or, where it takes no pictures, with all outputs stored; on
            any device.
        tolerance: Largest difference allowed, as a share of the largest number stored (of logits at least 1, of outputs
            over all of them): rounding grows with the numbers. The default is that of float32 on another batch size.

    Returns:
        The largest difference found, absolute.

    Raises:
        BundleError: If there is no probe set, a shape differs, or a difference exceeds the tolerance.
    """
    probe = load_file(bundle.file(PROBE_FILE))
    expected = {name: value for name, value in probe.items() if name == "logits" or name.startswith(_OUTPUT)}
    probes = load_probes(bundle)
    if not expected:
        raise BundleError(f"{bundle.folder / PROBE_FILE} lacks logits or outputs; it holds {sorted(probe)}")
    answers = _outputs_of_probes(predictor, probes)
    sizes = [value.abs().max().item() for value in expected.values() if value.numel()]
    allowed = tolerance * max([1.0 if "logits" in expected else 0.0, *sizes])
    largest = 0.0
    for name, stored in expected.items():
        if name not in answers:
            raise BundleError(
                f"a predictor compared with a probe set must answer with {name.removeprefix(_OUTPUT)}, "
                f"got {sorted(answers)}"
            )
        value, wanted = answers[name].detach().cpu().double(), stored.double()
        if value.shape != wanted.shape:
            raise BundleError(f"probe {name} are {tuple(wanted.shape)}, the predictor's {tuple(value.shape)}")
        difference = (value - wanted).abs().max().item() if wanted.numel() else 0.0
        if not difference <= allowed:  # also true for NaN
            raise BundleError(
                f"{bundle.folder}: the predictor's {name} differ by {difference:.3g} from those stored in training, "
                f"{allowed:.3g} is allowed; check that package versions are those of {METADATA_FILE}"
            )
        largest = max(largest, difference)
    return largest


def load_probes(bundle: Bundle) -> Tensor | dict[str, Tensor]:
    """The stored probes as a predictor takes them: pictures, or inputs by name.

    Raises:
        BundleError: If there is no probe set, or no inputs in it.
    """
    probe = load_file(bundle.file(PROBE_FILE))
    inputs = {name.removeprefix(_INPUT): value for name, value in probe.items() if name.startswith(_INPUT)}
    if not inputs and "images" not in probe:
        raise BundleError(f"{bundle.folder / PROBE_FILE} lacks images or inputs; it holds {sorted(probe)}")
    return inputs or probe["images"]


def _tensors_of_probes(probes: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(probes, Tensor):
        return {"images": probes}
    return {f"{_INPUT}{name}": value for name, value in probes.items()}


def _outputs_of_probes(
    predictor: Predictor | RegressionPredictor, probes: Tensor | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What of a predictor's answers is stored and compared."""
    predict: Any = predictor
    with torch.inference_mode():
        outputs = predict(probes)
    if isinstance(probes, Tensor):
        if "logits" not in outputs:
            raise BundleError(f"a predictor compared with a probe set must answer with logits, got {sorted(outputs)}")
        return {"logits": outputs["logits"].float()}
    return {f"{_OUTPUT}{name}": value for name, value in outputs.items()}


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that decide its numbers, without importing them; absent ones left out."""
    # Not importlib.metadata: a job that brings its own source may run beside an older installed copy.
    versions = {"tenfold": tenfold.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = package_metadata.version(package)
        except package_metadata.PackageNotFoundError:
            continue
    return versions


def git_revision(folder: Path | str) -> str | None:
    """Commit that the tracked files of a folder are at, 40 hex digits.

    Returns:
        The commit, with ``-dirty`` if a tracked file of the repository has changed; None outside git, where the
        folder holds no tracked file (an installed copy inside somebody's project), or without a git command.
    """
    # Set inside git hooks, where they would point at another repository than the folder's.
    environment = {name: value for name, value in os.environ.items() if name not in {"GIT_DIR", "GIT_WORK_TREE"}}

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", "--", "."):
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _refuse_existing(folder: Path) -> None:
    if folder.is_symlink() or folder.exists():
        raise BundleError(f"{folder} exists already; a bundle is never overwritten, so choose another folder")


def _check_extra_names(files: Mapping[str, bytes | Path]) -> None:
    # Compared in lower case: two names that differ in case only are one file on some file systems.
    taken = {name.lower() for name in _OWN_FILES}
    for name in files:
        if not _NAME.fullmatch(name):
            raise BundleError(f"a bundle's file name must match {_NAME.pattern} (no path parts), got {name!r}")
        if name.lower() in taken:
            raise BundleError(f"the file name {name!r} is taken; choose another")
        taken.add(name.lower())


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two in one storage: what the safetensors format can express."""
    seen: set[int] = set()
    storable = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage().data_ptr()
        if storage in seen:
            stored = stored.clone()
        seen.add(storage)
        storable[name] = stored
    return storable


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(document).encode()).hexdigest()


def _encode(metadata: Metadata) -> bytes:
    document = {"format": _FORMAT, **asdict(metadata)}
    # JSON has no NaN and no infinity; as texts they survive, and Python's float() reads them back.
    document["metrics"] = {
        name: value if math.isfinite(value) else str(value) for name, value in metadata.metrics.items()
    }
    return _render({**document, "digest": _digest(document)}).encode()


def _decode(path: Path) -> tuple[Metadata, str]:
    """Metadata and digest of a ``metadata.json``, which must be byte for byte what ``_encode`` gave."""
    content = path.read_bytes()
    changed = BundleError(f"{path} is not the file that was saved (its own digest differs); {_WAY_OUT}")
    try:
        document = json.loads(content)
        digest = document.pop("digest")
        # Rendered again and compared as bytes: white space and the order of keys count too.
        unchanged = digest == _digest(document) and _render({**document, "digest": digest}).encode() == content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise changed from error
    if not unchanged:
        raise changed
    if document.pop("format", None) != _FORMAT:
        raise BundleError(
            f"{path} has another format than {_FORMAT}: read it with the version of tenfold that wrote it"
        )
    try:
        preprocessing = document["preprocessing"]
        metadata = Metadata(
            **{
                **document,
                "task": Task(document["task"]),
                "classes": tuple(document["classes"]),
                "preprocessing": None if preprocessing is None else _preprocessing(preprocessing),
                "inputs": tuple(
                    TensorSchema(**{**each, "shape": tuple(each["shape"])})
                    for each in document.get("inputs", ())  # bundles of before took pictures
                ),
                "metrics": {name: float(value) for name, value in document["metrics"].items()},
                "files": dict(document["files"]),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is well formed but describes no bundle: {error!r}") from error
    if not {CONFIG_FILE, MODEL_FILE} <= metadata.files.keys():
        raise BundleError(f"{path} must list {CONFIG_FILE} and {MODEL_FILE}, got {sorted(metadata.files)}")
    for name in metadata.files:
        if not _NAME.fullmatch(name):
            raise BundleError(f"{path} lists the file name {name!r}, which is no plain name; {_WAY_OUT}")
    return metadata, digest


def _preprocessing(stored: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(
        image_size=stored["image_size"],
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        resize=stored.get("resize", "stretch"),  # bundles of before did not say
        interpolation=stored.get("interpolation", "bilinear"),
    )
