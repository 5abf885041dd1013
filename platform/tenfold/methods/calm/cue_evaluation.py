"""Cue localisation on CUB: evaluation of counterfactual maps against the parts that distinguish two classes.

For two classes A and B, the map |p(A,z|x) - p(B,z|x)| of every test image of either class is compared with the
foreground pixels nearest to the parts in which A and B differ. Each image passes through the network once, however
many pairs its class is in.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.data.localisation import CueTruth, LocalisationSplit
from tenfold.engine.run import Run
from tenfold.methods.calm.attribution import counterfactual_map
from tenfold.methods.calm.cues import PRESENT_PERCENT, attribute_parts, merge_parts, nearest_parts
from tenfold.methods.calm.data import read_batch
from tenfold.methods.calm.map_metrics import SHARED_PRECISION, Kind, precision_kinds
from tenfold.methods.calm.network import calm_head
from tenfold.methods.calm.settings import Config
from tenfold.methods.calm.sources import view
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map, score_thresholds
from tenfold.metrics.localisation.pixel_ap import PixelAveragePrecision
from tenfold.models.image_classifier import ImageClassifier

COUNTS = (1, 2, 3)
"""Numbers of differing parts for which pairs of classes are evaluated."""
BATCH_SIZE = 32
Pair = tuple[int, int]


def differing_pairs(percent: np.ndarray, names: Sequence[str]) -> dict[Pair, frozenset[int]]:
    """Return the pairs of classes A < B that differ in one, two or three of the seven parts, with these parts.

    Args:
        percent: Share of annotators who saw each attribute, ``(C, A)`` in percent.
        names: A attribute names.
    """
    present = (np.asarray(percent) >= PRESENT_PERCENT).astype(np.float64)
    of_part = attribute_parts(names).numpy().astype(np.float64)  # (A, 7)
    pairs: dict[Pair, frozenset[int]] = {}
    # Attributes in which two classes differ: those of each, minus twice the shared ones; integers, hence exact.
    weighted = [present * column for column in of_part.T]
    differ = np.stack([each.sum(1)[:, None] + each.sum(1) - 2 * each @ present.T for each in weighted], axis=-1) > 0
    for first, second in np.argwhere(np.triu(np.isin(differ.sum(-1), COUNTS), k=1)):
        pairs[int(first), int(second)] = frozenset((differ[first, second].nonzero()[0] + 1).tolist())
    return pairs


def measure_cues(
    run: Run, model: ImageClassifier, split: LocalisationSplit, cues: CueTruth, config: Config
) -> dict[str, float]:
    """Compute the pixel average precision of the difference maps of all pairs, distributed over all workers.

    Args:
        run: Execution context.
        model: A network of ``calm_classifier``.
        split: Test split.
        cues: Its annotations.
        config: Thresholds and normalisation.

    Returns:
        ``cues/pxap_1_minmax_even`` ... ``_3_``, percent, the mean over the pairs that differ in this many parts, per
        normalisation and thresholds; ``cues/pxap_minmax_even``, the mean over all pairs; ``cues/pairs_1`` ..., their
        number. Pairs without a visible differing part in any image are skipped.
    """
    pairs = differing_pairs(cues.class_attribute_percent, cues.attribute_names)
    of_class: dict[int, list[Pair]] = {}
    for pair in pairs:
        for label in pair:
            of_class.setdefault(label, []).append(pair)
    rows = np.flatnonzero(np.isin(split.labels, list(of_class)))
    kinds = precision_kinds(config)
    metrics = {
        (pair, kind): PixelAveragePrecision(score_thresholds(config.interval, kind[1]))
        for pair in pairs
        for kind in kinds
    }
    model = model.to(run.device).eval()
    size, prior = model.preprocessing.image_size, calm_head(model).prior
    mode: Literal["vanilla", "jointll"] = "vanilla" if config.mode == "cam" else "jointll"
    for at in range(run.rank * BATCH_SIZE, len(rows), run.world_size * BATCH_SIZE):
        some = rows[at : at + BATCH_SIZE]
        batch = run.to_device(read_batch(split, some))
        seen = view(model, batch["images"], batch["labels"])
        truth = _Truth(cues, some, size)
        for place, row in enumerate(some):
            own = of_class[int(split.labels[row])]
            masks = [(pair, mask) for pair in own if (mask := truth.mask(place, pairs[pair])) is not None]
            if not masks:
                continue
            first, second = torch.tensor([pair for pair, _ in masks], device=run.device).T
            f, a = (scores[place].expand(len(masks), -1, -1, -1) for scores in (seen.f, seen.a))
            maps = resize_score_map(counterfactual_map(f, a, first, second, mode, prior).abs(), size)
            for kind in kinds:
                for one, (pair, mask) in zip(normalize_score_map(maps, kind[0]), masks, strict=True):
                    metrics[pair, kind].update(one, mask.to(one.device))
    return _summary(run, metrics, pairs)


class _Truth:
    """Nearest part of every pixel of a batch of images, computed once for all pairs."""

    def __init__(self, cues: CueTruth, rows: np.ndarray, size: int) -> None:
        self._foreground = cues.foregrounds.read(rows) == 1
        self._nearest: list[np.ndarray | None] = []
        self._parts: list[np.ndarray] = []
        for row in rows:
            xy, ids = merge_parts(cues.part_ids[row], cues.part_xy[row], cues.image_wh[row], size)
            self._parts.append(ids)
            self._nearest.append(nearest_parts(xy, ids, (size, size)) if len(ids) else None)

    def mask(self, place: int, parts: frozenset[int]) -> Tensor | None:
        """Return uint8 0/1 ``(S, S)``, or None if none of the parts is visible."""
        nearest, wanted = self._nearest[place], list(parts)
        if nearest is None or not np.isin(self._parts[place], wanted).any():
            return None
        return torch.from_numpy((np.isin(nearest, wanted) & self._foreground[place]).astype(np.uint8))


def _summary(
    run: Run, metrics: Mapping[tuple[Pair, Kind], PixelAveragePrecision], pairs: Mapping[Pair, frozenset[int]]
) -> dict[str, float]:
    values: dict[str, list[float]] = {f"pairs_{count}": [] for count in COUNTS}
    for (pair, kind), metric in metrics.items():
        metric.counts = run.all_reduce(metric.counts)
        if metric.counts[1].sum() > 0:
            value, name = metric.compute(), "_".join(kind)
            values.setdefault(f"pxap_{len(pairs[pair])}_{name}", []).append(value)
            values.setdefault(f"pxap_{name}", []).append(value)
            if kind == SHARED_PRECISION:
                values[f"pairs_{len(pairs[pair])}"].append(value)
    return {
        f"cues/{name}": float(len(each)) if name.startswith("pairs") else float(np.mean(each))
        for name, each in values.items()
    }
