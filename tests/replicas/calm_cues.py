"""Replica of CALM on small digit scenes: cue localisation and cue differences, ten seconds per training on one core.

    python -m tests.replicas.calm_cues --seeds 0 1 2 --out outputs/replica_calm

Prints Markdown tables with the specification's values for the same protocol alongside, and writes one JSON file per
training (existing ones are not trained again), ``results.json`` and figures.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from tenfold.engine.fit import Clock, FitPlan, fit
from tenfold.engine.run import PlainRun, Run
from tenfold.engine.storage import Storage
from tenfold.figures.overlays import figure_overlays
from tenfold.methods.calm.attribution import attribution_map, counterfactual_map
from tenfold.methods.calm.distributions import Prior
from tenfold.methods.calm.head import CalmHead, Objective
from tenfold.metrics.localisation.erasure import random_erase_masks, remove_and_classify_ratio, topk_erase_masks
from tenfold.metrics.localisation.maps import (
    Normalization,
    Spacing,
    normalize_score_map,
    resize_score_map,
    score_thresholds,
)
from tenfold.metrics.localisation.pixel_ap import PixelAveragePrecision
from tenfold.types import Batch
from tests.replicas.calm_cue_scenes import (
    BACKGROUND,
    CELL,
    NUM_TRAIN,
    SIZE,
    Scenes,
    Task,
    differing_cue,
    make_scenes,
    num_classes,
)
from tests.replicas.threads import one_thread

NUM_EPOCHS, BATCH_SIZE, PEAK_LEARNING_RATE, WEIGHT_DECAY = 6, 64, 6e-3, 1e-5
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_EXAMPLES = 6
EXAMPLE_DIFFERENCES = (1, 2, 4, 3, 12, 7)
"""Slots, as bits, in which the other class of each example differs."""

TITLES: dict[Objective, str] = {"cam": "CAM", "em": "CALM_EM", "ml": "CALM_ML"}
SPECIFIED = {  # three seeds: accuracy, PxAP minmax, PxAP clipping + log, mass, R_10, R_30
    "cam": ".988 .957 .978 | 18.0 16.7 16.1 | | .076 .076 .074 | .57 .60 .64 | .38 .55 .34",
    "em": ".988 .967 .975 | 50.5 48.6 39.5 | 56 55 43 | .56 .55 .44 | .11 .19 .47 | .17 .15 .21",
    "ml": ".987 .958 .973 | 52.0 38.3 39.2 | | .57 .46 .43 | .11 .27 .44 | .15 .17 .20",
}
SPECIFIED_PAIRS = {  # three seeds: PxAP of pairs that differ in 1, 2, 3 slots
    "cam": "8.6 9.4 9.6 | 19.5 20.3 21.3 | 30.5 31.0 32.5",
    "em": "25.9 17.5 26.8 | 33.8 24.2 34.4 | 41.7 31.0 42.0",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training."""

    task: Task
    mode: Objective
    seed: int
    receptive_field: Literal[21, 65] = 65
    """Receptive field of a location of the 8x8 map, in pixels; digit cells are 8 wide, the canvas 32."""
    prior: Prior = "softplus"
    detach_normalizer: bool = False

    @property
    def name(self) -> str:
        detached = "-detached" if self.detach_normalizer else ""
        return f"{self.task}-{self.mode}-field{self.receptive_field}-{self.prior}{detached}-seed{self.seed}"


