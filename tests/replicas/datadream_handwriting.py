"""DataDream on handwriting: CLIP and a generator trained on print, adapted to 1, 4 and 16 handwritten digits a class.

    python tests/replicas/datadream_handwriting.py --seeds 0 1 2 --out outputs/replica_datadream

Every training is the platform's own recipe with the shipped models, in this process; trainings share stages, and
results in the folder are not computed again. Prints Markdown tables (test accuracy in percent, mean and
standard deviation over seeds; distances of class means) and leaves ``summary.csv``, ``results.json`` and figures:
accuracy against shots and against images of each class, samples before and after adaptation, distances by class.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from tenfold.config import job_from_dict
from tenfold.data.catalog import load_classification
from tenfold.engine.run import PlainRun
from tenfold.engine.settings import JobConfig
from tenfold.engine.storage import Storage
from tenfold.methods.datadream import recipe
from tenfold.methods.datadream.adapt import adapt
from tenfold.methods.datadream.evaluation import class_means, feature_distances
from tenfold.methods.datadream.few_shot import FewShotData, draw_few_shot
from tenfold.methods.datadream.figures import figure_distances, figure_samples, sample_rows
from tenfold.methods.datadream.generate import generate
from tenfold.methods.datadream.image_store import ImageStore, image_source
from tenfold.models.clip import Clip, load_clip

SHOTS = (1, 4, 16)
IMAGES = 48
"""Synthetic images of each class in the table."""
IMAGES_SWEEP = (16, 48, 96)
SWEEP_SHOTS = 16
GENERATORS = {"unadapted": "un-adapted", "dset": "DataDream_dset", "cls": "DataDream_cls"}
COMPARATORS = {"is_synth": "IsSynth", "disef": "DISEF"}
METHOD: dict[str, Any] = {
    "name": "datadream", "augment": "light", "figures": False, "block_size": 16, "num_inference_steps": 10,
    "adapt_warmup_steps": 10, "adapt_learning_rate": 3e-3, "learning_rate": 3e-3, "warmup_epochs": 1,
}  # fmt: skip
"""Deviations from the paper's settings, which are for photographs at 512 pixels; selected on validation digits."""
EPOCHS = {"cls": 60, "dset": 40}
"""Epochs of stage A."""
RUN = {"num_epochs": 10, "batch_size": 64, "evaluate_every": 2}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training of a classifier."""

    scheme: str
    train_on: str = "both"
    num_shots: int = 16
    images_per_class: int = IMAGES
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values())

    def job(self) -> JobConfig:
        own = {name: value for name, value in asdict(self).items() if name != "seed"}
        if self.scheme in EPOCHS:
            own["adapt_epochs"] = EPOCHS[self.scheme]
        return job_from_dict(
            {
                "method": {**METHOD, **own},
                "data": {"name": "handwriting"},
                "model": {"name": "tiny"},
                "scale": {"kind": "plain"},
                "run": {**RUN, "seed": self.seed},
            }
        )


def train(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train, or read the record of an earlier training.

    ``seconds`` is processor time of this process, including the stages that were not yet done.
    """
    path = folder / "records" / f"{setting.name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    started = time.process_time()
    run = _run(setting, folder)
    try:
        outcome = recipe.train(setting.job(), run)
    finally:
        run.close()
    record = {**asdict(setting), **outcome.metrics, "seconds": time.process_time() - started}
    path.parent.mkdir(parents=True, exist_ok=True)
    Storage(path.parent).write_json(path.name, record)
    print(f"{setting.name}: test {record['test/accuracy']:.1f} ({record['seconds']:.0f} s)", flush=True)
    return record


def table_settings(seeds: Iterable[int], shots: Sequence[int], comparators: bool) -> list[Setting]:
    """Trainings of the table, those that share stages in succession."""
    schemes = [*GENERATORS, *(COMPARATORS if comparators else ())]
    settings = []
    for seed in seeds:
        settings.append(Setting(scheme="zero_shot", num_shots=shots[0], seed=seed))
        for num_shots in shots:
            settings.append(Setting(scheme="real", num_shots=num_shots, seed=seed))
            settings += [
                Setting(scheme=scheme, train_on=train_on, num_shots=num_shots, seed=seed)
                for scheme in schemes
                for train_on in ("synthetic", "both")
            ]
    return settings


