"""The kinds of answers: the one row that a new kind adds."""

from importlib import import_module
from typing import cast

from serve.contract import Kind

MODULES = {
    "labels": "serve.tasks.labels.kind",
    "regression": "serve.tasks.regression",
    "concepts": "serve.tasks.concepts",
}
"""Kind of a signature to the module that serves it, imported on first use."""


def kind_of(name: str) -> Kind:
    """Return the module of a kind.

    Raises:
        ValueError: There is none.
    """
    if name not in MODULES:
        raise ValueError(f"kind must be one of {', '.join(MODULES)}, got {name!r}; add its row to serve/tasks/table.py")
    return cast(Kind, import_module(MODULES[name]))


def words() -> dict[str, tuple[str, ...]]:
    """Words of the query by kind, parameters of signatures left out."""
    return {name: kind_of(name).WORDS for name in MODULES}
