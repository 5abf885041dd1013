"""The head that recipes share: a stage that trains once for the same inputs, and what it leaves in its folder.

The folder of a finished stage holds ``bundle/``, the trained model, and ``results.json``: its metrics, its history, and
what else the recipe wants to draw from later.
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
from tenfold.types import Predictor, RegressionPredictor

BUNDLE = "bundle"
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training, on disk."""

    folder: Path
    data_fingerprint: str
    results: Mapping[str, Any]
    """What ``save_results`` wrote: ``metrics``, ``history`` and more."""

    @property
    def bundle(self) -> Path:
        """Folder of the trained model."""
        return self.folder / BUNDLE

    def outcome(self, metric: str, mode: Literal["max", "min"]) -> Outcome:
        """The answer of a recipe; ``metric`` decides which model is better."""
        return Outcome(
            bundle=self.bundle,
            metrics=self.results["metrics"],
            metric=metric,
            mode=mode,
            data_fingerprint=self.data_fingerprint,
            history=self.results["history"],
        )


def stage_key(job: JobConfig, data_fingerprint: str, **more: Any) -> dict[str, Any]:
    """Everything that the output of a stage depends on: all settings, the data, this version, and ``more``."""
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
    """Train in a stage of its own, or find what an earlier run with the same inputs left.

    Args:
        run: The machine.
        job: Settings.
        data_fingerprint: Of the training data.
        work: Trains, and ends with ``save_results`` in the main worker; gets the stage's folder.
        stage: Name of the stage; None: the method's.
        **more: What the output depends on beside settings and data, as JSON-like values.
    """
    folder = run.stage(stage or job.method_name, stage_key(job, data_fingerprint, **more), work)
    results = json.loads((folder / RESULTS).read_text())
    return Trained(folder=folder, data_fingerprint=data_fingerprint, results=results)


def save_results(
    folder: Path,
    job: JobConfig,
    predictor: Predictor | RegressionPredictor,
    probes: Tensor | Mapping[str, Tensor],
    *,
    tensors: Mapping[str, Tensor],
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    data_name: str,
    data_fingerprint: str,
    files: Mapping[str, bytes | Path] | None = None,
    **more: Any,
) -> None:
    """Write the bundle with its probe set, and ``results.json``; what a killed attempt left is replaced.

    Args:
        folder: Of the stage.
        job: Settings.
        predictor, probes, tensors, metrics, data_name, data_fingerprint, files: As in ``tenfold.bundle.save_trained``.
        history: Metrics of each epoch.
        **more: Further JSON-like values to keep with the results.
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
