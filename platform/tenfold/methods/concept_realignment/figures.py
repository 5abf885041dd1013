"""Figures of a training: curves over corrections, gains by concept, the stop rule, training history."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tenfold.data.concepts import ConceptData
from tenfold.engine.recipe import RESULTS
from tenfold.engine.run import Run
from tenfold.figures.history import figure_history
from tenfold.methods.concept_realignment.evaluation import THRESHOLDS
from tenfold.methods.concept_realignment.settings import Config

TABLE_FILE = "interventions.csv"
_MOST_BARS = 40


def log_figures(run: Run, folder: Path, data: ConceptData, config: Config) -> None:
    """Log figures and the table of a finished training, whose stage left them in ``folder``."""
    results = json.loads((folder / RESULTS).read_text())
    curves, chosen = results["curves"], results["chosen"]
    title = f"{config.base} on {data.name}"
    run.log_file(folder / TABLE_FILE)
    if len(results["history"]) > 1:
        names = ["train/loss", "val/loss", "val/concept_accuracy"]
        run.log_figure("base_model.png", figure_history(results["history"], names, title))
    if results["realigner_history"]:
        names = ["train/loss", "val/realigned_loss"]
        run.log_figure("realigner.png", figure_history(results["realigner_history"], names, title))
    same = [each for each in curves if each["coupled"] == config.coupled]
    by_realigner = {
        each["realigner"]: each["curve"] for each in same if (each["policy"], each["expert"]) == (config.policy, "sure")
    }
    run.log_figure("realigners.png", figure_curves(by_realigner, f"{title}, policy {config.policy}"))
    by_policy = {
        each["policy"]: each["curve"] for each in same if (each["realigner"], each["expert"]) == (chosen, "sure")
    }
    run.log_figure("policies.png", figure_curves(by_policy, f"{title}, realigner {chosen}"))
    by_expert = {
        f"{each['realigner']}, {each['expert']}": each["curve"]
        for each in same
        if each["policy"] == config.policy and each["realigner"] in ("none", chosen)
    }
    run.log_figure("experts.png", figure_curves(by_expert, f"{title}, experts"))
    run.log_figure("stop_rule.png", figure_stopping(by_realigner, title))
    for kind, known in (("concept", data.concepts), ("question", data.concepts if config.single else data.questions)):
        if kind in results["gains"]:
            gains = np.array(results["gains"][kind])
            run.log_figure(f"{kind}_gains.png", figure_gains(known, gains, f"{title}, {chosen} against none"))


def figure_curves(curves: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Plot concept loss, concept accuracy and class accuracy after 0..T questions, a line for each name.

    Args:
        curves: By name, ``concept_loss``, ``concept_accuracy`` and ``class_accuracy``, ``(T + 1,)`` each.
        title: Title of the figure.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    for panel, key in zip(panels, ("concept_loss", "concept_accuracy", "class_accuracy"), strict=True):
        for name, curve in curves.items():
            panel.plot(range(len(curve[key])), curve[key], label=name, linewidth=1.6)
        panel.set_xlabel("questions")
        panel.set_title(key.replace("_", " "), fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def figure_stopping(curves: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Plot the accuracy against the mean number of questions where asking ends once the class is sure enough."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    panel: Any = figure.subplots()
    for name, curve in curves.items():
        questions, accuracy = curve["stopping"]
        panel.plot(questions, accuracy, marker="o", markersize=3, label=name)
        for threshold, x, y in zip(THRESHOLDS, questions, accuracy, strict=True):
            if threshold in (THRESHOLDS[0], THRESHOLDS[-1]):
                panel.annotate(f"{threshold:g}", (x, y), fontsize=7)
    panel.set_xlabel("mean number of questions")
    panel.set_ylabel("class accuracy")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.suptitle(f"{title}: ask until the class is sure", fontsize=10)
    return figure


def figure_gains(names: Sequence[str], gains: np.ndarray, title: str) -> Figure:
    """Plot by how much the mean loss along the curve falls, by concept, the largest changes first.

    Args:
        names: K concept names.
        gains: ``(K,)``; positive where realignment helps.
        title: Title of the figure.
    """
    order = np.argsort(-np.abs(gains), kind="stable")[:_MOST_BARS]
    order = order[np.argsort(gains[order], kind="stable")]
    figure = Figure(figsize=(6, 1 + 0.2 * len(order)), layout="constrained")
    panel: Any = figure.subplots()
    panel.barh([names[at] for at in order], gains[order], color=["C0" if gains[at] >= 0 else "C3" for at in order])
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_xlabel("concept loss, lower by")
    panel.tick_params(axis="y", labelsize=7)
    figure.suptitle(title, fontsize=10)
    return figure
