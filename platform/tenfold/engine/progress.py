"""Progress bars: in this process's terminal, or in that of a driver waiting for remote workers."""

import sys
import time
from typing import Any, Protocol

from tqdm import tqdm

from tenfold.engine.storage import Storage

PROGRESS_FILE = "progress.json"


class Progress(Protocol):
    """A progress bar."""

    def update(self, n: int = 1) -> Any: ...
    def set_description(self, desc: str) -> Any: ...
    def close(self) -> Any: ...


def terminal_bar(total: int | None, description: str, *, shown: bool = True) -> "tqdm[Any]":
    """Return a bar on standard error; it updates rarely if that is a log file instead of a terminal."""
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, desc=description, disable=not shown, leave=False, mininterval=interval, dynamic_ncols=True)


class WrittenProgress:
    """Worker's end of a remote bar: writes a small file to the run's folder, at most once per interval."""

    def __init__(self, storage: Storage, total: int | None, description: str) -> None:
        self._storage = storage
        self._state: dict[str, Any] = {"bar": time.time_ns(), "total": total, "description": description, "done": 0}
        self._interval_s = 0.5 if storage.is_local else 5.0
        self._written_at = 0.0

    def update(self, n: int = 1) -> None:
        self._state["done"] += n
        if time.monotonic() - self._written_at > self._interval_s:
            self._write()

    def set_description(self, desc: str) -> None:
        self._state["description"] = desc

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        self._storage.write_json(PROGRESS_FILE, self._state)
        self._written_at = time.monotonic()


class FollowedProgress:
    """Driver's end of a remote bar: shows in the terminal what a worker wrote last."""

    def __init__(self, storage: Storage, *, shown: bool) -> None:
        self._storage, self._shown = storage, shown
        self._interval_s = 0.5 if storage.is_local else 5.0
        self._read_at = 0.0
        self._bar: tqdm[Any] | None = None
        self._number = None

    def look(self) -> None:
        """Read the file and update the bar, at most once per interval."""
        if not self._shown or time.monotonic() - self._read_at < self._interval_s:
            return
        self._read_at = time.monotonic()
        state = self._storage.read_json(PROGRESS_FILE)
        if state is None:
            return
        if state["bar"] != self._number:
            self.close()
            self._bar = terminal_bar(state["total"], state["description"])
            self._number = state["bar"]
        assert self._bar is not None
        self._bar.set_description(state["description"], refresh=False)
        self._bar.update(state["done"] - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
