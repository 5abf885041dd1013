"""Bundles: a trained model as a folder that loads only if it is complete and unchanged.

A bundle holds ``config.yaml`` (settings to rebuild the network), ``model.safetensors`` (its weights),
``metadata.json`` (its origin and the SHA-256 of every other file) and extra files by name. Nothing in it is a pickle,
so loading one runs no code. ``metadata.json`` ends with a digest of itself; because it lists the checksums of all
other files, that one digest identifies the whole bundle.
"""

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
from tenfold.hashing import file_sha256, text_sha256
from tenfold.types import Predictor, Preprocessing, RegressionPredictor, Task, TensorSchema

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.safetensors"
METADATA_FILE = "metadata.json"
PROBE_FILE = "probe.safetensors"
"""Probe set: ``images`` uint8 ``(P, S, S, 3)`` and the ``logits`` ``(P, K)`` that training computed for them; or
``inputs.NAME`` and ``outputs.NAME`` of a model with named inputs."""

_INPUT, _OUTPUT = "inputs.", "outputs."
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWN_FILES = (CONFIG_FILE, MODEL_FILE, METADATA_FILE)
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray")
_WAY_OUT = "restore the folder from its source, or train again"


class BundleError(ValueError):
    """A bundle can't be written as requested, or is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Origin and interface of a model, known without reading its weights."""

    method: str
    task: Task
    classes: tuple[str, ...]
    """Names of the K outputs, in the order of the network's columns."""
    preprocessing: Preprocessing | None
    """Conversion of images to the network's input; None for a model with named ``inputs``."""
    metrics: dict[str, float]
    """Metrics at the end of training; NaN and infinities are stored as the strings ``nan``, ``inf`` and ``-inf``."""
    data_name: str
    data_fingerprint: str
    """Digest of the data behind the metrics; metrics are comparable only where it is equal."""
    versions: dict[str, str]
    """Package name to version, as installed where the bundle was written."""
    git_revision: str | None
    """Commit of the source, with ``-dirty`` if tracked files had changed; None outside git."""
    created: str
    """Creation time, ISO 8601 in UTC."""
    files: dict[str, str]
    """File name to SHA-256 (hex) of every file except ``metadata.json``."""
    inputs: tuple[TensorSchema, ...] = ()
    """Named inputs of the model; empty for a model that takes images."""

    def __post_init__(self) -> None:
        if (self.preprocessing is None) != bool(self.inputs):
            raise ValueError(
                "a model must have either preprocessing, for images, or named inputs, "
                f"got {self.preprocessing} and {self.inputs}"
            )


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder."""

    folder: Path
    config: dict[str, Any]
    metadata: Metadata
    digest: str
    """SHA-256 (hex) of the whole content: equal digests mean equal files."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Conversion of images to the network's input.

        Raises:
            BundleError: If the model does not take images.
        """
        if self.metadata.preprocessing is None:
            inputs = ", ".join(each.name for each in self.metadata.inputs)
            raise BundleError(
                f"{self.folder} must take images, got method {self.metadata.method!r} with inputs {inputs}"
            )
        return self.metadata.preprocessing

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of ``model.safetensors``, by name, on the CPU."""
        return load_file(self.folder / MODEL_FILE)

    def file(self, name: str) -> Path:
        """Return the path of one file of the bundle.

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
    """Write a bundle atomically: ``folder`` appears complete, or not at all.

    Args:
        folder: Folder of the bundle; must not exist. Missing parents are created.
        config: Plain data (strings, numbers, booleans, None, lists, mappings), enough to rebuild the network.
        tensors: Weights by name, on any device; tensors that share memory are stored separately.
        method: Name of the method that trained it.
        task: Task of the model.
        classes: Names of its outputs.
        preprocessing: Conversion of images to the network's input; None for a model with named inputs.
        metrics: Metrics at the end of training, NaN and infinities allowed.
        data_name: Name of the data set.
        data_fingerprint: Digest of its content.
        files: Extra files by name: their bytes, or the path of a file to copy.
        inputs: Named inputs of a model that does not take images.

    Returns:
        The bundle, read back from its final place.

    Raises:
        BundleError: If the folder exists or a file name has path parts or unusual characters.
        ValueError: If there is neither preprocessing nor inputs, or both.
        TypeError: If the config isn't plain data or a value of ``tensors`` isn't a tensor.
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
            f"config must be plain data (strings, numbers, booleans, None, lists, mappings): {error}"
        ) from error

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the rename below stays on one file system and is therefore atomic.
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}.partial"
    partial.mkdir()
    try:
        (partial / CONFIG_FILE).write_text(config_text, encoding="utf-8")
        save_file(_storable(tensors), partial / MODEL_FILE, metadata={"format": "pt"})
        # safetensors writes with mode 0600; another user's server must be able to read the weights too.
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
            files={path.name: file_sha256(path) for path in sorted(partial.iterdir())},
            inputs=inputs,
        )
        (partial / METADATA_FILE).write_bytes(_encode(metadata))
        for path in [*partial.iterdir(), partial]:
            sync(path)
        _refuse_existing(folder)
        try:
            partial.rename(folder)
        except OSError as error:
            # Another process put a bundle there since the check above; it stays.
            raise BundleError(f"{folder} could not be put in place: {error}") from error
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # already gone after the rename
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
    """Write the bundle of a finished training with its probe set, replacing the leftovers of an interrupted attempt.

    Args:
        folder: Folder of the bundle.
        predictor: The trained model on the CPU: the machine that serves it and compares the probes may have no GPU.
        probes: Images to store with their logits, uint8 ``(P, S, S, 3)``; or inputs by name, to store with all outputs.
            The answers are computed as one batch.
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
    """Open a bundle after verifying every file against the checksums written with it.

    The checksums detect damage and edits; they are not a signature: a forger who rewrites all of them goes undetected.

    Raises:
        BundleError: If a file is missing, surplus, truncated or changed, or the folder is not a bundle.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise BundleError(f"{folder} must be a folder with {', '.join(_OWN_FILES)}; there is none")
    path = folder / METADATA_FILE
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: {METADATA_FILE} is missing; {_WAY_OUT}")
    metadata, digest = _decode(path)

    present = {entry.name for entry in folder.iterdir()} - {METADATA_FILE}
    if missing := sorted(metadata.files.keys() - present):
        raise BundleError(f"{folder} lacks {missing}, which {METADATA_FILE} lists; {_WAY_OUT}")
    if surplus := sorted(present - metadata.files.keys()):
        raise BundleError(f"{folder} holds {surplus}, which {METADATA_FILE} does not list; move them elsewhere")
    for name, expected in metadata.files.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise BundleError(f"{folder / name} is not the file that was saved (its SHA-256 differs); {_WAY_OUT}")

    config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BundleError(f"{folder / CONFIG_FILE} must hold a mapping, got {type(config).__name__}")
    return Bundle(folder, config, metadata, digest)


