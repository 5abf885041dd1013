"""Replica of Large Loss on small scenes of scikit-learn's digits, in minutes on one core.

    python -m tests.replicas.large_loss_scenes --seeds 0 1 2 --out outputs/replica_large_loss

Prints Markdown tables with the specification's values for the same protocol alongside, and writes one JSON file per
training (existing ones are not trained again), ``results.json`` and two figures.

A scene is 24x24: 1 to 4 distinct digits in random cells of a 3x3 grid, under Gaussian noise; one random positive of
each training scene is observed. Everything uses the platform's own objects except the image source and the network:
images stay unquantised grey floats, as rounding to uint8 would clip half of the noise of the empty cells.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from tenfold.data.multilabel import MultiLabelSplit
from tenfold.data.partial_labels import observe_labels
from tenfold.engine.fit import Clock, FitPlan, fit
from tenfold.engine.run import PlainRun, Run
from tenfold.engine.storage import Storage
from tenfold.methods.large_loss.evaluation import model_metrics
from tenfold.methods.large_loss.figures import figure_detection, figure_memorisation
from tenfold.methods.large_loss.objective import TrainingLabels, WithLabelEstimator, check_labels, role_model
from tenfold.methods.large_loss.observatory import LabelNoiseRecorder, detection_curve, memorisation_curve
from tenfold.methods.large_loss.settings import LARGE_LOSS_SCHEMES, Config, Scheme
from tenfold.models.image_classifier import ImageClassifier, parameter_groups
from tenfold.types import Batch, Preprocessing
from tests.replicas.threads import one_thread

NUM_CLASSES, CELL, GRID = 10, 8, 3
SIZE = CELL * GRID
NOISE_STD = 0.1
NUM_SOURCE_DIGITS = 900
"""Digits of the pretraining, training and validation scenes; test scenes use the other 897."""
NUM_SCENES = {"train": 1500, "val": 500, "test": 1000}
NUM_EPOCHS, NUM_EPOCHS_LONG = 12, 40
BATCH_SIZE, LEARNING_RATE = 32, 1e-3
LARGE_LOSS_DELTAS: dict[Scheme, float] = {"LL-R": 1.5, "LL-Ct": 1.0, "LL-Cp": 1.0}
"""``delta_rel_percent`` of each scheme."""
SWEEP = (0.5, 1.0, 1.5, 2.0, 3.0)
BASELINES: tuple[Scheme, ...] = ("an_ls", "wan", "epr", "role", "em", "em_apl", "asl")
SPECIFIED = {"full": "97.4 / 97.2", "an": "83.5 / 83.3", "LL-R": "92.1 / 92.3", "LL-Ct": "92.7 / 92.3",
             "LL-Cp": "91.9 / 91.8"}  # fmt: skip
SPECIFIED_SWEEP = {0.5: 86.8, 1.0: 90.8, 1.5: 92.1, 2.0: 92.6, 3.0: 91.2}
SPECIFIED_MEMORISATION = {  # epoch: loss of false negatives, of true negatives, test mAP
    1: (0.151, 0.131, 60.5), 7: (0.266, 0.040, 83.8), 12: (0.225, 0.027, 81.0), 20: (0.132, 0.014, 76.2),
    40: (0.037, 0.005, 72.2),
}  # fmt: skip
SPECIFIED_DETECTION = {3: (417, None), 6: (1039, 0.92), 9: (1550, 0.85), 12: (1850, 0.74)}

Pretraining = Literal["canvas", "cell"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training."""

    scheme: Scheme
    seed: int
    delta_rel_percent: float = 0.0
    num_epochs: int = NUM_EPOCHS
    pretraining: Pretraining = "canvas"
    """Single digits of the pretraining: in a random cell of a noisy 24x24 canvas, or 8x8 crops.

    Over three seeds LL-Cp reaches 92.0 with canvases and 90.2 with crops, full labels 97.2 and 97.0; the specification,
    which does not state it, has 91.9 and 97.3. The other schemes differ by at most 1 point.
    """

    @property
    def name(self) -> str:
        return f"{self.scheme}-{self.delta_rel_percent:g}-{self.num_epochs}-{self.pretraining}-seed{self.seed}"


