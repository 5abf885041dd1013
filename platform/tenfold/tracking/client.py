"""MLflow connections, and checks of names and URIs shared by the ``tracking`` modules."""

import fcntl
import logging
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

# MLflow reads these partly on import; existing environment variables take precedence.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient

if "MLFLOW_LOGGING_LEVEL" not in os.environ:
    logging.getLogger("mlflow").setLevel(logging.WARNING)

SQLITE = "sqlite:///"
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def open_client(uri: str, *, create: bool = False) -> MlflowClient:
    """Open a client for runs and registry at ``uri``, cached per process.

    Args:
        uri: Tracking URI.
        create: Whether to create a missing SQLite database.

    Raises:
        ValueError: If there is no database and ``create`` is False.
    """
    # MLflow would create an empty database at a mistyped path.
    if not create and not database_exists(uri):
        raise ValueError(
            f"tracking_uri must be an existing database, got {shown(uri)}; train first, or set MLFLOW_TRACKING_URI"
        )
    if uri.startswith(SQLITE):
        database_path(uri).parent.mkdir(parents=True, exist_ok=True)
    return _open(uri)


def database_path(uri: str) -> Path:
    """Absolute path of a ``sqlite:///`` URI."""
    return Path(uri.removeprefix(SQLITE)).absolute()


def database_exists(uri: str) -> bool:
    """Return False for SQLite without a file; servers are assumed to exist."""
    return not uri.startswith(SQLITE) or database_path(uri).exists()


def check_model_name(name: str) -> str:
    """Return ``name`` if it is a valid name of a logged or registered model: part of a URL and of a path.

    Raises:
        ValueError: Unless it is 1 to 63 lower case letters, digits, ``_`` or ``-``, first a letter or digit.
    """
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(f"a model's name must match {_MODEL_NAME.pattern}, got {name!r}")
    return name


def quoted(value: str) -> str:
    """Quote ``value`` as a literal of MLflow's search language.

    Raises:
        ValueError: If it has both kinds of quotes, which that language can't express.
    """
    if "'" in value and '"' in value:
        raise ValueError(f"values to search for must not have both kinds of quotes, got {value}")
    return f'"{value}"' if "'" in value else f"'{value}'"


def shown(uri: str) -> str:
    """Strip user name and password from a URI, for messages."""
    return re.sub(r"//[^/@]*@", "//", uri)


@lru_cache(maxsize=8)
def _open(uri: str) -> MlflowClient:
    if not uri.startswith(SQLITE):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    # The first connection creates the tables; two processes doing so concurrently would both fail.
    folder = os.open(database_path(uri).parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    finally:
        os.close(folder)
    return client
