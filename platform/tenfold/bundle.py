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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import tenfold
from tenfold.files import sync
from tenfold.hashing import file_sha256, text_sha256
from tenfold.probes import Inputs, Probe, compare, read_probes, write_probes
from tenfold.tasks import Predictor, Signature, signature_of, signature_of_format_1
from tenfold.types import Preprocessing, Task

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.safetensors"
METADATA_FILE = "metadata.json"
PROBE_FILE = "probe.safetensors"
"""Probe set, as ``tenfold.probes`` writes it."""

_FORMAT = 2
"""Format that is written; format 1, which had no signature, is still read."""
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
    signature: Signature
    """What the model takes and gives. Of a bundle of format 1 it may know less than the predictor's own: no maps,
    prompts or scores."""
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
    format: int = _FORMAT

    @property
    def task(self) -> Task:
        """Task of the model."""
        return self.signature.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K outputs, in the order of the network's columns."""
        return self.signature.columns

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Conversion of images to the network's input; None for a model without images of its own."""
        return self.signature.preprocessing


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
            inputs = ", ".join(each.name for each in self.metadata.signature.inputs)
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
    signature: Signature,
    metrics: Mapping[str, float],
    data_name: str,
    data_fingerprint: str,
    files: Mapping[str, bytes | Path] | None = None,
) -> Bundle:
    """Write a bundle atomically: ``folder`` appears complete, or not at all.

    Args:
        folder: Folder of the bundle; must not exist. Missing parents are created.
        config: Plain data (strings, numbers, booleans, None, lists, mappings), enough to rebuild the network.
        tensors: Weights by name, on any device; tensors that share memory are stored separately.
        method: Name of the method that trained it.
        signature: What the model takes and gives.
        metrics: Metrics at the end of training, NaN and infinities allowed.
        data_name: Name of the data set.
        data_fingerprint: Digest of its content.
        files: Extra files by name: their bytes, or the path of a file to copy.

    Returns:
        The bundle, read back from its final place.

    Raises:
        BundleError: If the folder exists or a file name has path parts or unusual characters.
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
            signature=signature,
            metrics={name: float(value) for name, value in metrics.items()},
            data_name=data_name,
            data_fingerprint=data_fingerprint,
            versions=package_versions(),
            git_revision=git_revision(Path(tenfold.__file__).parent),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: file_sha256(path) for path in sorted(partial.iterdir())},
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
    predictor: Predictor,
    probes: Tensor | Inputs | Sequence[Inputs],
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
        probes: Images alone, the inputs by name, or several combinations of inputs, to store with the outputs of each,
            computed as one batch.
        config, tensors, method, metrics, data_name, data_fingerprint, files: As in ``save_bundle``.

    Raises:
        BundleError: As in ``save_bundle``, or inputs or outputs do not fit the predictor's signature.
    """
    try:
        probe_file = write_probes(predictor, probes)
    except ValueError as error:
        raise BundleError(f"a probe set must fit the model's signature: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    return save_bundle(
        folder,
        config=config,
        tensors=tensors,
        method=method,
        signature=predictor.signature,
        metrics=metrics,
        data_name=data_name,
        data_fingerprint=data_fingerprint,
        files={**(files or {}), PROBE_FILE: probe_file},
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
    document, digest = _read_document(path)
    files = _listed_files(path, document)
    present = {entry.name for entry in folder.iterdir()} - {METADATA_FILE}
    if missing := sorted(files.keys() - present):
        raise BundleError(f"{folder} lacks {missing}, which {METADATA_FILE} lists; {_WAY_OUT}")
    if surplus := sorted(present - files.keys()):
        raise BundleError(f"{folder} holds {surplus}, which {METADATA_FILE} does not list; move them elsewhere")
    for name, expected in files.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise BundleError(f"{folder / name} is not the file that was saved (its SHA-256 differs); {_WAY_OUT}")

    try:
        config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{folder / CONFIG_FILE} must be YAML: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{folder / CONFIG_FILE} must hold a mapping, got {type(config).__name__}")
    return Bundle(folder, config, _metadata(path, document), digest)


def check_probe(bundle: Bundle, predictor: Predictor, tolerance: float = 1e-5) -> float:
    """Check that a predictor is the trained model: compare its outputs on the probes with those stored in training.

    Args:
        bundle: A bundle with a probe set, as ``save_trained`` writes it.
        predictor: Its predictor, on any device.
        tolerance: As in ``tenfold.probes.compare``. The default suits float32 at another batch size.

    Returns:
        The largest absolute difference.

    Raises:
        BundleError: There is no probe set, the outputs do not fit the signature, or a difference exceeds the tolerance.
    """
    metadata = bundle.metadata
    probes = _read_probes(bundle.file(PROBE_FILE))
    try:
        return compare(probes, predictor, metadata.signature if metadata.format > 1 else predictor.signature, tolerance)
    except ValueError as error:
        raise BundleError(f"{bundle.folder}: {error}") from error


def load_probes(bundle: Bundle) -> list[Inputs]:
    """Return the stored probes: the inputs of each combination, as a predictor takes them by keyword.

    Raises:
        BundleError: If there is no probe set, or it holds no inputs or no outputs.
    """
    return [probe.inputs for probe in _read_probes(bundle.file(PROBE_FILE))]


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


def _read_probes(path: Path) -> list[Probe]:
    try:
        return read_probes(path)
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise BundleError(f"{path} must be a probe set: {error}") from error


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
    document = {**asdict(metadata), "signature": metadata.signature.as_dict()}
    # JSON has no NaN or infinity; stored as strings they survive, and Python's float() reads them back.
    document["metrics"] = {
        name: value if math.isfinite(value) else str(value) for name, value in metadata.metrics.items()
    }
    return _render({**document, "digest": _digest(document)}).encode()


def _read_document(path: Path) -> tuple[dict[str, Any], str]:
    """Read content and digest of a ``metadata.json``, which must be byte for byte what ``_encode`` returned."""
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
    if (found := document.get("format")) not in (1, _FORMAT):
        raise BundleError(
            f"{path} must have format {_FORMAT}, or 1, got {found}; read it with the version of tenfold that wrote it"
        )
    return document, digest


def _listed_files(path: Path, document: Mapping[str, Any]) -> dict[str, str]:
    files = document.get("files")
    if not isinstance(files, dict) or not {CONFIG_FILE, MODEL_FILE} <= files.keys():
        raise BundleError(f"{path} must list {CONFIG_FILE} and {MODEL_FILE}, got {files!r:.200}")
    for name in files:
        if not _NAME.fullmatch(name):
            raise BundleError(f"file names in {path} must match {_NAME.pattern}, got {name!r}; {_WAY_OUT}")
    return files


def _metadata(path: Path, document: dict[str, Any]) -> Metadata:
    try:
        if document["format"] == 1:
            signature = _signature_of_format_1(path.parent, document)
            earlier = ("task", "classes", "preprocessing", "inputs")
            document = {name: value for name, value in document.items() if name not in earlier}
        else:
            signature = signature_of(document["signature"])
        metrics = {name: float(value) for name, value in document["metrics"].items()}
        return Metadata(**{**document, "signature": signature, "metrics": metrics})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is well-formed but does not describe a bundle: {error!r}") from error


def _signature_of_format_1(folder: Path, document: Mapping[str, Any]) -> Signature:
    if not document.get("inputs") or PROBE_FILE not in document["files"]:
        return signature_of_format_1(document)
    outputs = read_probes(folder / PROBE_FILE)[0].outputs
    parts = [name for name in outputs if name not in ("mean", "std")]
    observed = outputs["mean"].shape[1:] if "mean" in outputs else None
    return signature_of_format_1(document, observed, parts)