def sweep_settings(seeds: Iterable[int]) -> list[Setting]:
    """Trainings on more and fewer synthetic images."""
    return [
        Setting(scheme=scheme, train_on="synthetic", num_shots=SWEEP_SHOTS, images_per_class=images, seed=seed)
        for seed in seeds
        for scheme in GENERATORS
        for images in IMAGES_SWEEP
    ]


@dataclass(frozen=True)
class Scene:
    """Inputs of the figures for one seed and number of shots."""

    few_shot: FewShotData
    stores: Mapping[str, ImageStore]
    distances: Mapping[str, np.ndarray]
    """Distance of class means to the test digits ``(C,)``, for each generator."""


def look(seed: int, num_shots: int, folder: Path, clip: Clip) -> Scene:
    """Image stores of a seed, and distances of their class means to the test digits in CLIP's features."""
    stores, distances = {}, {}
    few_shot = None
    for scheme, name in GENERATORS.items():
        setting = Setting(scheme=scheme, num_shots=num_shots, seed=seed)
        job, run = setting.job(), _run(setting, folder)
        data = load_classification(job.data, clip.preprocessing)
        few_shot = draw_few_shot(data, num_shots, 1, seed)
        stores[name] = generate(job, run, few_shot, adapt(job, run, few_shot), count=IMAGES)
        labels = range(len(data.classes))
        files = [path for label in labels for path in stores[name].paths(label, IMAGES)]
        means = class_means(run, clip, image_source(files, clip.preprocessing), np.repeat(labels, IMAGES), len(labels))
        real = class_means(run, clip, data.test.images, data.test.labels, len(labels))
        distances[name] = feature_distances(means, real)
        run.close()
    assert few_shot is not None
    return Scene(few_shot, stores, distances)


def _run(setting: Setting, folder: Path) -> PlainRun:
    return PlainRun(folder=folder / "runs" / setting.name, shared=folder / "runs", seed=setting.seed, progress=False)


def accuracy_table(records: pd.DataFrame, shots: Sequence[int]) -> str:
    """Accuracies with the rows of the specification's section 8 and a column for each number of shots."""
    rows = [("CLIP zero-shot", records[records["scheme"] == "zero_shot"].assign(num_shots=shots[0]))]
    rows.append(("real shots only", records[records["scheme"] == "real"]))
    for train_on, words in (("synthetic", "synthetic only"), ("both", "real + synthetic")):
        for scheme, name in {**GENERATORS, **COMPARATORS}.items():
            chosen = records[(records["scheme"] == scheme) & (records["train_on"] == train_on)]
            if len(chosen):
                rows.append((f"{words}, {name}", chosen[chosen["images_per_class"] == IMAGES]))
    lines = [
        "| | " + " | ".join(f"{number} shot{'s' if number > 1 else ''}" for number in shots) + " |",
        "|---|" + "---|" * len(shots),
    ]
    for name, chosen in rows:
        cells = [_spread(chosen[chosen["num_shots"] == number]["test/accuracy"]) for number in shots]
        if name == "CLIP zero-shot":
            cells = cells[:1] * len(shots)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: "pd.Series[float]") -> str:
    if not len(values):
        return "-"
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values.iloc[0]:.1f}"