class FloatImages:
    """Images in memory: grey floats ``(N, 1, H, W)``."""

    in_memory = True

    def __init__(self, images: np.ndarray) -> None:
        self._images = torch.from_numpy(images.astype(np.float32))

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: "np.ndarray | Sequence[int]") -> Tensor:
        return self._images[torch.from_numpy(np.asarray(indices))]


class SceneClassifier(ImageClassifier):
    """Network of the replica, 24x24 to 6x6 maps; a linear head on the mean equals a 1x1 convolution and the mean."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for width_before, width, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
            layers += [nn.Conv2d(width_before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), 64, NUM_CLASSES, Preprocessing(image_size=SIZE))

    def normalise(self, images: Tensor) -> Tensor:
        return images


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Data of one seed."""

    train: MultiLabelSplit
    val: MultiLabelSplit
    test: MultiLabelSplit
    digits: np.ndarray
    """Source digits of the training scenes, ``(900, 8, 8)`` in [0, 1]."""
    digit_labels: np.ndarray


def make_scenes(seed: int) -> Scenes:
    """Draw scenes; digits, positions, noise and observed labels all depend on the seed."""
    rng = np.random.default_rng(seed)
    images, names = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, CELL, CELL)
    order = rng.permutation(len(images))
    source, held_out = order[:NUM_SOURCE_DIGITS], order[NUM_SOURCE_DIGITS:]

    def split(name: str) -> MultiLabelSplit:
        pool = held_out if name == "test" else source
        canvases, full = _draw(images[pool], names[pool], NUM_SCENES[name], rng)
        observed = observe_labels(full, num_pos=1, num_neg=0, seed=1200 + seed) if name == "train" else full
        return MultiLabelSplit(images=FloatImages(canvases), full=full, observed=observed)

    return Scenes(
        train=split("train"),
        val=split("val"),
        test=split("test"),
        digits=images[source],
        digit_labels=names[source],
    )


