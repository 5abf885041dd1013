"""How the explanations of two multi-label models differ: the analysis that motivates BoostLU (CVPR 2023).

A model trained on partial labels points to the same places as one trained on all labels, but with lower scores. For
every test picture the two models' class activation maps are compared: by ranks on the classes that are there, and by
the means of the highest and the lowest scores on those that are there and those that are not.
Shapes: B pictures of a batch, K classes, P pairs of a picture and a class, maps of h x w places.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tenfold.data.catalog import load_multilabel
from tenfold.data.multilabel import MultiLabelSplit
from tenfold.engine.predict import check_classes
from tenfold.engine.run import Run
from tenfold.figures.overlays import figure_overlays
from tenfold.methods.large_loss.figures import figure_agreement
from tenfold.methods.large_loss.predictor import MultiLabelPredictor, head_maps
from tenfold.metrics.map_agreement import cam_extreme_means, cam_rank_correlation, centre_gaussian
from tenfold.models.activation_maps import cam_logits

MAX_NEGATIVES = 20
"""Of each picture; drawn at random where more classes are not there: OpenImages has thousands."""
MAPS_PER_BATCH = 100_000
"""Bounds the pictures of a batch where classes are many."""
NUM_EXAMPLES = 6


def compare(
    predictor: Any, reference: Any, data: Any, run: Run, names: Sequence[str] = ("model", "reference")
) -> dict[str, float]:
    """Measure a model's maps against another's on the test pictures, and draw what was found.

    Args:
        predictor: The model, of Large Loss or BoostLU; mostly trained on partial labels.
        reference: The other, with maps of as many places; mostly trained on full labels.
        data: Settings of a data set with their classes.
        run: The machine; figures go to its recorder.
        names: What the two are called in the figures.

    Returns:
        What ``summarise`` gives.

    Raises:
        ValueError: A model without class activation maps, data with other classes, or maps of another size.
    """
    for name, each in zip(names, (predictor, reference), strict=True):
        if not isinstance(each, MultiLabelPredictor):
            raise ValueError(  # noqa: TRY004 - which models are compared is a choice of the user
                f"{name} has no class activation maps to compare: take models of large_loss or boostlu"
            )
    loaded = run.once_per_node(lambda: load_multilabel(data))
    for each in (predictor, reference):
        check_classes(each.classes, loaded.name, loaded.classes)
    pairs = measure(predictor, reference, loaded.test, run)
    if run.is_main and run.recorder is not None:
        stem = re.sub(r"[^\w.-]", "-", "_".join(("explanations", *names, loaded.name)))
        run.log_figure(f"{stem}.png", figure_agreement(pairs, names))
        run.log_figure(f"{stem}_maps.png", figure_examples(predictor, reference, loaded.test, pairs, names))
    return summarise(pairs)


def measure(
    predictor: MultiLabelPredictor, reference: MultiLabelPredictor, split: MultiLabelSplit, run: Run
) -> pd.DataFrame:
    """One pass over the pictures, by all workers together; of the maps nothing is kept.

    Returns:
        A row for each of P pairs whose truth is known, by ``row`` of the picture and ``label``, the class: whether it
        is there (``positive``); on positives the Spearman correlation of the model's map with the reference's
        (``correlation``) and of the reference's with a Gaussian in the middle of the picture (``control``), NaN where a
        map is constant; and for each model the probability (``prob_model``) and the mean of the highest and lowest 5 %
        of its scores (``top_model``, ``bottom_model``), likewise ``_reference`` and, where the model's head boosts,
        ``_unboosted``.

    Raises:
        ValueError: Maps of different sizes, or with values that are not finite.
    """
    images = split.images
    loader = run.loader(
        lambda rows: {"images": images.read(rows)},
        len(images),
        max(1, min(64, MAPS_PER_BATCH // split.full.shape[1])),
        shuffle=False,
        prefetch=0 if images.in_memory else 2,
    )
    parts = []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            maps = _maps(predictor, reference, run.to_device(batch)["images"])
            parts.append(_measure_batch(maps, split, batch["index"].numpy(), run.seed))
    pairs = pd.concat([part for of_worker in run.share_all(parts) for part in of_worker])
    # A worker's last pictures may be another's first: once is enough.
    return pairs.drop_duplicates(["row", "label"]).sort_values(["row", "label"], ignore_index=True)


def summarise(pairs: pd.DataFrame) -> dict[str, float]:
    """Figures of a table of ``measure``.

    Returns:
        Quartiles over positives of the correlation and of its control; for each model its median highest and lowest
        scores on positives and negatives, its mean probability of the positives and the share of them above 0.5
        (``recall``); and how many pairs there were.
    """
    positives, negatives = pairs[pairs.positive], pairs[~pairs.positive]
    metrics = {"num_positives": float(len(positives)), "num_negatives": float(len(negatives))}
    for name in ("correlation", "control"):
        for level, value in zip(("q25", "median", "q75"), positives[name].quantile([0.25, 0.5, 0.75]), strict=True):
            metrics[f"{name}_{level}"] = float(value)
    metrics["num_constant"] = float(positives["correlation"].isna().sum())
    for of_model in models_in(pairs):
        for extreme in ("top", "bottom"):
            metrics[f"{extreme}_positives_{of_model}"] = float(positives[f"{extreme}_{of_model}"].median())
            metrics[f"{extreme}_negatives_{of_model}"] = float(negatives[f"{extreme}_{of_model}"].median())
        metrics[f"prob_positives_{of_model}"] = float(positives[f"prob_{of_model}"].mean())
        metrics[f"recall_{of_model}"] = float((positives[f"prob_{of_model}"] > 0.5).mean())
    return metrics


def models_in(pairs: pd.DataFrame) -> list[str]:
    """Whose scores a table of ``measure`` holds."""
    return [name for name in ("reference", "model", "unboosted") if f"top_{name}" in pairs]


def figure_examples(
    predictor: MultiLabelPredictor,
    reference: MultiLabelPredictor,
    split: MultiLabelSplit,
    pairs: pd.DataFrame,
    names: Sequence[str],
) -> Figure:
    """Both models' maps over test pictures, from where they agree least (above) to where they agree most.

    Args:
        predictor, reference, split: As in ``measure``.
        pairs: What ``measure`` gave for them.
        names: Of the two models.
    """
    ranked = pairs[pairs.positive].sort_values(["correlation", "row"], ignore_index=True)
    places = np.linspace(0.05, 0.95, NUM_EXAMPLES) * (len(ranked) - 1)
    shown = ranked.iloc[np.unique(places.round().astype(int))] if len(ranked) else pairs.iloc[:1]
    images = split.images.read(shown["row"].to_numpy())
    labels = torch.tensor(shown["label"].to_numpy())
    maps = [each.explain(images, labels)["attributions"].numpy() for each in (reference, predictor)]
    titles = [
        f"{predictor.classes[pair.label]}\nrank corr. {pair.correlation:.2f}\n"
        f"p = {pair.prob_reference:.2f} / {pair.prob_model:.2f}"
        for pair in shown.itertuples()
    ]
    return figure_overlays(images.numpy(), maps, [names[1], names[0]], row_titles=titles)


def _maps(predictor: MultiLabelPredictor, reference: MultiLabelPredictor, images: Tensor) -> dict[str, Tensor]:
    """``(B, K, h, w)`` of each model; one pass through each network."""
    maps = {"reference": reference.class_maps(images)}
    features = predictor.model.feature_map(images)
    maps["model"] = head_maps(predictor.model, features)
    if predictor.model.reads_map:
        maps["unboosted"] = head_maps(predictor.model, features, boosted=False)
    wanted, size = maps["reference"].shape[2:], maps["model"].shape[2:]
    if size != wanted:
        raise ValueError(
            f"the model's maps have {size[0]}x{size[1]} places, the reference's {wanted[0]}x{wanted[1]}: "
            f"compare networks of one output stride on pictures of one size"
        )
    return maps


def _measure_batch(maps: Mapping[str, Tensor], split: MultiLabelSplit, rows: np.ndarray, seed: int) -> pd.DataFrame:
    truth = split.full[rows]
    pictures, labels = _known_pairs(truth, np.random.default_rng((seed, int(rows[0]))))
    positive = truth[pictures, labels] == 1
    columns: dict[str, np.ndarray] = {"row": rows[pictures], "label": labels, "positive": positive}
    device = maps["model"].device
    at = (torch.from_numpy(pictures).to(device), torch.from_numpy(labels).to(device))
    chosen = {name: each[at] for name, each in maps.items()}  # (P, h, w) each
    there = torch.from_numpy(positive).to(device)
    gaussian = centre_gaussian(*chosen["reference"].shape[1:]).to(device)
    for name, other in (("correlation", chosen["model"][there]), ("control", gaussian)):
        columns[name] = np.full(len(labels), np.nan)
        columns[name][positive] = cam_rank_correlation(chosen["reference"][there], other).cpu().numpy()
    for name, each in maps.items():
        top, bottom = cam_extreme_means(chosen[name])
        columns[f"top_{name}"], columns[f"bottom_{name}"] = top.cpu().numpy(), bottom.cpu().numpy()
        columns[f"prob_{name}"] = cam_logits(each).sigmoid()[at].double().cpu().numpy()
    return pd.DataFrame(columns)


def _known_pairs(truth: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and classes: all that are there, and at most ``MAX_NEGATIVES`` of each picture that are not."""
    negative = truth == 0
    if truth.shape[1] > MAX_NEGATIVES:
        order = np.where(negative, draw.random(truth.shape), np.inf)
        negative &= order <= np.partition(order, MAX_NEGATIVES - 1, axis=1)[:, MAX_NEGATIVES - 1, None]
    pictures, labels = np.nonzero((truth == 1) | negative)
    return pictures, labels
