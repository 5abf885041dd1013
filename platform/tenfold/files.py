"""Files that are never seen half-written, not even after a power cut."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file under another name, bring it to the disk, rename it.

    Args:
        path: The file; missing folders are made, an older file is replaced.
        content: Its bytes, or a function that writes them to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot: readers of data sets pass over such files.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
