"""Atomic and durable file writes: no reader sees a partial file, not even after a power failure."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file atomically: write to a temporary file, sync it to disk, rename it.

    Args:
        path: Target; missing folders are created, an existing file is replaced.
        content: Bytes of the file, or a function that writes them to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot: data set readers skip such files.
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
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
