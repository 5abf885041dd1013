"""Replica of BoostLU on small scenes of scikit-learn's digits, in minutes on one core.

    python -m tests.replicas.boostlu_scenes --seeds 0 1 2 --out outputs/replica_boostlu_scenes

Scenes, network, optimiser and losses are those of ``large_loss_scenes``; here every loss is trained with the plain head
and with the boosted one, from the same pretrained backbone and the same initial head per seed. Prints Markdown tables
with the specification's values for the same protocol alongside. Writes one JSON file and two weight files (best epoch,
last epoch) per training (existing ones are not trained again), ``results.json`` and figures.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold.data.multilabel import MultiLabelSplit
from tenfold.engine.fit import FitPlan, fit
from tenfold.engine.predict import predict_images
from tenfold.engine.run import PlainRun, Run
from tenfold.engine.storage import Storage
from tenfold.figures.overlays import figure_overlays
from tenfold.methods.boostlu.head import BoostedCAMHead
from tenfold.methods.boostlu.settings import Config
from tenfold.methods.large_loss import map_evaluation
from tenfold.methods.large_loss.evaluation import model_metrics, multilabel_metrics
from tenfold.methods.large_loss.figures import figure_agreement
from tenfold.methods.large_loss.objective import TrainingLabels
from tenfold.methods.large_loss.observatory import LabelNoiseRecorder, detection_curve
from tenfold.methods.large_loss.predictor import MultiLabelPredictor
from tenfold.methods.large_loss.settings import LARGE_LOSS_SCHEMES
from tenfold.metrics.localisation.maps import resize_score_map
from tenfold.models.image_classifier import parameter_groups
from tests.replicas.large_loss_scenes import (
    BATCH_SIZE,
    LARGE_LOSS_DELTAS,
    LEARNING_RATE,
    NUM_CLASSES,
    SceneClassifier,
    Scenes,
    Setting,
    _pretrain,
    make_scenes,
)
from tests.replicas.threads import one_thread

BOOST = 5.0
SCHEMES = ("an", *LARGE_LOSS_DELTAS)
SWEEP = (1.0, 2.0, 5.0, 10.0)
INFERENCE_FACTORS = (1.0, 2.0, 5.0, 20.0)
EPOCHS_SHOWN = (3, 6, 9, 12)
DIGITS = tuple(str(digit) for digit in range(NUM_CLASSES))
SPECIFIED = {
    ("full", 1.0): "97.4 / 97.2", ("an", 1.0): "83.5 / 83.3", ("an", BOOST): "92.2 / 92.8",
    ("LL-R", 1.0): "92.1 / 92.3", ("LL-R", BOOST): "97.3 / 97.2", ("LL-Ct", 1.0): "92.7 / 92.3",
    ("LL-Ct", BOOST): "95.8 / 95.4", ("LL-Cp", 1.0): "91.9 / 91.8", ("LL-Cp", BOOST): "97.1 / 97.4",
}  # fmt: skip
SPECIFIED_SWEEP = {1.0: 92.1, 2.0: 95.6, 5.0: 97.3, 10.0: 97.9}
SPECIFIED_INFERENCE = {1.0: "81.0, .22", 2.0: "89.5, .64", 5.0: "93.6, .92", 20.0: "94.8, .99"}
SPECIFIED_MAPS = {
    "correlation_median": "0.57 / 0.57",
    "top_positives_reference": "73 / 74",
    "top_positives_unboosted": "28 / 28",
    "top_negatives_reference": "8 / 8",
    "top_negatives_unboosted": "5 / 5",
    "bottom_positives_reference": "-15 / -15",
    "bottom_positives_unboosted": "-18 / -17",
}
SPECIFIED_DETECTION = {1.0: (417, 1039, 1550, 1850), BOOST: (468, 1120, 1750, 2098)}

Epoch = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class BoostSetting(Setting):
    """One training."""

    boost: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.scheme}-boost{self.boost:g}-seed{self.seed}"


def setting(scheme: Any, seed: int, boost: float = 1.0) -> BoostSetting:
    """Return the scheme at its specified delta."""
    return BoostSetting(scheme=scheme, seed=seed, boost=boost, delta_rel_percent=LARGE_LOSS_DELTAS.get(scheme, 0.0))


def train(chosen: BoostSetting, folder: Path) -> dict[str, Any]:
    """Train once and return plain values, or read the results of an earlier training with this setting.

    Returns:
        ``setting``; ``history`` (for each epoch ``val/mAP`` ...); ``best_epoch`` by validation and the ``test_mAP``
        there; ``last_test_mAP``; for the schemes of Large Loss ``rejected_fn``, for each epoch; ``seconds``.
    """
    storage = Storage(folder)
    if (done := storage.read_json(f"{chosen.name}.json")) is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    scenes = make_scenes(chosen.seed)
    config = Config(
        scheme=chosen.scheme,
        delta_rel_percent=chosen.delta_rel_percent,
        learning_rate=LEARNING_RATE,
        boost=chosen.boost,
    )
    with tempfile.TemporaryDirectory() as curves, _one_run(chosen.seed) as run:
        classifier = fresh_classifier(chosen, folder, scenes, run)
        results = _train(chosen, config, scenes, run, classifier, folder, Path(curves))
    results["seconds"] = time.monotonic() - start
    storage.write_json(f"{chosen.name}.json", results)
    return results


def fresh_classifier(chosen: BoostSetting, folder: Path, scenes: Scenes, run: Run) -> SceneClassifier:
    """Load the pretrained backbone of the seed, with the same initial head for every scheme and factor."""
    path = folder / f"backbone-seed{chosen.seed}.safetensors"
    classifier = SceneClassifier()
    if not path.exists():
        _pretrain(classifier, scenes, run, chosen.pretraining)
        save_file(classifier.backbone.state_dict(), path)
    classifier.backbone.load_state_dict(load_file(path))
    torch.manual_seed(chosen.seed)
    _set_head(classifier, chosen.boost)
    return classifier


def _train(
    chosen: BoostSetting,
    config: Config,
    scenes: Scenes,
    run: Run,
    classifier: SceneClassifier,
    folder: Path,
    curves: Path,
) -> dict[str, Any]:
    recorder = None
    if config.scheme in LARGE_LOSS_SCHEMES:
        recorder = LabelNoiseRecorder(
            curves,
            rank=0,
            num_samples=len(scenes.train.images),
            classes=DIGITS,
            observed=scenes.train.observed,
            true=scenes.train.full,
            scheme=config.scheme,
            mode="treated",
        )
    labels = TrainingLabels(config, scenes.train, run, mirror=False, recorder=recorder)
    last: dict[str, Tensor] = {}

    def evaluate(bare: nn.Module) -> Mapping[str, float]:
        last.update({name: value.clone() for name, value in bare.state_dict().items()})
        return model_metrics(run, bare, scenes.val, "val")

    result = fit(
        run,
        classifier,
        labels.objective(),
        run.loader(labels.read, len(scenes.train.images), BATCH_SIZE, shuffle=True),
        FitPlan(num_epochs=chosen.num_epochs, monitor="val/mAP", mode="max"),
        optimizer=lambda bare: _adam(bare, config),
        evaluate=evaluate,
    )
    results: dict[str, Any] = {
        "setting": asdict(chosen),
        "history": result.history,
        "best_epoch": result.best_epoch,
        "test_mAP": model_metrics(run, result.model, scenes.test, "test")["test/mAP"],
    }
    save_file(result.model.state_dict(), folder / f"{chosen.name}-best.safetensors")
    save_file(last, folder / f"{chosen.name}-last.safetensors")
    classifier.load_state_dict(last)
    results["last_test_mAP"] = model_metrics(run, classifier, scenes.test, "test")["test/mAP"]
    if recorder is not None:
        results["rejected_fn"] = [int(count) for count in detection_curve(curves)["rejected_fn"]]
    return results


def _adam(model: Any, config: Config) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = list(parameter_groups(model, config.learning_rate, config.head_multiplier))
    return torch.optim.Adam(groups)


def _set_head(classifier: SceneClassifier, boost: float) -> BoostedCAMHead:
    head = BoostedCAMHead(classifier.feature_dim, NUM_CLASSES, boost)
    classifier.head, classifier.reads_map = head, True
    return head


# -- evaluation of the trained models


def trained(chosen: BoostSetting, folder: Path, epoch: Epoch = "best", boost: float | None = None) -> Any:
    """Load a model of ``train`` as a predictor; a factor boosts it at inference."""
    classifier = SceneClassifier()
    head = _set_head(classifier, chosen.boost)
    classifier.load_state_dict(load_file(folder / f"{chosen.name}-{epoch}.safetensors"))
    if boost is not None:
        head.set_boost(boost, "inference")
    return MultiLabelPredictor(classifier, DIGITS, "cpu")


def boosted_at_inference(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Compute test mAP and recall at 0.5 of the last epoch's plain AN model, by its factor at inference."""
    test = make_scenes(seed).test
    results = {}
    for factor in INFERENCE_FACTORS:
        predictor = trained(setting("an", seed), folder, "last", factor)
        with _one_run(seed) as run:
            logits = predict_images(run, predictor.model, test.images)
        positive = torch.from_numpy(test.full == 1)
        results[f"{factor:g}"] = {
            "mAP": multilabel_metrics(logits, test, "test")["test/mAP"],
            "recall": float((logits > 0)[positive].double().mean()),
        }
    return results