def distance_table(scenes: Mapping[tuple[int, int], Scene], shots: Sequence[int]) -> str:
    """Distance of class means, averaged over classes; mean and standard deviation over seeds."""
    lines = ["| distance of class means to test digits | " + " | ".join(f"{n} shots" for n in shots) + " |"]
    lines.append("|---|" + "---|" * len(shots))
    for name in GENERATORS.values():
        cells = []
        for number in shots:
            values = [scene.distances[name].mean() for (_, n), scene in scenes.items() if n == number]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure_accuracy(
    records: pd.DataFrame, x: str, groups: Mapping[str, pd.DataFrame], label: str, title: str
) -> Figure:
    """Draw mean and standard deviation over seeds of test accuracy, one line for each group."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    panel: Any = figure.subplots()
    for name, group in groups.items():
        by = group.groupby(x)["test/accuracy"]
        panel.errorbar(by.mean().index, by.mean(), by.std().fillna(0), marker="o", ms=4, capsize=3, label=name)
    zero = records[records["scheme"] == "zero_shot"]["test/accuracy"]
    panel.axhline(zero.mean(), color="0.5", ls="--", lw=1, label="CLIP zero-shot")
    panel.set_xscale("log", base=2)
    ticks = sorted({value for group in groups.values() for value in group[x]})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set_xlabel(label)
    panel.set_ylabel("test accuracy, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    panel.set_title(title, fontsize=10)
    return figure


def draw(records: pd.DataFrame, scenes: Mapping[tuple[int, int], Scene], folder: Path) -> None:
    """Save all figures as PNG files in the folder."""
    table = records[records["images_per_class"] == IMAGES]
    lines = {"real shots only": records[records["scheme"] == "real"]}
    for scheme, name in GENERATORS.items():
        for train_on, words in (("synthetic", "synthetic only"), ("both", "real + synthetic")):
            lines[f"{words}, {name}"] = table[(table["scheme"] == scheme) & (table["train_on"] == train_on)]
    title = f"Handwriting, {IMAGES} synthetic images a class"
    figure_accuracy(records, "num_shots", lines, "real shots a class", title).savefig(
        folder / "accuracy_shots.png", dpi=110
    )
    swept = records[(records["train_on"] == "synthetic") & (records["num_shots"] == SWEEP_SHOTS)]
    swept = swept[swept["images_per_class"].isin(IMAGES_SWEEP)]
    groups = {name: swept[swept["scheme"] == scheme] for scheme, name in GENERATORS.items()}
    title = f"Handwriting, {SWEEP_SHOTS} shots, synthetic images only"
    figure_accuracy(records, "images_per_class", groups, "synthetic images a class", title).savefig(
        folder / "accuracy_images.png", dpi=110
    )
    for (seed, num_shots), scene in scenes.items():
        if seed != min(each for each, _ in scenes):
            continue
        labels = range(len(scene.few_shot.classes))
        rows = sample_rows(scene.few_shot, scene.stores, labels, 8)
        title = f"{num_shots} shots a class; the same noise in each column of the synthetic blocks"
        figure_samples(rows, scene.few_shot.classes, title).savefig(folder / f"samples_{num_shots}_shots.png", dpi=110)
        title = f"Distance of class means to test digits, CLIP's features, {num_shots} shots"
        figure_distances(scene.distances, scene.few_shot.classes, title).savefig(
            folder / f"distances_{num_shots}_shots.png", dpi=110
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_datadream"))
    parser.add_argument("--no-comparators", action="store_true", help="neither IsSynth nor DISEF")
    parser.add_argument("--no-sweep", action="store_true", help="no accuracy against images of each class")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    folder: Path = options.out
    settings = table_settings(options.seeds, options.shots, not options.no_comparators)
    if not options.no_sweep and SWEEP_SHOTS in options.shots:
        settings += sweep_settings(options.seeds)
    rows = [train(setting, folder) for setting in dict.fromkeys(settings)]
    records = pd.DataFrame(rows)
    records.to_csv(folder / "summary.csv", index=False)
    clip = load_clip(settings[0].job().model)
    scenes = {(seed, number): look(seed, number, folder, clip) for seed in options.seeds for number in options.shots}
    draw(records, scenes, folder)
    text = f"{accuracy_table(records, options.shots)}\n\n{distance_table(scenes, options.shots)}"
    Storage(folder).write_json("results.json", {"records": rows, "tables": text})
    print(f"\n{text}\n\nprocessor seconds of training in all: {records['seconds'].sum():.0f}")


if __name__ == "__main__":
    main()