def train(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train once and return plain values, or read the results of an earlier training with this setting.

    Returns:
        ``setting``; ``history`` (for each epoch ``val/mAP``, ``test/mAP`` ...); ``best_epoch`` by validation and the
        ``test_mAP`` there; ``last_test_mAP``; ``memorisation`` and ``detection``, the curves of the observatory as
        records, for the schemes that are recorded; ``seconds``.
    """
    storage = Storage(folder)
    if (done := storage.read_json(f"{setting.name}.json")) is not None:
        return done
    start = time.monotonic()
    scenes = make_scenes(setting.seed)
    config = Config(
        scheme=setting.scheme,
        delta_rel_percent=setting.delta_rel_percent,
        learning_rate=LEARNING_RATE,
        stop_after_drop=None,  # the last epoch is evaluated too
    )
    check_labels(config, scenes.train)
    with tempfile.TemporaryDirectory() as name, one_thread():
        run = PlainRun(folder=Path(name) / "run", seed=setting.seed, progress=False)
        try:
            curves = Path(name) / "observatory"
            results = _train(setting, config, scenes, run, curves)
        finally:
            run.close()
    results["seconds"] = time.monotonic() - start
    storage.write_json(f"{setting.name}.json", results)
    return results


def _train(setting: Setting, config: Config, scenes: Scenes, run: Run, curves: Path) -> dict[str, Any]:
    classifier = SceneClassifier()
    _pretrain(classifier, scenes, run, setting.pretraining)
    classifier.head.reset_parameters()
    recorder = None
    if config.scheme in LARGE_LOSS_SCHEMES or config.scheme == "an":
        recorder = LabelNoiseRecorder(
            curves,
            rank=0,
            num_samples=len(scenes.train.images),
            classes=[str(digit) for digit in range(NUM_CLASSES)],
            observed=scenes.train.observed,
            true=scenes.train.full,
            scheme=config.scheme,
        )
    labels = TrainingLabels(config, scenes.train, run, mirror=False, recorder=recorder)
    model = role_model(classifier, scenes.train, run.seed) if config.scheme == "role" else classifier
    result = fit(
        run,
        model,
        labels.objective(),
        run.loader(labels.read, len(scenes.train.images), BATCH_SIZE, shuffle=True),
        FitPlan(num_epochs=setting.num_epochs, monitor="val/mAP", mode="max"),
        optimizer=lambda bare: _optimizer(config, bare),
        evaluate=lambda bare: _metrics(run, scenes, _classifier(bare)),
    )
    results = {
        "setting": asdict(setting),
        "history": result.history,
        "best_epoch": result.best_epoch,
        "test_mAP": _metrics(run, scenes, _classifier(result.model))["test/mAP"],
        "last_test_mAP": result.history[-1]["test/mAP"],
    }
    if recorder is not None:
        results["memorisation"] = memorisation_curve(curves).to_dict("records")
    if config.scheme in LARGE_LOSS_SCHEMES:
        results["detection"] = detection_curve(curves).to_dict("records")
    return _without_nan(results)


def _pretrain(classifier: SceneClassifier, scenes: Scenes, run: Run, pretraining: Pretraining) -> None:
    """Pretrain the backbone to classify single digits, 8 epochs over the source digits."""
    images = scenes.digits[:, None]
    if pretraining == "canvas":
        rng = np.random.default_rng((run.seed, 1))
        canvases = rng.normal(0, NOISE_STD, (len(images), SIZE, SIZE))
        for canvas, digit, cell in zip(canvases, scenes.digits, rng.integers(0, GRID**2, len(images)), strict=True):
            _place(canvas, digit, int(cell))
        images = canvases[:, None]
    source, names = FloatImages(images), torch.from_numpy(scenes.digit_labels)

    def read(rows: np.ndarray) -> Batch:
        return {"images": source.read(rows), "labels": names[torch.from_numpy(rows)]}

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        return functional.cross_entropy(model(batch["images"]), batch["labels"])

    fit(
        run,
        classifier,
        loss,
        run.loader(read, len(source), BATCH_SIZE, shuffle=True),
        FitPlan(num_epochs=8, stage="pretrain"),
        optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=1e-3),
    )


def _draw(
    digits: np.ndarray, names: np.ndarray, num_scenes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes ``(N, 1, 24, 24)`` and their labels int8 ``(N, 10)``."""
    canvases = rng.normal(0, NOISE_STD, (num_scenes, SIZE, SIZE))
    full = np.zeros((num_scenes, NUM_CLASSES), dtype=np.int8)
    of_class = [np.flatnonzero(names == digit) for digit in range(NUM_CLASSES)]
    for canvas, labels in zip(canvases, full, strict=True):
        count = rng.integers(1, 5)
        classes, cells = rng.permutation(NUM_CLASSES)[:count], rng.permutation(GRID**2)[:count]
        for digit, cell in zip(classes, cells, strict=True):
            _place(canvas, digits[rng.choice(of_class[digit])], int(cell))
        labels[classes] = 1
    return canvases[:, None], full


def _place(canvas: np.ndarray, digit: np.ndarray, cell: int) -> None:
    top, left = CELL * (cell // GRID), CELL * (cell % GRID)
    canvas[top : top + CELL, left : left + CELL] += digit


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    head_rate = config.learning_rate * config.head_multiplier
    groups: list[dict[str, Any]] = list(
        parameter_groups(_classifier(model), config.learning_rate, config.head_multiplier)
    )
    if isinstance(model, WithLabelEstimator):
        groups.append({"params": [model.label_logits], "lr": head_rate})
    return torch.optim.Adam(groups)


def _classifier(model: nn.Module) -> Any:
    return model.classifier if isinstance(model, WithLabelEstimator) else model


def _metrics(run: Run, scenes: Scenes, model: nn.Module) -> dict[str, float]:
    return {**model_metrics(run, model, scenes.val, "val"), **model_metrics(run, model, scenes.test, "test")}


def _without_nan(content: Any) -> Any:
    """Replace NaN and infinity by None, which JSON supports."""
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content


# -- the report


def settings_of_schemes(seeds: Sequence[int], schemes: Sequence[Scheme], **more: Any) -> list[Setting]:
    """Return every scheme at its specified delta, for every seed."""
    return [
        Setting(scheme=scheme, seed=seed, delta_rel_percent=LARGE_LOSS_DELTAS.get(scheme, 0.0), **more)
        for scheme in schemes
        for seed in seeds
    ]


def scheme_table(results: Mapping[Scheme, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| scheme | test mAP, best epoch | last epoch | best epochs | specification, two seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for scheme, runs in results.items():
        delta = f" {LARGE_LOSS_DELTAS[scheme]:g} %" if scheme in LARGE_LOSS_DELTAS else ""
        epochs = ", ".join(str(run["best_epoch"]) for run in runs)
        lines.append(
            f"| {scheme}{delta} | {_spread(runs, 'test_mAP')} | {_spread(runs, 'last_test_mAP')} | {epochs} "
            f"| {SPECIFIED.get(scheme, '')} |"
        )
    return "\n".join(lines)


def sweep_table(results: Mapping[float, Mapping[str, Any]]) -> str:
    lines = ["| delta of LL-R | test mAP | last epoch | specification |", "| --- | --- | --- | --- |"]
    for delta, run in results.items():
        figures = f"{run['test_mAP']:.1f} | {run['last_test_mAP']:.1f} | {SPECIFIED_SWEEP[delta]}"
        lines.append(f"| {delta:g} % | {figures} |")
    return "\n".join(lines)


def memorisation_table(run: Mapping[str, Any]) -> str:
    curve, history = run["memorisation"], run["history"]
    peak = max(range(len(curve)), key=lambda row: curve[row]["false_negative_loss"]) + 1
    best = max(range(len(history)), key=lambda row: history[row]["test/mAP"]) + 1
    lines = [
        "| epoch of AN | false-negative loss | true-negative loss | test mAP | specification |",
        "| --- | --- | --- | --- | --- |",
    ]
    for epoch in sorted({*SPECIFIED_MEMORISATION, peak, best}):
        row = curve[epoch - 1]
        specified = " / ".join(map(str, SPECIFIED_MEMORISATION.get(epoch, ())))
        what = "".join([" (loss peak)" * (epoch == peak), " (mAP peak)" * (epoch == best)])
        lines.append(
            f"| {epoch}{what} | {row['false_negative_loss']:.3f} | {row['true_negative_loss']:.3f} "
            f"| {history[epoch - 1]['test/mAP']:.1f} | {specified} |"
        )
    return "\n".join(lines)


def detection_table(runs: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| epoch of LL-R | false negatives rejected | of | precision | specification (of about 2280) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for epoch, (rejected, precision) in SPECIFIED_DETECTION.items():
        rows = [run["detection"][epoch - 1] for run in runs]
        found, total, rate = (np.mean([row[key] for row in rows]) for key in ("rejected_fn", "total_fn", "precision"))
        specified = f"{rejected}" if precision is None else f"{rejected}, {precision}"
        lines.append(f"| {epoch} | {found:.0f} | {total:.0f} | {rate:.2f} | {specified} |")
    return "\n".join(lines)


def _spread(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_large_loss"))
    parser.add_argument("--schemes", nargs="+", default=["full", "an", *LARGE_LOSS_DELTAS, *BASELINES])
    parser.add_argument("--pretraining", choices=("canvas", "cell"), default="canvas")
    parser.add_argument("--schemes-only", action="store_true", help="neither the sweep nor the long run")
    options = parser.parse_args()
    folder: Path = options.out
    more = {"pretraining": options.pretraining}

    def run(setting: Setting) -> dict[str, Any]:
        result = train(setting, folder)
        print(f"{setting.name}: {result['test_mAP']:.2f} ({result['seconds']:.0f} s)", flush=True)
        return result

    schemes = {
        scheme: [run(setting) for setting in settings_of_schemes(options.seeds, [scheme], **more)]
        for scheme in options.schemes
    }
    tables = [scheme_table(schemes)]
    if "LL-R" in schemes:
        tables.append(detection_table(schemes["LL-R"]))
        figure_detection(pd.DataFrame(schemes["LL-R"][0]["detection"])).savefig(folder / "detection_LL-R.png", dpi=110)
    seed = options.seeds[0]
    if not options.schemes_only:
        sweep = {delta: run(Setting(scheme="LL-R", seed=seed, delta_rel_percent=delta, **more)) for delta in SWEEP}
        long = run(Setting(scheme="an", seed=seed, num_epochs=NUM_EPOCHS_LONG, **more))
        tables += [sweep_table(sweep), memorisation_table(long)]
        figure_memorisation(pd.DataFrame(long["memorisation"])).savefig(folder / "memorisation_an.png", dpi=110)
    text = "\n\n".join(tables)
    Storage(folder).write_json("results.json", {"schemes": schemes, "tables": text})
    print(f"\n{text}\n\nseconds of training in all: {_seconds(folder):.0f}")


def _seconds(folder: Path) -> float:
    runs = (json.loads(path.read_text()) for path in folder.glob("*-seed*.json"))
    return sum(run["seconds"] for run in runs)


if __name__ == "__main__":
    main()