class CueNetwork(nn.Module):
    """Six or five 3x3 convolutions to an 8x8 map of 32 channels, and the CALM head."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_before = 1
        wide = ((16, 1, 1), (16, 2, 1), (32, 2, 1), (32, 1, 2), (32, 1, 4), (32, 1, 1))
        narrow = ((16, 1, 1), (16, 2, 1), (32, 1, 1), (32, 2, 1), (32, 1, 1))
        for width, stride, dilation in wide if setting.receptive_field == 65 else narrow:
            convolution = nn.Conv2d(width_before, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            width_before = width
        self.backbone = nn.Sequential(*layers)
        self.head = CalmHead(
            width_before,
            num_classes(setting.task),
            setting.mode,
            setting.prior,
            detach_normalizer=setting.detach_normalizer,
        )

    def predict(self, images: Tensor) -> Tensor:
        """Return the most probable class ``(B,)`` of images ``(B, 1, 32, 32)``."""
        return self.head.probabilities(self.backbone(images)).argmax(1)


def train(setting: Setting, folder: Path) -> dict[str, Any]:
    """Train once and return plain values, or read the results of an earlier training with this setting.

    Returns:
        ``setting``, ``train_loss`` of every epoch, ``accuracy`` on the test images, ``seconds``, ``examples`` (raw
        maps of the first test images), and the measures of the task: ``pxap_minmax``, ``pxap_log`` (CALM only),
        ``mass`` and ``R`` of a single cue; ``pxap_pairs`` by the number of differing slots, and ``pxap_attention``,
        that of the class-free p(z|x), for comparison: only a gain over it shows that the parts are told apart.
    """
    storage = Storage(folder)
    if (done := storage.read_json(f"{setting.name}.json")) is not None:
        return done
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, one_thread():
        run = PlainRun(folder=Path(name), seed=setting.seed, progress=False)
        try:
            results = _train(setting, run)
        finally:
            run.close()
    results["seconds"] = time.monotonic() - start
    storage.write_json(f"{setting.name}.json", results)
    return results


def _train(setting: Setting, run: Run) -> dict[str, Any]:
    train_set, test_set = make_scenes(setting.task, setting.seed)

    def read(rows: np.ndarray) -> Batch:
        chosen = torch.from_numpy(rows)
        return {"images": train_set.images[chosen], "labels": train_set.labels[chosen]}

    def loss(model: nn.Module, batch: Batch, clock: Clock) -> Tensor:
        assert isinstance(model, CueNetwork), "one worker trains the bare network"
        return model.head.loss(model.backbone(batch["images"]), batch["labels"])

    result = fit(
        run,
        CueNetwork(setting),
        loss,
        run.loader(read, NUM_TRAIN, BATCH_SIZE, shuffle=True),
        FitPlan(num_epochs=NUM_EPOCHS),
        optimizer=lambda bare: torch.optim.Adam(bare.parameters(), lr=3e-3, weight_decay=WEIGHT_DECAY),
        schedule=lambda optimizer, steps: OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps),
    )
    model = result.model
    assert isinstance(model, CueNetwork)
    measure = _measure_single if setting.task == "single" else _measure_pairs
    with torch.no_grad():
        measured = measure(setting, model, test_set)
    return {
        "setting": asdict(setting),
        "train_loss": [epoch["train/loss"] for epoch in result.history],
        **measured,
    }


def _measure_single(setting: Setting, model: CueNetwork, scenes: Scenes) -> dict[str, Any]:
    f, a = model.head(model.backbone(scenes.images))
    is_cam = setting.mode == "cam"
    coarse = attribution_map(f, a, scenes.labels, "vanilla" if is_cam else "jointll", prior=setting.prior)
    maps, cue = resize_score_map(coarse, SIZE), scenes.cues[:, 0]
    measures: dict[str, Any] = {
        "accuracy": _share(model.predict(scenes.images) == scenes.labels),
        "pxap_minmax": _pixel_ap(maps, cue, "minmax", "even"),
        "mass": _mass_inside(maps, cue),
        "R": _remove_and_classify(setting, model, scenes, maps),
        "examples": coarse[:NUM_EXAMPLES].tolist(),
    }
    if not is_cam:  # scores of CAM are not probabilities
        measures["pxap_log"] = _pixel_ap(maps, cue, "clipping", "log")
    return measures


def _measure_pairs(setting: Setting, model: CueNetwork, scenes: Scenes) -> dict[str, Any]:
    f, a = model.head(model.backbone(scenes.images))
    mode: Literal["vanilla", "jointll"] = "vanilla" if setting.mode == "cam" else "jointll"

    def differences(rows: Tensor, label: Tensor, other: Tensor) -> Tensor:
        return counterfactual_map(f[rows], a[rows], label, other, mode, setting.prior).abs()

    by_count: dict[int, list[float]] = {1: [], 2: [], 3: []}
    by_attention: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for label, other in combinations(range(num_classes("pairs")), 2):
        if (differing := (label ^ other).bit_count()) not in by_count:
            continue
        rows = ((scenes.labels == label) | (scenes.labels == other)).nonzero().squeeze(1)
        of_label, of_other = (torch.full((len(rows),), name) for name in (label, other))
        maps = resize_score_map(differences(rows, of_label, of_other), SIZE)
        truth = differing_cue(scenes.cues[rows], label ^ other)
        by_count[differing].append(_pixel_ap(maps, truth, "minmax", "even"))
        if setting.mode != "cam":
            attention = attribution_map(f[rows], a[rows], of_label, "saliency", prior=setting.prior)
            by_attention[differing].append(_pixel_ap(resize_score_map(attention, SIZE), truth, "minmax", "even"))
    shown = torch.arange(NUM_EXAMPLES)
    counterparts = scenes.labels[shown] ^ torch.tensor(EXAMPLE_DIFFERENCES)
    return {
        "accuracy": _share(model.predict(scenes.images) == scenes.labels),
        "pxap_pairs": {str(count): float(np.mean(values)) for count, values in by_count.items()},
        "pxap_attention": {str(count): float(np.mean(values)) for count, values in by_attention.items() if values},
        "examples": differences(shown, scenes.labels[shown], counterparts).tolist(),
    }


def _pixel_ap(maps: Tensor, truth: Tensor, kind: Normalization, spacing: Spacing) -> float:
    metric = PixelAveragePrecision(score_thresholds(0.001, spacing))
    metric.update(normalize_score_map(maps, kind), truth)
    return metric.compute()


def _mass_inside(maps: Tensor, cue: Tensor) -> float:
    """Compute the share of positive mass inside the cue, mean over images; 0 for a map without positive mass."""
    positive = maps.clamp(min=0)
    inside, total = (positive * cue).sum((1, 2)), positive.sum((1, 2))
    return float((inside / total.clamp(min=torch.finfo(total.dtype).tiny)).mean())


def _remove_and_classify(setting: Setting, model: CueNetwork, scenes: Scenes, maps: Tensor) -> dict[str, float]:
    generator = torch.Generator().manual_seed(setting.seed)
    top = topk_erase_masks(maps[:, None], FRACTIONS)
    random = random_erase_masks((len(maps), 1, SIZE, SIZE), FRACTIONS, generator)
    ratios = {}
    for fraction, *masks in zip(FRACTIONS, top, random, strict=True):
        correct = (model.predict(torch.where(mask > 0, scenes.images, BACKGROUND)) == scenes.labels for mask in masks)
        ratios[f"{fraction:g}"] = remove_and_classify_ratio(*correct)
    return ratios


def _share(correct: Tensor) -> float:
    return float(correct.double().mean())


# -- the report


def single_table(results: Mapping[Objective, Sequence[Mapping[str, Any]]]) -> str:
    head = ["accuracy", "PxAP minmax", "PxAP clip + log", "mass in the cue", "R_10", "R_30"]
    lines = _header(["single cue", *head])
    for mode, runs in results.items():
        cells = [
            _spread([run["accuracy"] for run in runs], 3),
            _spread([run["pxap_minmax"] for run in runs], 1),
            _spread([run["pxap_log"] for run in runs], 1) if "pxap_log" in runs[0] else "",
            _spread([run["mass"] for run in runs], 3),
            _spread([run["R"]["0.1"] for run in runs], 2),
            _spread([run["R"]["0.3"] for run in runs], 2),
        ]
        lines += [f"| {TITLES[mode]} | {' | '.join(cells)} |", f"| specification | {SPECIFIED[mode]} |"]
    return "\n".join(lines)


def pairs_table(results: Mapping[Objective, Sequence[Mapping[str, Any]]]) -> str:
    counts = ("1", "2", "3")
    lines = _header(["cue differences, PxAP", "1 slot", "2 slots", "3 slots", "p(z|x): 1", "2", "3", "accuracy"])
    for mode, runs in results.items():
        cells = [_spread([run["pxap_pairs"][count] for run in runs], 1) for count in counts]
        cells += [_spread([run["pxap_attention"][n] for run in runs], 1) if mode != "cam" else "" for n in counts]
        cells.append(_spread([run["accuracy"] for run in runs], 3))
        lines += [f"| {TITLES[mode]} | {' | '.join(cells)} |", f"| specification | {SPECIFIED_PAIRS[mode]} | | | | |"]
    return "\n".join(lines)


def counter_table(rows: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]]) -> str:
    """Format counter-experiments; ``rows`` are the change, the specification's value and the trainings."""
    lines = _header(["counter-experiment", "accuracy", "PxAP (pairs: 1, 2, 3 slots)", "specification"])
    for what, specified, runs in rows:
        if "pxap_pairs" in runs[0]:
            cells = " / ".join(_spread([run["pxap_pairs"][count] for run in runs], 1) for count in ("1", "2", "3"))
        else:
            cells = _spread([run["pxap_minmax"] for run in runs], 1)
        lines.append(f"| {what} | {_spread([run['accuracy'] for run in runs], 3)} | {cells} | {specified} |")
    return "\n".join(lines)


