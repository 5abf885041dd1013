"""Training stage shared by recipes: it runs once for the same inputs and leaves its results in a folder.

The folder of a finished stage holds ``bundle/``, the trained model, and ``results.json``: its metrics, its history and
further values that the recipe needs later.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tenfold import __version__
from tenfold.bundle import save_trained
from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.probes import Inputs
from tenfold.tasks import Predictor

BUNDLE = "bundle"
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Finished training on disk."""

    folder: Path
    data_fingerprint: str
    results: Mapping[str, Any]
    """Content of ``results.json``: ``metrics``, ``history`` and more."""

    @property
    def bundle(self) -> Path:
        """Folder of the trained model."""
        return self.folder / BUNDLE

    def outcome(self, metric: str, mode: Literal["max", "min"]) -> Outcome:
        """Build the outcome of a recipe; ``metric`` decides which model is better."""
        return Outcome(
            bundle=self.bundle,
            metrics=self.results["metrics"],
            metric=metric,
            mode=mode,
            data_fingerprint=self.data_fingerprint,
            history=self.results["history"],
        )


def stage_key(job: JobConfig, data_fingerprint: str, **more: Any) -> dict[str, Any]:
    """Return everything that a stage's output depends on: all settings, the data, this version, and ``more``."""
    return {"job": job.digest(), "data": data_fingerprint, "version": __version__, **more}


def train_once(
    run: Run,
    job: JobConfig,
    data_fingerprint: str,
    work: Callable[[Path], None],
    *,
    stage: str | None = None,
    **more: Any,
) -> Trained:
    """Train in a stage, or reuse the results of an earlier run with the same inputs.

    Args:
        run: Runtime of this worker.
        job: Settings.
        data_fingerprint: Fingerprint of the training data.
        work: Trains into the stage's folder, which it receives, and calls ``save_results`` on the main worker.
        stage: Name of the stage; None takes the method's.
        **more: Further JSON-like values that the output depends on.
    """
    folder = run.stage(stage or job.method_name, stage_key(job, data_fingerprint, **more), work)
    results = json.loads((folder / RESULTS).read_text())
    return Trained(folder=folder, data_fingerprint=data_fingerprint, results=results)


def save_results(
    folder: Path,
    job: JobConfig,
    predictor: Predictor,
    probes: Tensor | Inputs | Sequence[Inputs],
    *,
    tensors: Mapping[str, Tensor],
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    data_name: str,
    data_fingerprint: str,
    files: Mapping[str, bytes | Path] | None = None,
    **more: Any,
) -> None:
    """Write the bundle with its probe set, and ``results.json``; replaces leftovers of a killed attempt.

    Args:
        folder: Folder of the stage.
        job: Settings.
        predictor, probes, tensors, metrics, data_name, data_fingerprint, files: As in ``tenfold.bundle.save_trained``.
        history: Metrics of each epoch.
        **more: Further JSON-like values to store with the results.
    """
    save_trained(
        folder / BUNDLE,
        predictor,
        probes,
        config=job.as_dict(),
        tensors=tensors,
        method=job.method_name,
        metrics=metrics,
        data_name=data_name,
        data_fingerprint=data_fingerprint,
        files=files,
    )
    (folder / RESULTS).write_text(json.dumps({"metrics": metrics, "history": history, **more}))
