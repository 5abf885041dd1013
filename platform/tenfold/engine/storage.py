"""Folders that appear whole or not at all, on a disk or in an object store.

A folder counts as there only once it holds the marker file ``_COMPLETE``, which is written last. Local folders
are filled under another name and renamed, so that even the marker's folder is never seen half-written.
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
"""Written last into a folder that appears whole."""
STOP_FILE = "STOP"
"""Left by a driver in a run's folder to ask its workers to stop."""


class Storage:
    """A place for files: a local folder or a URL that fsspec knows (``s3://bucket/prefix``, ``memory://...``).

    S3 goes through pyarrow, which reads ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION`` and
    ``AWS_ENDPOINT_URL`` (or ``AWS_ENDPOINT_URL_S3``) for any S3-compatible server.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.fs, self.root = _filesystem(self.url)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local:
            self.url = self.root  # absolute: workers and later calls may run in another folder

    def __truediv__(self, name: str) -> "Storage":
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"name must be a relative path without '..', got {name!r}")
        return Storage(f"{self.url}{'' if self.url.endswith('/') else '/'}{name}")

    def local_path(self) -> Path:
        """The folder as a path of this machine; only for local storage."""
        if not self.is_local:
            raise ValueError(f"{self.url} is not a local folder")
        return Path(self.root)

    def path(self, name: str) -> str:
        """Name of a file inside, as the file system spells it."""
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.path(name) if name else self.root))

    def list(self) -> list[str]:
        """Names directly inside, sorted; empty where there is no folder."""
        if not self.exists():
            return []
        self.fs.invalidate_cache()
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.root, detail=False))

    def read_json(self, name: str) -> Any:
        """Content of a JSON file, None where it is missing."""
        if not self.exists(name):
            return None
        with self.fs.open(self.path(name), "rb") as file:
            return json.loads(file.read())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file that is never seen half-written."""
        data = json.dumps(content, indent=2, sort_keys=True).encode()
        if self.is_local:
            write_atomically(Path(self.path(name)), data)
            return
        with self.fs.open(self.path(name), "wb") as file:  # an object appears when its upload ends
            file.write(data)

    def remove(self, name: str = "") -> None:
        """Delete a file or folder; nothing happens where there is none."""
        target = self.path(name) if name else self.root
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)

    def is_complete(self) -> bool:
        """Whether the folder was published whole."""
        return self.exists(MARKER)

    def publish(self, source: Path, about: Mapping[str, Any]) -> None:
        """Make the content of a local folder appear here, whole; ``about`` goes into the marker.

        What stood here before is replaced; a local source folder is moved.
        """
        if self.is_local:
            target = Path(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            # The source may lie on another disk, from where a move is a copy: only the rename below is one step.
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
        self.remove(MARKER)  # first, so that what is left of the old content never counts as whole
        self.remove()
        self.upload(source)
        self.write_json(MARKER, about)

    def mark_complete(self, about: Mapping[str, Any]) -> None:
        """Say that the folder is whole, once what it holds is sure to survive a power cut."""
        if self.is_local:
            for entry in (*Path(self.root).rglob("*"), Path(self.root)):
                sync(entry)
        self.write_json(MARKER, about)

    def upload(self, source: Path, since: dict[Path, int] | None = None) -> None:
        """Copy every file of a local folder here, without the marker.

        Args:
            source: The local folder.
            since: Files copied before and the time of their last change, in ns; unchanged ones are left out, and it is
                brought up to date.
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
        """The folder as a local path: itself where local, else a copy that goes when the block ends."""
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
    """``(storage_path, storage_filesystem)`` as Ray Train and Tune want them; the second is None for local paths."""
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
            raise ValueError(f"storage needs a bucket of 3 characters or more, as in s3://bucket/prefix, got {url}")
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
        raise ValueError(f"storage {url!r} is not a folder or a URL that fsspec can open here: {error}") from error
