"""Replica of BoostLU on handwriting scenes, by the training jobs: every loss with and without the boost.

    python -m tests.replicas.boostlu_handwriting --seeds 0 1 2 --out outputs/replica_boostlu

Nine trainings per seed, each about a minute on one core. Prints Markdown tables (test mAP; a plain model boosted only
at inference; agreement of maps with those of a model with full labels; false negatives found by LL-R) and writes every
training, ``results.json`` and figures of the maps; existing trainings are not repeated. ``--select`` prints the
validation mAP, and no test result, of the candidates for ``SETTINGS``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from jobs.config import compose_job
from tenfold.bundle import load_bundle
from tenfold.catalog import load_predictor
from tenfold.data.catalog import load_multilabel
from tenfold.engine.predict import predict_images
from tenfold.engine.run import PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.methods.boostlu.predictor import boosted_classifier
from tenfold.methods.large_loss import map_evaluation
from tenfold.methods.large_loss.evaluation import multilabel_metrics
from tenfold.methods.large_loss.observatory import detection_curve
from tenfold.methods.large_loss.predictor import MultiLabelPredictor
from tenfold.models.image_classifier import ModelConfig
from tenfold.training import train

SELECTION_SEED = 100
"""Seed of the model selection, not among those of the results."""
METHODS = ("large_loss", "boostlu")
SCHEMES = ("an", "LL-R", "LL-Ct", "LL-Cp")
NAMES = {"full": "full labels", "an": "AN"}
Settings = dict[str, float]
RATES: tuple[Settings, ...] = tuple({"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3))
SHARES: tuple[Settings, ...] = tuple(
    {"learning_rate": rate, "delta_rel_percent": share} for rate, share in ((3e-4, 1.5), (3e-4, 3.0), (1e-3, 1.5))
)
CANDIDATES: dict[tuple[str, str], tuple[Settings, ...]] = {
    **{(method, "an"): RATES for method in METHODS},
    **{("boostlu", scheme): SHARES[:2] for scheme in SCHEMES[1:]},
    # One candidate more, so that the baseline does not lose by its learning rate.
    **{("large_loss", scheme): SHARES for scheme in SCHEMES[1:]},
}
SETTINGS: dict[tuple[str, str], Settings] = {
    ("large_loss", "full"): {"learning_rate": 1e-3},  # the default of the job
    **{(method, "an"): RATES[0] for method in METHODS},
    **{("boostlu", scheme): SHARES[0] for scheme in SCHEMES[1:]},
    ("large_loss", "LL-R"): SHARES[0],
    ("large_loss", "LL-Ct"): SHARES[2],
    ("large_loss", "LL-Cp"): SHARES[2],
}
"""Best candidate on the validation images of the selection seed, by method and scheme."""
FACTORS = (1, 2, 5, 20)
EPOCHS_SHOWN = (3, 6, 9, 12)


def job_of(method: str, scheme: str, seed: int, folder: Path, **settings: float) -> JobConfig:
    """Compose the job of ``python jobs/train.py method=... method.scheme=...`` in a given folder."""
    words = [f"method.{key}={value}" for key, value in settings.items()]
    return compose_job(
        [
            f"method={method}", "data=handwriting", "scale=local", f"scale.storage={folder}", "run.register=false",
            f"method.scheme={scheme}", f"run.seed={seed}", "method.stop_after_drop=null", *words,
        ]
    )  # fmt: skip


def select(folder: Path) -> None:
    """Print the best validation mAP of every candidate, without evaluating test images."""
    for (method, scheme), candidates in CANDIDATES.items():
        for settings in candidates:
            result = train(job_of(method, scheme, SELECTION_SEED, folder, **settings), progress=False)
            print(f"{method} {scheme} {settings}: validation mAP {result.metrics['val/mAP']:.2f}", flush=True)


def replicate(seed: int, folder: Path) -> dict[str, Any]:
    """Run all trainings of a seed and their evaluation."""
    found: dict[str, Any] = {"test_mAP": {}, "best_epoch": {}, "last_mAP": {}, "rejected_fn": {}}
    bundles: dict[str, Path] = {}
    for (method, scheme), settings in SETTINGS.items():
        job = job_of(method, scheme, seed, folder, **settings)
        result = train(job, progress=False)
        name = f"{method} {scheme}"
        bundles[name] = Path(result.bundle)
        history = [row["val/mAP"] for row in result.history]
        found["test_mAP"][name] = result.metrics["test/mAP"]
        found["best_epoch"][name] = int(np.argmax(history)) + 1
        found["last_mAP"][name] = history[-1]
        if scheme == "LL-R":
            curve = detection_curve(bundles[name].parent / "observatory").set_index("epoch")
            found["rejected_fn"][name] = {epoch: int(curve.loc[epoch, "rejected_fn"]) for epoch in EPOCHS_SHOWN}
        print(f"seed {seed}, {name}: test mAP {found['test_mAP'][name]:.2f}", flush=True)
    found["inference_only"] = _boosted_answers(bundles["large_loss an"], job, folder)
    found["explanations"] = {
        name: _explanations(bundles[name], bundles["large_loss full"], name, seed, job, folder)
        for name in ("large_loss an", "large_loss LL-R", "boostlu an", "boostlu LL-R")
    }
    return found


class _Shelf:
    """A recorder that writes figures to a folder and ignores everything else."""

    run_id = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log_figure(self, name: str, figure: Figure) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self._folder / name, dpi=110)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, path: Path, folder: str = "") -> None: ...


def _boosted_answers(bundle: Path, job: JobConfig, folder: Path) -> dict[int, dict[str, float]]:
    """Compute test mAP and recall at 0.5 of a plain model whose maps are boosted at inference, by factor."""
    data = load_multilabel(job.data)
    answers = {}
    run = PlainRun(folder=folder / "scratch", progress=False)
    for factor in FACTORS:
        settings = {"boost": float(factor), "boost_mode": "inference"}
        network = boosted_classifier(settings, ModelConfig(), len(data.classes), data.image_size)
        tensors = {**network.state_dict(), **load_bundle(bundle).tensors()}
        network.load_state_dict(tensors)
        predictor = MultiLabelPredictor(network, data.classes, "cpu")
        logits = predict_images(run, lambda images, ask=predictor: ask(images)["logits"], data.test.images)
        truth = torch.from_numpy(data.test.full == 1)
        answers[factor] = {
            "mAP": multilabel_metrics(logits, data.test, "test")["test/mAP"],
            "recall": float((logits[truth] > 0).float().mean()),
        }
    run.close()
    return answers


def _explanations(
    bundle: Path, reference: Path, name: str, seed: int, job: JobConfig, folder: Path
) -> dict[str, float]:
    run = PlainRun(folder=folder / "scratch", progress=False, recorder=_Shelf(folder / "figures" / f"seed{seed}"))
    names = [name.replace("large_loss ", "plain ").replace("boostlu ", "boosted "), "full labels"]
    found = map_evaluation.compare(load_predictor(bundle), load_predictor(reference), job.data, run, names)
    run.close()
    return found


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Format Markdown tables with mean and standard deviation over seeds."""

    def spread(*keys: Any, places: int = 1) -> str:
        values = []
        for result in results:
            value: Any = result
            for key in keys:
                value = value[key]
            values.append(float(value))
        if len(values) == 1:
            return f"{values[0]:.{places}f}"
        return f"{np.mean(values):.{places}f} ± {np.std(values, ddof=1):.{places}f}"

    lines = ["| scheme | plain | + BoostLU |", "| --- | --- | --- |"]
    lines.append(f"| full labels | {spread('test_mAP', 'large_loss full')} | |")
    for scheme in SCHEMES:
        cells = [spread("test_mAP", f"{method} {scheme}") for method in METHODS]
        lines.append(f"| {NAMES.get(scheme, scheme)} | {cells[0]} | {cells[1]} |")
    lines += ["", "| AN boosted at inference only, alpha | test mAP | recall at 0.5 |", "| --- | --- | --- |"]
    for factor in FACTORS:
        cells = [spread("inference_only", factor, key, places=2 - (key == "mAP")) for key in ("mAP", "recall")]
        lines.append(f"| {factor} | {cells[0]} | {cells[1]} |")
    shown = {
        "correlation_median": "rank correlation, median",
        "control_median": "control, median",
        "top_positives_reference": "highest 5 %, positive class, full labels",
        "top_positives_model": "highest 5 %, positive class, model",
        "top_negatives_model": "highest 5 %, negative class, model",
        "bottom_positives_model": "lowest 5 %, positive class, model",
        "bottom_negatives_model": "lowest 5 %, negative class, model",
        "recall_model": "recall at 0.5, model",
    }
    names = list(results[0]["explanations"])
    lines += ["", f"| maps against full labels | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for key, words in shown.items():
        lines.append(f"| {words} | {' | '.join(spread('explanations', name, key, places=2) for name in names)} |")
    names = list(results[0]["rejected_fn"])
    lines += ["", f"| false negatives rejected at epoch | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for epoch in EPOCHS_SHOWN:
        lines.append(f"| {epoch} | {' | '.join(spread('rejected_fn', name, epoch, places=0) for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_boostlu"))
    parser.add_argument("--select", action="store_true", help="print the validation mAP of the candidates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.select:
        select(options.out)
        return
    results = [replicate(seed, options.out) for seed in options.seeds]
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    print(tables(results))


if __name__ == "__main__":
    main()
