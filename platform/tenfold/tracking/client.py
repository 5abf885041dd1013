"""Connections to MLflow, and what its names and messages must look like; what every ``tracking`` module stands on."""

import fcntl
import logging
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

# Read by MLflow, in part when it is imported; what the environment says already wins.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient

if "MLFLOW_LOGGING_LEVEL" not in os.environ:
    logging.getLogger("mlflow").setLevel(logging.WARNING)

SQLITE = "sqlite:///"
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def open_client(uri: str, *, create: bool = False) -> MlflowClient:
    """A client for both runs and registry at ``uri``, one for each process.

    Args:
        uri: Tracking URI.
        create: Whether a SQLite database that isn't there is to be made.

    Raises:
        ValueError: If there is no database and none is to be made.
    """
    # MLflow would make an empty database at a mistyped path, and then find nothing in it.
    if not create and not database_exists(uri):
        raise ValueError(f"there is no database at {shown(uri)}: train first, or set MLFLOW_TRACKING_URI")
    if uri.startswith(SQLITE):
        database_path(uri).parent.mkdir(parents=True, exist_ok=True)
    return _open(uri)


def database_path(uri: str) -> Path:
    """File of a ``sqlite:///`` URI, absolute."""
    return Path(uri.removeprefix(SQLITE)).absolute()


def database_exists(uri: str) -> bool:
    """False for SQLite without a file; a server is taken to be there."""
    return not uri.startswith(SQLITE) or database_path(uri).exists()


def check_model_name(name: str) -> str:
    """Return ``name`` if it may name a logged or registered model: it becomes part of a URL and of a path.

    Raises:
        ValueError: If it isn't 1 to 63 lower case letters, digits, ``_`` or ``-``, first a letter or digit.
    """
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(f"a model's name must match {_MODEL_NAME.pattern}, got {name!r}")
    return name


def quoted(value: str) -> str:
    """``value`` as a literal of MLflow's search language.

    Raises:
        ValueError: If it holds both kinds of quotes, which that language can't express.
    """
    if "'" in value and '"' in value:
        raise ValueError(f"MLflow can't search for a value with both kinds of quotes: {value}")
    return f'"{value}"' if "'" in value else f"'{value}'"


def shown(uri: str) -> str:
    """The URI without user name and password, fit for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


@lru_cache(maxsize=8)
def _open(uri: str) -> MlflowClient:
    if not uri.startswith(SQLITE):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    # The first connection makes the tables, and two processes that make them at once both fail: one at a time.
    folder = os.open(database_path(uri).parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: as safe as before
            fcntl.flock(folder, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    finally:
        os.close(folder)
    return client