COUNTER_EXPERIMENTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("CAM, field 21", "95", {"task": "single", "mode": "cam", "receptive_field": 21}),
    ("CALM_EM, field 21", "78", {"task": "single", "mode": "em", "receptive_field": 21}),
    ("CAM, field 21, pairs", "56 / 62 / 75", {"task": "pairs", "mode": "cam", "receptive_field": 21}),
    ("CALM_EM, field 21, pairs", "17 / 26 / 36", {"task": "pairs", "mode": "em", "receptive_field": 21}),
    ("CALM_EM, detached sum", "6.6", {"task": "single", "mode": "em", "detach_normalizer": True}),
    ("CALM_EM, ReLU prior, pairs", "accuracy .58", {"task": "pairs", "mode": "em", "prior": "relu"}),
)


def figure_remove_and_classify(results: Mapping[Objective, Sequence[Mapping[str, Any]]]) -> Figure:
    """Plot R_k over k: a line per network, the mean of its seeds, and the seeds as dots."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    percents = [0, *(100 * fraction for fraction in FRACTIONS), 100]
    for colour, (mode, runs) in zip(("tab:gray", "tab:blue", "tab:orange"), results.items(), strict=False):
        curves = np.array([[1.0, *run["R"].values(), 1.0] for run in runs])
        axes.plot(percents, curves.mean(0), marker="o", color=colour, label=TITLES[mode])
        for curve in curves:
            axes.plot(percents, curve, ".", color=colour, alpha=0.4)
    axes.set(xlabel="erased pixels, %", ylabel="recognised: highest erased / random erased", ylim=(0, None))
    axes.legend()
    return figure


def figure_pixel_ap(bars: Mapping[str, Mapping[Objective, Sequence[float]]], chance: Sequence[float]) -> Figure:
    """Plot PxAP in groups of bars: the mean of the seeds, the seeds as dots, chance as a line."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    modes: tuple[Objective, ...] = ("cam", "em", "ml")
    for column, mode in enumerate(modes):
        colour = ("tab:gray", "tab:blue", "tab:orange")[column]
        drawn = [(group + 0.26 * (column - 1), values[mode]) for group, values in enumerate(bars.values())
                 if mode in values]  # fmt: skip
        axes.bar([at for at, _ in drawn], [np.mean(values) for _, values in drawn], 0.24, color=colour,
                 label=TITLES[mode], alpha=0.7)  # fmt: skip
        for at, values in drawn:
            axes.plot([at] * len(values), values, "k.", markersize=4)
    for group, level in enumerate(chance):
        axes.hlines(level, group - 0.45, group + 0.45, colors="k", linestyles="dotted")
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set(ylabel="pixel average precision, % (dotted: chance)")
    axes.legend()
    return figure


