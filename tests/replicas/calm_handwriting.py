"""Replica of CALM_EM, CALM_ML and CAM on handwriting: localising one digit among letters and shuffled digits.

    python -m tests.replicas.calm_handwriting --seeds 0 1 2 --out outputs/replica_calm_handwriting [--mlflow URI]

Every training uses the platform's own recipe, in this process; the three networks of a seed start from one backbone
pretrained to classify single digits, as the paper's start from ImageNet. Gradient maps are those of the CAM network.
Prints Markdown tables (test images; mean and standard deviation over seeds), and writes one JSON file per training
(existing ones are not repeated), ``results.json`` and figures, also to MLflow if a URI is given.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from tenfold.bundle import load_bundle
from tenfold.config import job_from_dict
from tenfold.data.catalog import load_localisation, load_multilabel
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.localisation import LocalisationSplit
from tenfold.engine.fit import Clock, FitPlan, fit
from tenfold.engine.run import PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.engine.storage import Storage
from tenfold.figures.overlays import figure_overlays
from tenfold.files import write_atomically
from tenfold.methods.calm import recipe
from tenfold.methods.calm.data import spread_rows
from tenfold.methods.calm.evaluation import measure_maps
from tenfold.methods.calm.figures import figure_remove_and_classify
from tenfold.methods.calm.head import Objective
from tenfold.methods.calm.map_metrics import Measured
from tenfold.methods.calm.predictor import load
from tenfold.methods.calm.settings import GradientBaseline
from tenfold.methods.calm.sources import Source, gradient_source, own_source, view
from tenfold.metrics.localisation.maps import Normalization, normalize_score_map, resize_score_map
from tenfold.models.image_classifier import ModelConfig, build_classifier
from tenfold.tracking.runs import start_run
from tenfold.types import Batch, Preprocessing

MODES: dict[Objective, str] = {"cam": "CAM", "em": "CALM_EM", "ml": "CALM_ML"}
GRADIENTS: dict[GradientBaseline, str] = {
    "input_gradient": "input gradient",
    "integrated_gradient": "integrated",
    "smooth_gradient": "smooth",
    "variance_gradient": "variance",
}
SIZE = 64
DATA: dict[str, Any] = {"name": "handwriting", "num_train": 4000, "num_val": 500, "num_test": 1000}
MODEL: dict[str, Any] = {"name": "dilated_cnn"}
METHOD: dict[str, Any] = {
    "name": "calm", "optimizer": "adam", "learning_rate": 3e-3, "head_multiplier": 1.0, "weight_decay": 1e-5,
    "schedule": "one_cycle", "image_size": SIZE, "crop_from": None, "max_shift": 8, "erase_to": "picture_mean",
}  # fmt: skip
"""Chosen on the validation images of seed 0."""
NUM_EPOCHS, NUM_EPOCHS_BEFORE, BATCH_SIZE = 20, 8, 64
NUM_GRADIENT_IMAGES = 100
"""Number of test images whose gradient maps are evaluated: three of the four take some fifty passes each."""
NUM_EXAMPLES = 6
COLUMNS = (  # title, metric, digits
    ("accuracy, %", "accuracy", 1),
    ("PxAP minmax", "pxap_minmax_even", 1),
    ("PxAP clip + log", "pxap_clipping_log", 1),
    ("mass in the cue", "mass_in_cue", 3),
    ("MaxBoxAcc 0.5", "max_box_acc_50", 1),
    ("MaxBoxAccV2", "max_box_acc_v2", 1),
    ("R_10", "R_10", 2),
    ("R_30", "R_30", 2),
    ("R_50", "R_50", 2),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training."""

    mode: Objective
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mode}-seed{self.seed}"

    def job(self, backbone: Path) -> JobConfig:
        return job_from_dict(
            {
                "method": {**METHOD, "mode": self.mode},
                "data": DATA,
                "model": {**MODEL, "checkpoint": str(backbone)},
                "scale": {"kind": "plain"},
                "run": {"num_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE, "seed": self.seed},
            }
        )


def name_single_digits(seed: int, folder: Path) -> Path:
    """Pretrain a backbone to classify the digit of scenes with nothing else in them; return its weight file."""
    path = folder / f"backbone-seed{seed}.safetensors"
    if path.is_file():
        return path
    config = HandwritingConfig(max_digits=1, num_pos=-1, num_train=DATA["num_train"], num_val=10, num_test=10)
    train_set = load_multilabel(config).train
    labels = torch.from_numpy(train_set.full.argmax(1))

    def read(rows: np.ndarray) -> Batch:
        return {"images": train_set.images.read(rows), "labels": labels[torch.from_numpy(rows)]}

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        return functional.cross_entropy(model(batch["images"]), batch["labels"])

    run = PlainRun(folder=folder / "runs" / path.stem, seed=seed, progress=False)
    try:
        result = fit(
            run,
            build_classifier(ModelConfig(**MODEL), len(train_set.full[0]), SIZE),
            loss,
            run.loader(read, len(labels), BATCH_SIZE, shuffle=True),
            FitPlan(num_epochs=NUM_EPOCHS_BEFORE),
            optimizer=lambda bare: torch.optim.Adam(bare.parameters(), weight_decay=METHOD["weight_decay"]),
            schedule=lambda optimizer, steps: OneCycleLR(optimizer, 6e-3, total_steps=steps),
        )
    finally:
        run.close()
    backbone: Any = result.model.backbone
    weights = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    write_atomically(path, save(weights))
    return path


def train(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train once and return the record, or read that of an earlier training.

    Returns:
        ``setting``; ``metrics`` as the recipe gives them; for CAM ``gradients``, the metrics of each gradient map;
        ``bundle``, its folder; ``seconds`` of processor time.
    """
    storage = Storage(folder)
    if (done := storage.read_json(f"{setting.name}.json")) is not None:
        return done
    backbone = name_single_digits(setting.seed, folder)
    started = time.process_time()
    job = setting.job(backbone)
    run = PlainRun(folder=folder / "runs" / setting.name, shared=folder / "runs", seed=setting.seed, progress=False)
    try:
        outcome = recipe.train(job, run)
        gradients = _measure_gradients(run, outcome.bundle) if setting.mode == "cam" else {}
    finally:
        run.close()
    record = {
        "setting": asdict(setting),
        "metrics": outcome.metrics,
        "gradients": {name: each.metrics("test") for name, each in gradients.items()},
        "bundle": str(outcome.bundle),
        "seconds": time.process_time() - started,
    }
    storage.write_json(f"{setting.name}.json", record)
    return record


def load_test() -> LocalisationSplit:
    """Load the test images, which are the same for every training seed."""
    return load_localisation(HandwritingConfig(**DATA), Preprocessing(image_size=SIZE)).test


def _measure_gradients(run: PlainRun, bundle: Path) -> dict[str, Measured]:
    predictor, test = load(load_bundle(bundle)), load_test()
    sources: dict[str, Source] = {name: gradient_source(predictor.model, name) for name in GRADIENTS}
    rows = spread_rows(len(test), NUM_GRADIENT_IMAGES)
    return measure_maps(run, predictor.model, test, sources, predictor.config, rows=rows)


# -- the report


def table(results: Mapping[Objective, Sequence[Mapping[str, Any]]]) -> str:
    """Format the table: rows for networks, then for gradient maps of the CAM networks."""
    lines = [f"| test | {' | '.join(title for title, _, _ in COLUMNS)} |", "|" + " --- |" * (1 + len(COLUMNS))]
    for mode, records in results.items():
        lines.append(_row(MODES[mode], [record["metrics"] for record in records]))
    for name, title in GRADIENTS.items():
        lines.append(_row(f"{title} (of CAM)", [record["gradients"][name] for record in results["cam"]]))
    chance = load_test().read_masks(np.arange(DATA["num_test"])).mean()
    return "\n".join(lines) + f"\n\nA constant map has PxAP {100 * chance:.1f} and mass {chance:.3f}."


def _row(name: str, metrics: Sequence[Mapping[str, float]]) -> str:
    cells = [name]
    for _, key, digits in COLUMNS:
        values = [each[f"test/{key}"] for each in metrics if f"test/{key}" in each]
        cells.append(spread(values, digits) if values else "")
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def figure_examples(records: Mapping[Objective, Mapping[str, Any]]) -> Figure:
    """Show test images under the maps of one seed's networks and gradients, the digit's outline in white."""
    test = load_test()
    rows = spread_rows(len(test), NUM_EXAMPLES)
    images, labels = test.images.read(rows), torch.from_numpy(test.labels[rows])
    maps: dict[str, Tensor] = {}
    for mode, record in records.items():
        predictor = load(load_bundle(Path(record["bundle"])))
        seen = view(predictor.model, images, labels)
        kind: Normalization = "minmax" if mode == "cam" else "max"
        for source in own_source(predictor.model, predictor.config, None).values():
            maps[MODES[mode]] = normalize_score_map(resize_score_map(source(seen), SIZE), kind)
        if mode == "cam":
            gradients = {GRADIENTS[name]: gradient_source(predictor.model, name)(seen) for name in GRADIENTS}
    maps |= {name: normalize_score_map(gradient, "minmax") for name, gradient in gradients.items()}
    titles = [f"digit {label}" for label in labels.tolist()]
    return figure_overlays(images, list(maps.values()), list(maps), titles, test.read_masks(rows))


def figure_erasing(records: Mapping[Objective, Mapping[str, Any]]) -> Figure:
    """Plot R_k over k of one seed's networks and gradients."""
    shown = {MODES[mode]: record["metrics"] for mode, record in records.items()}
    shown |= {GRADIENTS[name]: records["cam"]["gradients"][name] for name in GRADIENTS}
    measured = {}
    for name, metrics in shown.items():
        ratios = {key.removeprefix("test/R_"): value for key, value in metrics.items() if key.startswith("test/R_")}
        measured[name] = Measured(num_pictures=DATA["num_test"], ratios=ratios)
    return figure_remove_and_classify(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_calm_handwriting"))
    parser.add_argument("--mlflow", help="tracking URI to which table and figures are logged too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[Objective, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for seed in options.seeds:
        for mode in MODES:
            record = train(Setting(mode=mode, seed=seed), folder)
            metrics = {name: round(value, 3) for name, value in record["metrics"].items() if name.startswith("val/")}
            print(f"{mode}-seed{seed} ({record['seconds']:.0f} s): {json.dumps(metrics)}", flush=True)
            results[mode].append(record)
    text = table(results)
    first = {mode: records[0] for mode, records in results.items()}
    figures = {"maps": figure_examples(first), "remove_and_classify": figure_erasing(first)}
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    Storage(folder).write_json("results.json", {"results": results, "table": text})
    if options.mlflow:
        tracker = start_run(options.mlflow, "replicas", "calm_handwriting")
        tracker.log_text("table.md", text)
        for name, figure in figures.items():
            tracker.log_figure(name, figure)
        tracker.finish()
    print(f"\n{text}")


if __name__ == "__main__":
    main()