def compare_maps(seed: int, folder: Path, epoch: Epoch = "best", figures: Path | None = None) -> dict[str, float]:
    """Compare maps of the assume-negative model with those of the full-label model (the reference) on test scenes.

    The former is boosted at inference (``model`` in the result); ``unboosted`` is the plain model as trained. Both have
    the same ranks.
    """
    test = make_scenes(seed).test
    model = trained(setting("an", seed), folder, epoch, BOOST)
    reference = trained(setting("full", seed), folder, epoch)
    with _one_run(seed) as run:
        pairs = map_evaluation.measure(model, reference, test, run)
    if figures is not None:
        figure_agreement(pairs, ("boosted AN", "full labels")).savefig(figures / f"maps_seed{seed}.png", dpi=110)
        figure_heatmaps(seed, folder, test).savefig(figures / f"heatmaps_seed{seed}.png", dpi=110)
    return map_evaluation.summarise(pairs)


def figure_heatmaps(seed: int, folder: Path, test: MultiLabelSplit, num_scenes: int = 6) -> Figure:
    """Show maps of four models over test scenes, scaled per row to the maximum of the full-label model.

    Shown are the first scenes with two or more digits, each with its positive class of the lowest probability under the
    plain assume-negative model.
    """
    models = {
        "full labels": trained(setting("full", seed), folder),
        "AN": trained(setting("an", seed), folder),
        "AN, boosted\nat inference": trained(setting("an", seed), folder, boost=BOOST),
        "LL-R + BoostLU": trained(setting("LL-R", seed, BOOST), folder),
    }
    rows = np.flatnonzero(test.full.sum(1) >= 2)[:num_scenes]
    scenes = test.images.read(rows)
    logits = {name: predictor(scenes)["logits"] for name, predictor in models.items()}
    positive = torch.from_numpy(test.full[rows] == 1)
    labels = logits["AN"].masked_fill(~positive, torch.inf).argmin(1)
    maps = {name: predictor.class_maps(scenes)[torch.arange(len(rows)), labels] for name, predictor in models.items()}
    strongest = maps["full labels"].amax((1, 2), keepdim=True)
    shown = [resize_score_map((each / strongest).clamp(0, 1), 192).numpy() for each in maps.values()]
    titles = []
    for row, label in enumerate(labels.tolist()):
        probs = " / ".join(f"{logits[name][row, label].sigmoid():.2f}" for name in models)
        titles.append(f"digit {label}\n{probs}")
    grey = scenes.clamp(0, 1).mul(255).byte().repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    figure = figure_overlays(images, shown, list(models), row_titles=titles)
    figure.suptitle("Class activation maps, and probabilities from left to right", fontsize=10)
    return figure


