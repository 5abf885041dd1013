"""Figures of a training run: scores by set, reliability, trace of the chain, and the most uncertain images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from tenfold.data.uncertainty import UncertaintyData
from tenfold.engine.run import Run
from tenfold.figures.uncertainty import figure_reliability, figure_scores
from tenfold.methods.gradient_uncertainty.evaluation import all_scores, member_probs
from tenfold.methods.gradient_uncertainty.predictor import PosteriorPredictor
from tenfold.methods.gradient_uncertainty.settings import Config
from tenfold.metrics.uncertainty import SCORES, PredictiveUncertainty

NUM_IMAGES = 12
_UNITS = {"predictive_entropy": " in nats", "mutual_information": " in nats", "variation_ratio": ""}


def log_figures(
    run: Run, config: Config, data: UncertaintyData, predictor: PosteriorPredictor, trace: Sequence[float]
) -> None:
    """Log all figures of a finished training to the tracked run."""
    scores = all_scores(predictor, data)
    for name in SCORES:
        label = name.replace("_", " ") + _UNITS[name]
        of_sets = {of_set: getattr(each, name) for of_set, each in scores.items()}
        threshold = predictor.threshold if name == config.score else None
        run.log_figure(f"{name}.png", figure_scores(of_sets, label, f"{config.scheme}: {label}", threshold))
    test = data.inside.test
    probs = member_probs(predictor, test.images).mean(0)
    labels = torch.from_numpy(test.labels.copy())
    run.log_figure("reliability.png", figure_reliability({config.scheme: probs}, labels, data.inside.name))
    run.log_figure("doubted.png", figure_uncertain(data, predictor, scores, config))
    if len(trace):
        run.log_figure("chain.png", figure_trace(trace, config))


def figure_trace(trace: Sequence[float], config: Config) -> Figure:
    """Plot the gradient uncertainty of every step; after the warm-up, members are kept above the threshold."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    panel: Any = figure.subplots()
    panel.plot(np.clip(trace, -5, 1), linewidth=0.5)
    if config.scheme == "triggered":
        panel.axhline(config.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        panel.axvline(config.warmup_steps, color="0.6", linewidth=1, label="end of the warm-up")
        panel.legend(fontsize=8)
    panel.set_xlabel("step")
    panel.set_ylabel("gradient uncertainty (cut at -5)")
    panel.set_title(config.scheme, fontsize=10)
    return figure


def figure_uncertain(
    data: UncertaintyData, predictor: PosteriorPredictor, scores: dict[str, PredictiveUncertainty], config: Config
) -> Figure:
    """Show the images with the highest score in each set, with their predicted class."""
    sources = {"test": data.inside.test.images, **data.sets()}
    figure = Figure(figsize=(NUM_IMAGES * 0.85, 1.25 * len(sources) + 0.4), layout="constrained")
    panels: Any = figure.subplots(len(sources), NUM_IMAGES, squeeze=False)
    for row, (name, images) in enumerate(sources.items()):
        values = getattr(scores[name], config.score)
        chosen = values.topk(min(NUM_IMAGES, len(values))).indices.numpy()
        shown = images.read(chosen)
        answers = predictor(shown)
        for column, panel in enumerate(panels[row]):
            panel.set_xticks([])
            panel.set_yticks([])
            if column >= len(chosen):
                continue
            panel.imshow(shown[column].numpy(), interpolation="nearest")
            best = int(answers["probs"][column].argmax())
            label = f"{predictor.classes[best]} {answers['probs'][column, best]:.2f}"
            panel.set_title(f"{label}\n{values[chosen[column]]:.2f}", fontsize=7)
        panels[row, 0].set_ylabel(name, fontsize=8)
    figure.suptitle(f"highest {config.score.replace('_', ' ')}, {config.scheme}", fontsize=10)
    return figure
