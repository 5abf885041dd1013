"""Tracked run of a study: parent of its trials' runs, with tables and figures as artifacts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tenfold.studies.records import read_json, write_json
from tenfold.studies.results import StudyResult
from tenfold.studies.study import Study

if TYPE_CHECKING:
    from tenfold.tracking.runs import Tracker


@dataclass(frozen=True)
class StudyTracking:
    """Tracking store and experiment of a study."""

    uri: str
    """Tracking URI of a server or database."""
    experiment: str


class StudyRun:
    """Tracked run of a study, or a no-op without tracking."""

    def __init__(self, tracker: "Tracker | None") -> None:
        self._tracker = tracker

    @property
    def run_id(self) -> str | None:
        return self._tracker.run_id if self._tracker else None

    def log(self, result: StudyResult) -> None:
        """Log tables, report, figures and the best point's metrics."""
        if self._tracker is None:
            return
        for name in ("summary.csv", "trials.csv", "report.md", "study.json"):
            self._tracker.log_file(result.folder / name)
        for path in result.figures.values():
            self._tracker.log_file(path, "figures")
        counts = {
            status: float(sum(r.status == status for r in result.records)) for status in ("done", "stopped", "failed")
        }
        metrics = {f"trials/{status}": count for status, count in counts.items()}
        if (best := result.best) is not None:
            metrics |= {
                f"best/{name}": best.spread(name).mean for name in result.study.metrics if best.spread(name).values
            }
            self._tracker.set_tags({"best": best.point.label})
        self._tracker.log_metrics(metrics, step=0)


@contextmanager
def open_study_run(study: Study, folder: Path, tracking: StudyTracking | None, command: str) -> Iterator[StudyRun]:
    """Open the study's run, the same at every start, and close it with the status of the block.

    Open runs of killed or stopped trials are closed too.
    """
    if tracking is None:
        yield StudyRun(None)
        return
    from tenfold.tracking.runs import close_stale_children, resume_run, start_run  # MLflow takes seconds to import

    known = read_json(folder / "run.json")
    if known is not None and known["uri"] == tracking.uri:
        tracker = resume_run(tracking.uri, known["run_id"])
    else:
        tags = {"tenfold.studies.study": study.name, "tenfold.study_folder": str(folder)}
        tracker = start_run(tracking.uri, tracking.experiment, f"study {folder.name}", tags=tags)
        write_json(folder / "run.json", {"uri": tracking.uri, "run_id": tracker.run_id})
        values = {"study": study.name, "budget": study.budget, "search": study.search, "metric": study.metric}
        tracker.log_params({**values, "mode": study.mode, "command": command})
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield StudyRun(tracker)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        close_stale_children(tracking.uri, tracker.run_id)
        tracker.finish(status)
