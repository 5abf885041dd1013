"""Registered model versions: looking them up, and fetching the bundles that they hold."""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tenfold.bundle import Bundle, BundleError, load_bundle
from tenfold.tracking_client import check_model_name, quoted, shown
from tenfold.tracking_model import bundle_in_model

DIGEST_TAG = "bundle_digest"
"""Tag of logged models and registered versions: digest of the bundle inside."""

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]{1,9}))")


def find_version(client: MlflowClient, uri: str, reference: str) -> ModelVersion:
    """The version that ``models:/name@alias`` or ``models:/name/3`` names now.

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
    """Aliases by name of registered model."""
    registered: dict[str, list[str]] = {}
    token: str | None = None
    while True:
        page = client.search_registered_models(page_token=token)
        registered |= {model.name: list(model.aliases) for model in page}
        token = page.token
        if not token:
            return registered


def cached_bundle(digest: str) -> Bundle | None:
    """The copy kept from an earlier call, unless it is no longer whole."""
    try:
        bundle = load_bundle(_cache_folder() / digest)
    except BundleError:
        return None
    return bundle if bundle.digest == digest else None


def fetch_bundle(client: MlflowClient, uri: str, name: str, version: str, digest: str) -> Bundle:
    """Copy the bundle of a version into the cache and verify it.

    Raises:
        BundleError: If it isn't whole, or isn't the one of that digest.
    """
    target = _cache_folder() / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    # The storage's own address: a models:/ address would be looked up at MLflow's process-wide URI.
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
        with suppress(OSError):  # another process was quicker; its copy is verified below
            if target.exists():
                target.rename(f"{scratch}/damaged")  # else cached_bundle would have taken it
            fetched.folder.rename(target)
    return load_bundle(target)


def _cache_folder() -> Path:
    return Path(os.environ.get("TENFOLD_CACHE") or Path.home() / ".cache" / "tenfold").absolute() / "models"