def figure_examples(task: Task, results: Mapping[Objective, Mapping[str, Any]]) -> Figure:
    """Show the first test images of one seed under every network's map, the cue outlined."""
    seed = next(iter(results.values()))["setting"]["seed"]
    scenes = make_scenes(task, seed)[1]
    grey = (255 * scenes.images[:NUM_EXAMPLES, 0]).round().byte()
    maps = [normalize_score_map(resize_score_map(torch.tensor(result["examples"]), SIZE), "minmax")
            for result in results.values()]  # fmt: skip
    if task == "single":
        truth = scenes.cues[:NUM_EXAMPLES, 0]
        rows = [f"class {label}" for label in scenes.labels[:NUM_EXAMPLES].tolist()]
    else:
        cues = scenes.cues[:NUM_EXAMPLES]
        truth = torch.stack([differing_cue(cue[None], bits)[0] for cue, bits in
                             zip(cues, EXAMPLE_DIFFERENCES, strict=True)])  # fmt: skip
        labels = scenes.labels[:NUM_EXAMPLES].tolist()
        rows = [f"{label} or {label ^ bits}?" for label, bits in zip(labels, EXAMPLE_DIFFERENCES, strict=True)]
    images = grey[..., None].expand(-1, -1, -1, 3).contiguous()
    return figure_overlays(images, maps, [TITLES[mode] for mode in results], rows, truth, alpha=0.45)


