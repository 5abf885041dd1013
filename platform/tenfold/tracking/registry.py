"""Model registry: versions, aliases and their bundles."""

import math
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

# Before MLflow: this module silences it, which works only before its import.
from tenfold.tracking.client import check_model_name, open_client, quoted, shown  # isort: split

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tenfold.bundle import Bundle, BundleError, load_bundle
from tenfold.tracking.model import bundle_in_model

DIGEST_TAG = "bundle_digest"
"""Tag of logged models and registered versions: digest of their bundle."""

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]{1,9}))")


def find_version(client: MlflowClient, uri: str, reference: str) -> ModelVersion:
    """Find the version that ``models:/name@alias`` or ``models:/name/3`` currently names.

    Raises:
        ValueError: If there is none; the message lists those that exist.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(f"a model must be like models:/name@alias or models:/name/3, got {reference!r}")
    name, alias, version = check_model_name(match["name"]), match["alias"], match["version"]
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = ", ".join(sorted(registered_aliases(client))) or "none"
        raise ValueError(f"no model {name!r} is registered in {shown(uri)}; registered: {names}") from error
    if alias is not None and alias not in aliases:
        held = ", ".join(f"{key} (version {number})" for key, number in sorted(aliases.items())) or "none"
        raise ValueError(f"the model {name!r} has no alias {alias!r}; its aliases: {held}")
    try:
        return client.get_model_version(name, str(aliases[alias]) if alias is not None else version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        versions = sorted(int(found.version) for found in client.search_model_versions(f"name = {quoted(name)}"))
        raise ValueError(f"the model {name!r} has no version {version}; its versions: {versions}") from error


def registered_aliases(client: MlflowClient) -> dict[str, list[str]]:
    """Aliases of every registered model, by name."""
    registered: dict[str, list[str]] = {}
    token: str | None = None
    while True:
        page = client.search_registered_models(page_token=token)
        registered |= {model.name: list(model.aliases) for model in page}
        token = page.token
        if not token:
            return registered


def cached_bundle(digest: str) -> Bundle | None:
    """Return the cached copy of a bundle, if it is intact."""
    try:
        bundle = load_bundle(_cache_folder() / digest)
    except BundleError:
        return None
    return bundle if bundle.digest == digest else None


def fetch_bundle(client: MlflowClient, uri: str, name: str, version: str, digest: str) -> Bundle:
    """Copy the bundle of a version into the cache and verify it.

    Raises:
        BundleError: If it is damaged or has another digest.
    """
    target = _cache_folder() / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    # The storage's own address: MLflow would resolve models:/ at its process-wide URI.
    source = client.get_model_version_download_uri(name, version)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        folder = Path(download_artifacts(artifact_uri=source, tracking_uri=uri, dst_path=f"{scratch}/model"))
        try:
            fetched = load_bundle(bundle_in_model(folder))
        except ValueError as error:
            raise BundleError(f"models:/{name}/{version} is refused: {error}") from error
        if fetched.digest != digest:
            raise BundleError(
                f"models:/{name}/{version} is refused: the store holds the bundle {fetched.digest[:12]}, "
                f"registered was {digest[:12]}"
            )
        with suppress(OSError):  # another process was faster; its copy is verified below
            if target.exists():
                target.rename(f"{scratch}/damaged")  # else cached_bundle would have returned it
            fetched.folder.rename(target)
    return load_bundle(target)


def _cache_folder() -> Path:
    return Path(os.environ.get("TENFOLD_CACHE") or Path.home() / ".cache" / "tenfold").absolute() / "models"


Mode = Literal["max", "min"]


CHAMPION = "champion"


CANDIDATE = "candidate"


@dataclass(frozen=True)
class Registered:
    """A new version of a registered model."""

    name: str
    version: str
    alias: str
    """``champion`` or ``candidate``."""
    metric: str
    value: float


def register(
    uri: str,
    model_uri: str,
    name: str,
    *,
    run_id: str,
    metric: str,
    value: float,
    mode: Mode,
    data_fingerprint: str,
) -> Registered:
    """Register a logged model as a version of ``name``; the best version carries the alias ``champion``.

    The new version becomes champion if there is none yet, or if it is strictly better than the champion on the same
    metric, mode and data. Otherwise, and if its value is not finite, it becomes ``candidate``. Tags of the version
    record the comparison, and ``reason`` its outcome in words. A second call with the same arguments, as after a crash,
    finds the version of the first.

    MLflow can't compare and move an alias atomically: of two concurrent registrations of one name, the later wins.

    Args:
        uri: Tracking URI.
        model_uri: ``models:/m-...``, from ``Tracker.log_bundle``.
        name: Name in the registry, created if missing; lower case letters, digits, ``_`` and ``-``.
        run_id: Run that trained the model.
        metric: Name of the metric to compare.
        value: Its value.
        mode: Whether higher (max) or lower (min) is better.
        data_fingerprint: Digest of the evaluation data.

    Raises:
        ValueError: If a name or the mode is invalid, or the model was not logged by ``log_bundle``.
    """
    check_model_name(name)
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if not metric or not data_fingerprint:
        raise ValueError(f"metric and data_fingerprint must not be empty, got {metric!r} and {data_fingerprint!r}")
    model_id = model_uri.removeprefix("models:/")
    if not re.fullmatch(r"models:/m-\w+", model_uri):
        raise ValueError(f"model_uri must be like models:/m-..., got {model_uri!r}")
    client = open_client(uri)
    logged = client.get_logged_model(model_id)
    digest = logged.tags.get(DIGEST_TAG)
    if digest is None:
        raise ValueError(
            f"model_uri must be a model with a bundle, got {model_uri}; register what Tracker.log_bundle returned"
        )

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {
        "metric": metric,
        "value": repr(float(value)),
        "mode": mode,
        "data_fingerprint": data_fingerprint,
        "run_id": run_id,
        DIGEST_TAG: digest,
    }
    champion = _champion(client, name)
    version = _same_version(client, name, tags)
    if version is not None and champion is not None and str(version.version) == str(champion.version):
        return Registered(name, str(version.version), CHAMPION, metric, float(value))
    better, reason = _compare(tags, champion)
    if version is None:
        tags["reason"] = reason
        # A server hides locations; without a server, MLflow would resolve models:/ at its process-wide URI.
        source = model_uri if uri.startswith(("http://", "https://")) else logged.artifact_location
        version = client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=model_id)
    alias = CHAMPION if better else CANDIDATE
    client.set_registered_model_alias(name, alias, str(version.version))
    return Registered(name, str(version.version), alias, metric, float(value))


@dataclass(frozen=True)
class Resolved:
    """A registered model, pinned to a version even if its alias moves."""

    name: str
    version: str
    run_id: str
    metrics: dict[str, float]
    folder: Path
    """Local copy of the verified bundle."""


def resolve(uri: str, model: str) -> Resolved:
    """Fetch the bundle of a registered model and verify it.

    Copies are cached in ``$TENFOLD_CACHE/models`` (else ``~/.cache/tenfold/models``) by digest, so a model is fetched
    once; they are verified on every call.

    Args:
        uri: Tracking URI.
        model: ``models:/name@alias`` or ``models:/name/3``.

    Raises:
        ValueError: If there is no such name, alias or version; the message lists those that exist.
        BundleError: If the stored bundle differs from the registered one.
    """
    client = open_client(uri)
    found = find_version(client, uri, model)
    name, number = found.name, str(found.version)
    digest = found.tags.get(DIGEST_TAG, "")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"models:/{name}/{number} holds no bundle: it was not registered by tenfold")
    bundle = cached_bundle(digest) or fetch_bundle(client, uri, name, number, digest)
    return Resolved(name, number, found.tags["run_id"], dict(bundle.metadata.metrics), bundle.folder)


def registered_champions(uri: str) -> list[str]:
    """Names of all registered models with a champion, sorted."""
    return sorted(name for name, aliases in registered_aliases(open_client(uri)).items() if CHAMPION in aliases)


def _compare(new: Mapping[str, str], champion: ModelVersion | None) -> tuple[bool, str]:
    """Decide whether the new version becomes champion, and give the reason."""
    value = float(new["value"])
    if not math.isfinite(value):
        return False, f"{new['metric']} is {value}, which can't be compared"
    if champion is None:
        return True, "there was no champion"
    who = f"the champion, version {champion.version},"
    for key in ("metric", "mode", "data_fingerprint"):
        if champion.tags.get(key) != new[key]:
            return (
                False,
                f"{who} has {key} {champion.tags.get(key, 'unknown')}, this version {new[key]}: not comparable",
            )
    old = float(champion.tags["value"])
    better = value > old if new["mode"] == "max" else value < old
    return better, f"{who} has {new['metric']} {old:.6g}, this version {value:.6g} ({new['mode']} is better)"


def _same_version(client: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """Find the version that an earlier call registered with the same tags."""
    condition = f"name = {quoted(name)} and tags.{DIGEST_TAG} = {quoted(tags[DIGEST_TAG])}"
    versions = [found for found in client.search_model_versions(condition) if tags.items() <= found.tags.items()]
    return versions[0] if versions else None


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, str(version)) if version is not None else None
