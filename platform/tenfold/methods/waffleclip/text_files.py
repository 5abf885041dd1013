"""Text and JSON files with words, names and answers; every error names the file."""

import json
from pathlib import Path
from typing import Any

from tenfold.files import write_atomically


def read_names(path: Path) -> list[str]:
    """Read class names or words from a JSON list, the keys of a JSON object, or a text file with one a line.

    Raises:
        ValueError: The file cannot be read or holds none.
    """
    if path.suffix == ".json":
        content = _parse(path)
        names = list(content) if isinstance(content, list | dict) else []
    else:
        names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must hold texts: a JSON list or object, or a text file with one a line")
    return names


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: The file cannot be read or holds something else.
    """
    content = _parse(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")  # noqa: TRY004
    return content


def write_json(path: Path, content: object) -> None:
    """Write readable JSON atomically."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _parse(path: Path) -> object:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must hold JSON: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
