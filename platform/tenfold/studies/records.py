"""Records of a study on disk: one file per trial, written atomically.

The records define which trials are finished. A restarted study reads them, so a killed worker, driver or machine costs
only the trials that had not ended.
"""

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tenfold.files import write_atomically
from tenfold.studies.space import Scalar
from tenfold.studies.study import Point, StudyError, trial_id

Status = Literal["done", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Result of one trial: a point run with one seed."""

    params: dict[str, Scalar]
    """Job key to value: the keys that the trial sets in the study's job."""
    seed: int
    status: Status
    """``done``; ``stopped`` by the scheduler at the last epoch of ``history``; ``failed`` with ``error``."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final metrics; for a stopped trial, those of its last epoch."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each epoch, its number under ``epoch``."""
    run_id: str | None = None
    """Tracked run of the trial."""
    error: str = ""
    """Last line of the traceback; all of it is in ``error.txt`` beside the record."""
    seconds: float = 0.0
    """Wall time of the trial."""

    @property
    def id(self) -> str:
        return trial_id(Point(self.params), self.seed)


class StudyFolder:
    """Folder of a study: ``trials/<id>/result.json``, ``points/<id>.json``, ``study.json`` and the report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def trial_folder(self, point: Point, seed: int) -> Path:
        return self.path / "trials" / trial_id(point, seed)

    def write(self, record: TrialRecord) -> None:
        """Write a record, replacing one of the same trial."""
        write_json(self.trial_folder(Point(record.params), record.seed) / "result.json", dataclasses.asdict(record))

    def read(self, point: Point, seed: int) -> TrialRecord | None:
        """Record of a trial; None if it has not ended.

        Raises:
            StudyError: If the file is damaged; an interrupted write can't cause this.
        """
        content = read_json(self.trial_folder(point, seed) / "result.json")
        return None if content is None else TrialRecord(**content)

    def finished(self, point: Point, seed: int, *, scheduled: bool) -> TrialRecord | None:
        """Record of a trial that need not run again; None if it failed, or was stopped and no scheduler is left."""
        record = self.read(point, seed)
        if record is None or record.status == "failed" or (record.status == "stopped" and not scheduled):
            return None
        return record

    def add_point(self, params: Mapping[str, Scalar]) -> None:
        """Record a point suggested by a search before its first trial; a resumed search starts with it."""
        file = self.path / "points" / f"{Point(dict(params)).id}.json"
        if not file.exists():
            number = len(list(file.parent.glob("*.json")))
            write_json(file, {"params": dict(params), "number": number})

    def points(self) -> list[Point]:
        """Points suggested by a search, in order."""
        contents = [read_json(path) for path in (self.path / "points").glob("*.json")]
        kept = [content for content in contents if content is not None]
        ordered = sorted(kept, key=lambda content: (content["number"], json.dumps(content["params"], sort_keys=True)))
        return [Point(content["params"]) for content in ordered]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; the lock ends with the process, however that ends.

        Raises:
            StudyError: If another process is running this study.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"{self.path}: another process is running this study; wait for it, or stop it and start again"
                ) from error
            yield


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2).encode())


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StudyError(f"{path} must be JSON, got {error}; delete it to run its trial again") from error
