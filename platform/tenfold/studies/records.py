"""What a study leaves on disk: one record for each trial, written whole or not at all.

The records are the truth about what is finished. Whoever starts the study again reads them, and whatever was killed
in between - a worker, the driver, the machine - costs only the trials that had not ended.
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
    """The end of one trial: a point run with one seed."""

    params: dict[str, Scalar]
    """Job key to value; what the trial changes in the study's job."""
    seed: int
    status: Status
    """``stopped``: by the scheduler, at the last epoch of ``history``; ``failed``: with ``error``."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final metrics; of a stopped trial, those of its last epoch."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each epoch with its number under ``epoch``."""
    run_id: str | None = None
    """Tracked run of the trial."""
    error: str = ""
    """Last line of the traceback; the whole of it is in ``error.txt`` beside the record."""
    seconds: float = 0.0
    """Wall time of the trial."""

    @property
    def id(self) -> str:
        return trial_id(Point(self.params), self.seed)


class StudyFolder:
    """The folder of a study: ``trials/<id>/result.json``, ``points/<id>.json``, ``study.json`` and the report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def trial_folder(self, point: Point, seed: int) -> Path:
        return self.path / "trials" / trial_id(point, seed)

    def write(self, record: TrialRecord) -> None:
        """Keep a record; one of the same trial is replaced."""
        write_json(self.trial_folder(Point(record.params), record.seed) / "result.json", dataclasses.asdict(record))

    def read(self, point: Point, seed: int) -> TrialRecord | None:
        """The record of a trial, None where it has not ended.

        Raises:
            StudyError: If the file is damaged, which an interrupted write can't cause.
        """
        content = read_json(self.trial_folder(point, seed) / "result.json")
        return None if content is None else TrialRecord(**content)

    def finished(self, point: Point, seed: int, *, scheduled: bool) -> TrialRecord | None:
        """The record of a trial that need not run again: not of a failed one, nor of a stopped one where
        nothing stops trials any more."""
        record = self.read(point, seed)
        if record is None or record.status == "failed" or (record.status == "stopped" and not scheduled):
            return None
        return record

    def add_point(self, params: Mapping[str, Scalar]) -> None:
        """Keep a point that a search asked for, before its first trial: a search that goes on asks for it first."""
        file = self.path / "points" / f"{Point(dict(params)).id}.json"
        if not file.exists():
            number = len(list(file.parent.glob("*.json")))
            write_json(file, {"params": dict(params), "number": number})

    def points(self) -> list[Point]:
        """The points that a search has asked for, in order."""
        contents = [read_json(path) for path in (self.path / "points").glob("*.json")]
        kept = [content for content in contents if content is not None]
        ordered = sorted(kept, key=lambda content: (content["number"], json.dumps(content["params"], sort_keys=True)))
        return [Point(content["params"]) for content in ordered]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however that ends.

        Raises:
            StudyError: If another process runs this study.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"{self.path}: another process runs this study; wait for it, or end it and start again"
                ) from error
            yield


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2).encode())


def read_json(path: Path) -> Any:
    """Content of a JSON file, None where there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StudyError(f"{path}: damaged ({error}); delete it, and its trial runs again") from error