@contextmanager
def _one_run(seed: int) -> Iterator[Run]:
    """Open a run on one thread."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        run = PlainRun(folder=Path(folder) / "run", seed=seed, progress=False)
        try:
            yield run
        finally:
            run.close()


# -- the report


def _mean(values: Sequence[float], form: str = ".1f") -> str:
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def scheme_table(runs: Mapping[tuple[str, float], Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| scheme | test mAP, best epoch | each seed | last epoch | specification, two seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (scheme, boost), of_seeds in runs.items():
        values, last = ([run[key] for run in of_seeds] for key in ("test_mAP", "last_test_mAP"))
        name = f"{scheme}{' + BoostLU' if boost != 1 else ''}"
        each = " / ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {_mean(values)} | {each} | {_mean(last)} | {SPECIFIED[scheme, boost]} |")
    return "\n".join(lines)


def sweep_table(runs: Mapping[float, Mapping[str, Any]]) -> str:
    lines = ["| alpha of LL-R, first seed | test mAP | specification, seed 1 |", "| --- | --- | --- |"]
    lines += [f"| {alpha:g} | {run['test_mAP']:.1f} | {SPECIFIED_SWEEP[alpha]} |" for alpha, run in runs.items()]
    return "\n".join(lines)


def inference_table(of_seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    lines = [
        "| alpha of AN at inference alone | test mAP | recall | specification, seed 1 |",
        "| --- | --- | --- | --- |",
    ]
    for factor in INFERENCE_FACTORS:
        mAP, recall = ([each[f"{factor:g}"][key] for each in of_seeds] for key in ("mAP", "recall"))
        lines.append(f"| {factor:g} | {_mean(mAP)} | {_mean(recall, '.2f')} | {SPECIFIED_INFERENCE[factor]} |")
    return "\n".join(lines)


def maps_table(best: Sequence[Mapping[str, float]], last: Sequence[Mapping[str, float]]) -> str:
    lines = [
        "| maps of AN (unboosted) and full labels (reference) | best epochs | last epochs | specification, two seeds |",
        "| --- | --- | --- | --- |",
    ]
    for key, specified in SPECIFIED_MAPS.items():
        columns = (_mean([each[key] for each in of_seeds], ".2f") for of_seeds in (best, last))
        lines.append(f"| {key} | {' | '.join(columns)} | {specified} |")
    return "\n".join(lines)


def detection_table(runs: Mapping[float, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| false negatives rejected at epoch | " + " | ".join(map(str, EPOCHS_SHOWN)) + " | specification |",
        "| --- " * (len(EPOCHS_SHOWN) + 2) + "|",
    ]
    for boost, of_seeds in runs.items():
        counts = [_mean([run["rejected_fn"][epoch - 1] for run in of_seeds], ".0f") for epoch in EPOCHS_SHOWN]
        specified = ", ".join(map(str, SPECIFIED_DETECTION[boost]))
        lines.append(f"| LL-R{' + BoostLU' if boost != 1 else ''} | {' | '.join(counts)} | {specified} |")
    return "\n".join(lines)


def figure_results(
    runs: Mapping[tuple[str, float], Sequence[Mapping[str, Any]]],
    detection: Mapping[float, Sequence[Mapping[str, Any]]],
) -> Figure:
    """Plot test mAP of every scheme with and without the boost, and false negatives rejected per epoch."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for boost, offset, colour, name in ((1.0, -0.2, "tab:grey", "plain"), (BOOST, 0.2, "tab:red", "+ BoostLU")):
        values = [[run["test_mAP"] for run in runs[scheme, boost]] for scheme in SCHEMES]
        places = np.arange(len(SCHEMES)) + offset
        panels[0].bar(places, [np.mean(each) for each in values], 0.38, color=colour, label=name)
        for place, each in zip(places, values, strict=True):
            panels[0].plot([place] * len(each), each, ".", color="black", markersize=4)
        counts = np.array([run["rejected_fn"] for run in detection[boost]])
        panels[1].plot(np.arange(1, counts.shape[1] + 1), counts.mean(0), "o-", color=colour, label=f"LL-R {name}")
    full = np.mean([run["test_mAP"] for run in runs["full", 1.0]])
    panels[0].axhline(full, color="black", linestyle="--", linewidth=0.8, label="full labels")
    panels[0].set_ylim(75, 100)
    panels[0].set_xticks(range(len(SCHEMES)), [scheme.replace("an", "AN") for scheme in SCHEMES])
    panels[0].set_ylabel("test mAP (%)")
    panels[1].set_xlabel("epoch")
    panels[1].set_ylabel("false negatives rejected")
    for panel in panels:
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("outputs/replica_boostlu_scenes"))
    options = parser.parse_args()
    folder: Path = options.out

    def run(scheme: str, seed: int, boost: float = 1.0) -> dict[str, Any]:
        result = train(setting(scheme, seed, boost), folder)
        name = setting(scheme, seed, boost).name
        print(f"{name}: {result['test_mAP']:.2f} ({result['seconds']:.0f} s)", flush=True)
        return result

    wanted = [("full", 1.0), *((scheme, boost) for scheme in SCHEMES for boost in (1.0, BOOST))]
    found: dict[tuple[str, float], list[dict[str, Any]]] = {key: [] for key in wanted}
    for seed in options.seeds:
        for scheme, boost in wanted:
            found[scheme, boost].append(run(scheme, seed, boost))
    sweep = {alpha: run("LL-R", options.seeds[0], alpha) for alpha in SWEEP}
    inference = [boosted_at_inference(seed, folder) for seed in options.seeds]
    best = [compare_maps(seed, folder, "best", folder) for seed in options.seeds]
    last = [compare_maps(seed, folder, "last") for seed in options.seeds]
    detection = {boost: found["LL-R", boost] for boost in (1.0, BOOST)}
    figure_results(found, detection).savefig(folder / "results.png", dpi=110)
    tables = [
        scheme_table(found), sweep_table(sweep), inference_table(inference), maps_table(best, last),
        detection_table(detection),
    ]  # fmt: skip
    text = "\n\n".join(tables)
    content = {
        "schemes": {f"{scheme}, alpha {boost:g}": each for (scheme, boost), each in found.items()},
        "sweep": {f"{alpha:g}": each for alpha, each in sweep.items()},
        "inference": inference,
        "maps": {"best": best, "last": last},
        "tables": text,
    }
    Storage(folder).write_json("results.json", content)
    seconds = sum(each["seconds"] for of_seeds in found.values() for each in of_seeds)
    print(f"\n{text}\n\nseconds of training, without the sweep: {seconds:.0f}")


if __name__ == "__main__":
    main()
