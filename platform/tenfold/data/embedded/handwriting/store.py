"""Cache of folders of ``.npy`` files: written atomically, verified before use, read memory-mapped."""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.files import sync, write_atomically
from tenfold.hashing import file_sha256, text_sha256

_LOG = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_TEMPORARY = ".building-"
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True)
class StoredFolder:
    """A verified folder of arrays."""

    path: Path
    fingerprint: str
    """Hex SHA-256 over the checksums of all files: equal for equal content."""

    def array(self, part: str, name: str) -> np.ndarray:
        """Return an array, read-only and memory-mapped; ``part`` is a split."""
        return np.load(self.path / part / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def cache_root(configured: str | None) -> Path:
    """Return the cache folder: configured, else the environment's ``TENFOLD_CACHE``, else ``~/.cache/tenfold``."""
    chosen = configured or os.environ.get("TENFOLD_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "tenfold"


def stored(root: Path, name: str, settings: Mapping[str, Any], fill: Callable[[Path], None]) -> StoredFolder:
    """Return a folder of the cache, building it first if it is missing or damaged.

    Builders may run concurrently: each fills a temporary folder, the first renames it into place, and the others use
    that one.

    Args:
        root: Cache folder, created if missing.
        name: Prefix of the folder's name; a hash of the settings is appended.
        settings: Everything that determines the content; JSON types.
        fill: Function that writes ``<split>/<array>.npy`` files into the folder it is given.

    Raises:
        OSError: If the cache folder cannot be written.
    """
    folder = root / f"{name}-{text_sha256(json.dumps(settings, sort_keys=True))[:16]}"
    ready = _open(folder)
    if ready is not None:
        return ready
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = _new_folder(root)
    except OSError as error:
        raise OSError(
            f"the cache folder {root} must be writable, got {error}; set TENFOLD_CACHE (or cache=) to another folder"
        ) from error
    try:
        _remove_abandoned(root)
        fill(temporary)
        _write_manifest(temporary, settings)
        _take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    ready = _open(folder)
    if ready is None:
        raise OSError(f"{folder} is damaged right after it was built; is the disk full or failing?")
    return ready


def create_array(folder: Path, part: str, name: str, num_rows: int, row: np.dtype) -> np.ndarray:
    """Create a memory-mapped ``.npy`` file of ``num_rows`` rows; ``row`` is the (sub-array) dtype of one row."""
    path = folder / part / f"{name}.npy"
    path.parent.mkdir(exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=row.base, shape=(num_rows, *row.shape))
    _reserve(path)
    return array


def _reserve(path: Path) -> None:
    """Allocate the file's bytes now: writing to a memory map on a full disk would kill the process."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"no room for {size / 1e6:.0f} MB at {path} ({error.strerror}); set TENFOLD_CACHE to another folder",
            ) from error


def _new_folder(root: Path) -> Path:
    """Create a temporary folder with default permissions (those of ``tempfile`` would hide a shared cache)."""
    folder = root / f"{_TEMPORARY}{uuid.uuid4().hex}"
    folder.mkdir()
    return folder


def _write_manifest(folder: Path, settings: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(folder.rglob("*.npy")):
        sync(path)
        status = path.stat()
        digest = _checksum(str(path), status.st_size, status.st_mtime_ns, status.st_ino)
        files[path.relative_to(folder).as_posix()] = {"bytes": status.st_size, "sha256": digest}
    write_atomically(folder / _MANIFEST, json.dumps({"settings": dict(settings), "files": files}, indent=1).encode())


def _take_place(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder``; an intact folder that exists already stays, a damaged one is replaced."""
    for _ in range(8):
        try:
            os.replace(temporary, folder)
        except OSError:
            if not folder.exists():
                raise
            if _open(folder) is not None:
                return
            # Renamed, not deleted in place: a reader sees the old folder or none, never a partial one.
            aside = _new_folder(folder.parent)
            try:
                os.replace(folder, aside / "damaged")
            except FileNotFoundError:
                _LOG.debug("another builder has moved %s away", folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        else:
            return
    raise OSError(f"{folder} could not be replaced: other builders keep changing it")


def _open(folder: Path) -> StoredFolder | None:
    """Return the folder if it is intact; None if it is missing or damaged (then the reason is logged)."""
    if not folder.exists():
        return None
    damage = _damage(folder)
    if damage is not None:
        _LOG.warning("cached data in %s are damaged (%s); rebuilding them", folder, damage)
        return None
    files = json.loads((folder / _MANIFEST).read_text())["files"]
    joined = json.dumps({name: entry["sha256"] for name, entry in files.items()}, sort_keys=True)
    return StoredFolder(folder, text_sha256(joined))


def _damage(folder: Path) -> str | None:
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        for name, entry in files.items():
            path = folder / name
            status = path.stat()
            if status.st_size != entry["bytes"]:
                return f"{name} must have {entry['bytes']} bytes, has {status.st_size}"
            if _checksum(str(path), status.st_size, status.st_mtime_ns, status.st_ino) != entry["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@lru_cache(maxsize=1024)
def _checksum(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """Return the SHA-256 of a file, computed once per process while the file's status is unchanged."""
    del size, mtime_ns, inode  # only part of the key
    return file_sha256(path)


def _remove_abandoned(root: Path) -> None:
    """Delete temporary folders of killed builders that are older than a day."""
    for path in root.glob(f"{_TEMPORARY}*"):
        try:
            old = time.time() - path.stat().st_mtime > _ABANDONED_S
        except FileNotFoundError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)
