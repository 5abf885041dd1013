"""Evaluation of class activation maps: agreement of two multi-label models, the analysis that motivates BoostLU.

A model trained on partial labels highlights the same locations as one trained on full labels, but with lower scores
(CVPR 2023). The class activation maps of the two models are compared on every test image: by rank correlation on
positive classes, and by the means of the highest and the lowest scores on positive and negative classes.
Shapes: B images in a batch, K classes, P pairs of an image and a class, maps of h x w locations.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tenfold.data.catalog import load_multilabel
from tenfold.data.multilabel import MultiLabelSplit
from tenfold.engine.predict import check_classes
from tenfold.engine.run import Run
from tenfold.methods.large_loss.figures import figure_agreement, figure_examples
from tenfold.methods.large_loss.predictor import MultiLabelPredictor, head_maps
from tenfold.metrics.map_agreement import cam_extreme_means, cam_rank_correlation, centre_gaussian
from tenfold.models.activation_maps import cam_logits

MAX_NEGATIVES = 20
"""Negative classes per image; drawn at random where there are more (OpenImages has thousands)."""
MAPS_PER_BATCH = 100_000
"""Upper bound that limits the batch size when there are many classes."""


def compare(
    predictor: Any, reference: Any, data: Any, run: Run, names: Sequence[str] = ("model", "reference")
) -> dict[str, float]:
    """Compare the maps of two models on the test images, and plot the results.

    Args:
        predictor: A model of Large Loss or BoostLU, usually trained on partial labels.
        reference: The other model, with maps of the same size; usually trained on full labels.
        data: Settings of a data set with the same classes.
        run: Execution context; figures go to its recorder.
        names: Names of the two models in the figures.

    Returns:
        Metrics of ``summarise``.

    Raises:
        ValueError: If a model has no class activation maps, the data set other classes, or the maps differ in size.
    """
    for name, each in zip(names, (predictor, reference), strict=True):
        if not isinstance(each, MultiLabelPredictor):
            raise ValueError(  # noqa: TRY004 - the user chooses the models
                f"{name} has no class activation maps to compare; choose models of large_loss or boostlu"
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
    """Compare the maps of all images in one pass, distributed over all workers; no map is kept.

    Returns:
        One row for each of P pairs with a known label, identified by ``row`` (the image) and ``label`` (the class):
        ``positive``, the true label; for positives the Spearman correlation of the model's map with the reference's
        (``correlation``) and of the reference's with a centred Gaussian (``control``), NaN for a constant map; and for
        each model the probability (``prob_model``) and the mean of its highest and lowest 5 % of scores (``top_model``,
        ``bottom_model``), likewise ``_reference`` and, for a boosted head, ``_unboosted``.

    Raises:
        ValueError: If maps differ in size or are not finite.
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
    # The last images of a worker may repeat the first of another: keep each pair once.
    return pairs.drop_duplicates(["row", "label"]).sort_values(["row", "label"], ignore_index=True)


def summarise(pairs: pd.DataFrame) -> dict[str, float]:
    """Summarise a table of ``measure``.

    Returns:
        Quartiles over positives of the correlation and of its control; for each model its median highest and lowest
        scores on positives and negatives, its mean probability of the positives and its recall at 0.5 (``recall``);
        and the number of pairs.
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
    """Return the models whose scores a table of ``measure`` has."""
    return [name for name in ("reference", "model", "unboosted") if f"top_{name}" in pairs]


def _maps(predictor: MultiLabelPredictor, reference: MultiLabelPredictor, images: Tensor) -> dict[str, Tensor]:
    """Compute the maps ``(B, K, h, w)`` of each model, with one forward pass per network."""
    maps = {"reference": reference.class_maps(images)}
    features = predictor.model.feature_map(images)
    maps["model"] = head_maps(predictor.model, features)
    if predictor.model.reads_map:
        maps["unboosted"] = head_maps(predictor.model, features, boosted=False)
    wanted, size = maps["reference"].shape[2:], maps["model"].shape[2:]
    if size != wanted:
        raise ValueError(
            f"maps must be {wanted[0]}x{wanted[1]} as the reference's, got {size[0]}x{size[1]}; "
            f"compare networks with the same output stride and image size"
        )
    return maps


def _measure_batch(maps: Mapping[str, Tensor], split: MultiLabelSplit, rows: np.ndarray, seed: int) -> pd.DataFrame:
    truth = split.full[rows]
    images, labels = _known_pairs(truth, np.random.default_rng((seed, int(rows[0]))))
    positive = truth[images, labels] == 1
    columns: dict[str, np.ndarray] = {"row": rows[images], "label": labels, "positive": positive}
    device = maps["model"].device
    at = (torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))
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
    """Return images and classes: all positives, and at most ``MAX_NEGATIVES`` negatives per image."""
    negative = truth == 0
    if truth.shape[1] > MAX_NEGATIVES:
        order = np.where(negative, draw.random(truth.shape), np.inf)
        negative &= order <= np.partition(order, MAX_NEGATIVES - 1, axis=1)[:, MAX_NEGATIVES - 1, None]
    images, labels = np.nonzero((truth == 1) | negative)
    return images, labels