def _header(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_calm"))
    parser.add_argument("--counter-seeds", type=int, nargs="*", default=[0], help="seeds of the counter-experiments")
    options = parser.parse_args()
    folder: Path = options.out

    def run(seeds: Sequence[int], **setting: Any) -> list[dict[str, Any]]:
        results = []
        for seed in seeds:
            result = train(Setting(seed=seed, **setting), folder)
            name, seconds = Setting(seed=seed, **setting).name, result["seconds"]
            print(f"{name}: accuracy {result['accuracy']:.3f} ({seconds:.0f} s)", flush=True)
            results.append(result)
        return results

    modes: tuple[Objective, ...] = ("cam", "em", "ml")
    single = {mode: run(options.seeds, task="single", mode=mode) for mode in modes}
    pairs = {mode: run(options.seeds, task="pairs", mode=mode) for mode in modes[:2]}
    tables = [single_table(single), pairs_table(pairs)]
    if options.counter_seeds:
        rows = [(what, spec, run(options.counter_seeds, **changed)) for what, spec, changed in COUNTER_EXPERIMENTS]
        tables.append(counter_table(rows))
    bars = {"single cue": {mode: [each["pxap_minmax"] for each in runs] for mode, runs in single.items()}}
    for count in ("1", "2", "3"):
        bars[f"{count} of 4 slots"] = {m: [each["pxap_pairs"][count] for each in runs] for m, runs in pairs.items()}
    chance = [100 * CELL**2 * count / SIZE**2 for count in (1, 1, 2, 3)]
    figure_remove_and_classify(single).savefig(folder / "remove_and_classify.png", dpi=110)
    figure_pixel_ap(bars, chance).savefig(folder / "pixel_ap.png", dpi=110)
    figure_examples("single", {m: runs[0] for m, runs in single.items()}).savefig(folder / "single_cue.png", dpi=110)
    figure_examples("pairs", {m: runs[0] for m, runs in pairs.items()}).savefig(folder / "differences.png", dpi=110)
    text = "\n\n".join(tables)
    Storage(folder).write_json("results.json", {"single": single, "pairs": pairs, "tables": text})
    seconds = sum(json.loads(path.read_text())["seconds"] for path in folder.glob("*-seed*.json"))
    print(f"\n{text}\n\nseconds of training in all: {seconds:.0f}")


if __name__ == "__main__":
    main()