def check_probe(bundle: Bundle, predictor: Predictor | RegressionPredictor, tolerance: float = 1e-5) -> float:
    """Check that a predictor is the trained model: compare its outputs on the probes with those stored in training.

    Args:
        bundle: A bundle with the extra file ``probe.safetensors``, as ``save_trained`` writes it.
        predictor: Must return ``logits`` ``(P, K)`` for images, or all stored outputs for named inputs; on any device.
        tolerance: Largest allowed difference, relative to the largest stored magnitude over all outputs (for logits at
            least 1), because rounding grows with magnitude. The default suits float32 at another batch size.

    Returns:
        The largest absolute difference.

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
                f"a predictor compared with a probe set must return {name.removeprefix(_OUTPUT)}, got {sorted(answers)}"
            )
        value, wanted = answers[name].detach().cpu().double(), stored.double()
        if value.shape != wanted.shape:
            raise BundleError(f"{name} must be {tuple(wanted.shape)} as in the probe set, got {tuple(value.shape)}")
        difference = (value - wanted).abs().max().item() if wanted.numel() else 0.0
        if not difference <= allowed:  # also true for NaN
            raise BundleError(
                f"{bundle.folder}: the predictor's {name} differ by {difference:.3g} from those stored in training, "
                f"{allowed:.3g} is allowed; check that the package versions match those in {METADATA_FILE}"
            )
        largest = max(largest, difference)
    return largest


def load_probes(bundle: Bundle) -> Tensor | dict[str, Tensor]:
    """Return the stored probes as a predictor takes them: images, or inputs by name.

    Raises:
        BundleError: If there is no probe set, or it holds no inputs.
    """
    probe = load_file(bundle.file(PROBE_FILE))
    inputs = {name.removeprefix(_INPUT): value for name, value in probe.items() if name.startswith(_INPUT)}
    if not inputs and "images" not in probe:
        raise BundleError(f"{bundle.folder / PROBE_FILE} lacks images or inputs; it holds {sorted(probe)}")
    return inputs or probe["images"]


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of those that affect its numbers, as far as they are installed."""
    # Not importlib.metadata: a job that ships its own source may run beside an older installed copy.
    versions = {"tenfold": tenfold.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = package_metadata.version(package)
        except package_metadata.PackageNotFoundError:
            continue
    return versions


def git_revision(folder: Path | str) -> str | None:
    """Return the commit of the tracked files of a folder, 40 hex digits.

    Returns:
        The commit, with ``-dirty`` if a tracked file of the repository has changed; None outside git, if the folder
        holds no tracked file (an installed copy inside another project), or without a git command.
    """
    # Git hooks set these variables, which would point to another repository than the folder's.
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
        raise BundleError(f"{folder} exists already and a bundle is never overwritten; choose another folder")


def _check_extra_names(files: Mapping[str, bytes | Path]) -> None:
    # Compared in lower case: names that differ only in case are one file on some file systems.
    taken = {name.lower() for name in _OWN_FILES}
    for name in files:
        if not _NAME.fullmatch(name):
            raise BundleError(f"a bundle's file name must match {_NAME.pattern} (no path parts), got {name!r}")
        if name.lower() in taken:
            raise BundleError(f"the file name {name!r} is taken; choose another")
        taken.add(name.lower())


def _tensors_of_probes(probes: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(probes, Tensor):
        return {"images": probes}
    return {f"{_INPUT}{name}": value for name, value in probes.items()}


def _outputs_of_probes(
    predictor: Predictor | RegressionPredictor, probes: Tensor | Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the outputs of a predictor that are stored and compared: the logits for images, else all of them."""
    predict: Any = predictor
    with torch.inference_mode():
        outputs = predict(probes)
    if isinstance(probes, Tensor):
        if "logits" not in outputs:
            raise BundleError(f"a predictor compared with a probe set must return logits, got {sorted(outputs)}")
        return {"logits": outputs["logits"].float()}
    return {f"{_OUTPUT}{name}": value for name, value in outputs.items()}


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous and without shared storage, as the safetensors format requires."""
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


def _render(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(document: Mapping[str, Any]) -> str:
    return text_sha256(_render(document))


def _encode(metadata: Metadata) -> bytes:
    document = {"format": _FORMAT, **asdict(metadata)}
    # JSON has no NaN or infinity; stored as strings they survive, and Python's float() reads them back.
    document["metrics"] = {
        name: value if math.isfinite(value) else str(value) for name, value in metadata.metrics.items()
    }
    return _render({**document, "digest": _digest(document)}).encode()


def _decode(path: Path) -> tuple[Metadata, str]:
    """Read metadata and digest of a ``metadata.json``, which must be byte for byte what ``_encode`` returned."""
    content = path.read_bytes()
    changed = BundleError(f"{path} is not the file that was saved (its own digest differs); {_WAY_OUT}")
    try:
        document = json.loads(content)
        digest = document.pop("digest")
        # Rendered again and compared as bytes: white space and key order count too.
        unchanged = digest == _digest(document) and _render({**document, "digest": digest}).encode() == content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise changed from error
    if not unchanged:
        raise changed
    if (found := document.pop("format", None)) != _FORMAT:
        raise BundleError(
            f"{path} must have format {_FORMAT}, got {found}; read it with the version of tenfold that wrote it"
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
                    for each in document.get("inputs", ())  # absent from older bundles, which take images
                ),
                "metrics": {name: float(value) for name, value in document["metrics"].items()},
                "files": dict(document["files"]),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is well-formed but does not describe a bundle: {error!r}") from error
    if not {CONFIG_FILE, MODEL_FILE} <= metadata.files.keys():
        raise BundleError(f"{path} must list {CONFIG_FILE} and {MODEL_FILE}, got {sorted(metadata.files)}")
    for name in metadata.files:
        if not _NAME.fullmatch(name):
            raise BundleError(f"file names in {path} must match {_NAME.pattern}, got {name!r}; {_WAY_OUT}")
    return metadata, digest


def _preprocessing(stored: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(
        image_size=stored["image_size"],
        mean=tuple(stored["mean"]),
        std=tuple(stored["std"]),
        resize=stored.get("resize", "stretch"),  # absent from older bundles
        interpolation=stored.get("interpolation", "bilinear"),
    )
