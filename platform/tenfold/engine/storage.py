"""Atomically published folders, on a disk or in an object store.

A folder counts as complete only once it holds the marker file ``_COMPLETE``, which is written last. Local folders are
filled under another name and then renamed, so that they are never seen half-written.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tenfold.files import sync, write_atomically

MARKER = "_COMPLETE"
"""Marker file, written last into a complete folder."""
STOP_FILE = "STOP"
"""File that a driver leaves in a run's folder to ask its workers to stop."""


class Storage:
    """Storage of files: a local folder or a URL supported by fsspec (``s3://bucket/prefix``, ``memory://...``).

    S3 uses pyarrow, which reads ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION`` and
    ``AWS_ENDPOINT_URL`` (or ``AWS_ENDPOINT_URL_S3``) for any S3-compatible server.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.fs, self.root = _filesystem(self.url)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local:
            self.url = self.root  # absolute: workers and later calls may run in another directory

    def __truediv__(self, name: str) -> "Storage":
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"name must be a relative path without '..', got {name!r}")
        return Storage(f"{self.url}{'' if self.url.endswith('/') else '/'}{name}")

    def local_path(self) -> Path:
        """Return the folder as a local path; only for local storage."""
        if not self.is_local:
            raise ValueError(f"storage must be a local folder, got {self.url}")
        return Path(self.root)

    def path(self, name: str) -> str:
        """Return the path of a file inside, as the file system spells it."""
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.path(name) if name else self.root))

    def list(self) -> list[str]:
        """List the names directly inside, sorted; empty if the folder does not exist."""
        if not self.exists():
            return []
        self.fs.invalidate_cache()
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.root, detail=False))

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None if it is missing."""
        if not self.exists(name):
            return None
        with self.fs.open(self.path(name), "rb") as file:
            return json.loads(file.read())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically."""
        data = json.dumps(content, indent=2, sort_keys=True).encode()
        if self.is_local:
            write_atomically(Path(self.path(name)), data)
            return
        with self.fs.open(self.path(name), "wb") as file:  # an object appears only once its upload ends
            file.write(data)

    def remove(self, name: str = "") -> None:
        """Delete a file or folder; does nothing if it is missing."""
        target = self.path(name) if name else self.root
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)

    def is_complete(self) -> bool:
        """Return whether the folder is complete."""
        return self.exists(MARKER)

    def publish(self, source: Path, about: Mapping[str, Any]) -> None:
        """Publish the content of a local folder here; ``about`` becomes the content of the marker.

        Replaces existing content; for local storage the source folder is moved.
        """
        if self.is_local:
            target = Path(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            # The source may be on another disk, where a move is a copy: only the rename below is atomic.
            new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
            shutil.move(source, new)
            Storage(new).write_json(MARKER, about)
            for entry in [*(each for each in new.rglob("*") if each.is_file()), new]:
                sync(entry)
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
            if target.exists():
                target.rename(old)
            new.rename(target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
            return
        self.remove(MARKER)  # first, so that leftovers of the old content never count as complete
        self.remove()
        self.upload(source)
        self.write_json(MARKER, about)

    def mark_complete(self, about: Mapping[str, Any]) -> None:
        """Mark the folder as complete, after its files are synced to survive a power cut."""
        if self.is_local:
            for entry in (*Path(self.root).rglob("*"), Path(self.root)):
                sync(entry)
        self.write_json(MARKER, about)

    def upload(self, source: Path, since: dict[Path, int] | None = None) -> None:
        """Copy every file of a local folder here, except the marker.

        Args:
            source: Local folder.
            since: Modification times, in ns, of files copied before; unchanged files are skipped, and the mapping is
                updated.
        """
        for entry in sorted(source.rglob("*")):
            if entry.is_file() and entry.name != MARKER:
                changed = entry.stat().st_mtime_ns
                if since is not None:
                    if since.get(entry) == changed:
                        continue
                    since[entry] = changed
                target = self.path(entry.relative_to(source).as_posix())
                self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                self.fs.put_file(str(entry), target)

    def download(self, target: Path) -> None:
        """Copy every file from here into a local folder."""
        target.mkdir(parents=True, exist_ok=True)
        if not self.exists():
            return
        self.fs.invalidate_cache()
        for path in self.fs.find(self.root):
            relative = str(path).removeprefix(self.root).lstrip("/")
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(path, str(target / relative))

    @contextmanager
    def fetched(self, scratch: Path) -> Iterator[Path]:
        """Provide the folder as a local path: itself if local, else a copy that is deleted when the block ends."""
        if self.is_local:
            yield Path(self.root)
            return
        copy = scratch / f"fetched-{uuid.uuid4().hex}"
        try:
            self.download(copy)
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def ray_storage(url: str) -> tuple[str, Any]:
    """Return ``(storage_path, storage_filesystem)`` for Ray Train and Tune; the latter is None for local paths."""
    storage = Storage(url)
    if storage.is_local:
        return str(storage.local_path()), None
    if urlsplit(url).scheme == "s3":
        return storage.root, storage.fs.fs  # the pyarrow file system below the wrapper
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return storage.root, PyFileSystem(FSSpecHandler(storage.fs))


def _filesystem(url: str) -> tuple[Any, str]:
    parts = urlsplit(url)
    if parts.scheme == "s3":
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import S3FileSystem

        if len(parts.netloc) < 3:
            raise ValueError(f"storage must name a bucket of 3 characters or more, as in s3://bucket/prefix, got {url}")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options: dict[str, Any] = {}
        if endpoint:
            options = {"endpoint_override": endpoint, "allow_bucket_creation": False}
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            options["region"] = region
        return ArrowFSWrapper(S3FileSystem(**options)), f"{parts.netloc}{parts.path}".rstrip("/")
    if not parts.scheme or len(parts.scheme) == 1:  # one letter is a Windows drive
        url = str(Path(url).expanduser().absolute())
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"storage must be a folder or a URL that fsspec can open, got {url!r}: {error}") from error
