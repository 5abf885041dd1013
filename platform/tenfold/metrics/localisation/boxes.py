"""Bounding boxes of score maps and their accuracy: MaxBoxAcc and MaxBoxAccV2.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020. A box is (x0, y0, x1, y1) in
pixels, ends included. A map is quantised to 256 levels, so at most 256 cuts differ however many thresholds there are;
the components of all cuts come from one tree.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.metrics.localisation.arrays import Array, to_numpy
from tenfold.metrics.localisation.components import background_tree, component_tree, fill_holes

Thresholds = Array | Sequence[float]


def score_map_boxes(s: Array, thresholds: Thresholds, multi: bool = False) -> list[Any]:
    """Find the boxes of the contours of {floor(255 s) > floor(threshold x highest level)}.

    Contours are those of 8-connected components and, with ``multi``, also those of their holes. A box extends from the
    contour's first pixel to one past its last, clipped to the map.

    Args:
        s: Map ``(H, W)`` in [0, 1].
        thresholds: T values in [0, 1].
        multi: Return all contours; otherwise the one with the largest enclosed area (polygon through the pixel
            centres, holes filled). Ties go to the contour whose first pixel comes last in row-major order.

    Returns:
        For every threshold int64 ``(n, 4)``, n = 1 unless ``multi``; (0, 0, 0, 0) without foreground. Tensors if s is
        one.

    Raises:
        ValueError: s not ``(H, W)``, NaN or values outside [0, 1], thresholds outside [0, 1].
    """
    cuts, of_threshold, boxes, of_box = _boxes_of_cuts(to_numpy(s), _thresholds(thresholds), multi)
    by_cut = np.split(boxes, np.searchsorted(of_box, np.arange(1, len(cuts))))
    results = [by_cut[cut].copy() for cut in of_threshold]
    return [torch.from_numpy(result) for result in results] if isinstance(s, Tensor) else results


def box_iou_inclusive(a: Array, b: Array) -> Any:
    """Compute pairwise intersection over union; a box has (x1 - x0 + 1)(y1 - y0 + 1) pixels.

    Args:
        a: ``(n, 4)``.
        b: ``(m, 4)``.

    Returns:
        float64 ``(n, m)``; a tensor if a is one.

    Raises:
        ValueError: Wrong shape, negative coordinates, x1 < x0 or y1 < y0.
    """
    iou = _iou(_check_boxes(a, "a"), _check_boxes(b, "b"))
    return torch.from_numpy(iou) if isinstance(a, Tensor) else iou


def resize_box(box: Array | Sequence[float], from_wh: Sequence[int], to_wh: Sequence[int]) -> Any:
    """Scale a box along with a resized image, truncating to whole pixels.

    Args:
        box: x0, y0, x1, y1.
        from_wh: Width and height before resizing.
        to_wh: Width and height after resizing.

    Returns:
        int64 ``(4,)``; a tensor if ``box`` is one.

    Raises:
        ValueError: Not four numbers, negative coordinates, x1 < x0 or y1 < y0, or a size below 1.
    """
    numbers = to_numpy(box) if isinstance(box, Tensor) else np.asarray(box)
    given = _check_boxes(numbers[None], "box")[0].astype(np.float64)
    if min(*from_wh, *to_wh) < 1:
        raise ValueError(f"from_wh and to_wh must be at least 1, got {tuple(from_wh)} and {tuple(to_wh)}")
    resized = (given * np.tile(to_wh, 2) / np.tile(from_wh, 2)).astype(np.int64)
    return torch.from_numpy(resized) if isinstance(box, Tensor) else resized


def max_box_accuracy(
    maps: Array,
    gt_boxes: Sequence[Array],
    thresholds: Thresholds,
    iou: Sequence[float] = (0.5,),
    multi: bool = False,
) -> dict[Any, float]:
    """Percentage of images in which a predicted box matches a true box, at the best threshold for the whole set.

    MaxBoxAcc by default; MaxBoxAccV2 with IoU (0.3, 0.5, 0.7) and ``multi``.

    Args:
        maps: ``(N, H, W)`` in [0, 1].
        gt_boxes: True boxes ``(n, 4)`` of each image, in pixels of the maps.
        thresholds: T values in [0, 1].
        iou: Levels at which boxes match: an IoU of at least this.
        multi: Use all contours of a map instead of the largest.

    Returns:
        Percentage for each IoU, and their mean under "mean".

    Raises:
        ValueError: Mismatched shapes, an image without boxes, or boxes with negative coordinates, x1 < x0 or y1 < y0;
            also as in ``score_map_boxes``.
    """
    if maps.ndim != 3 or not len(maps) or len(maps) != len(gt_boxes):
        raise ValueError(
            f"maps must be (N, H, W) with boxes for each, N at least 1, got {tuple(maps.shape)} and {len(gt_boxes)}"
        )
    if not len(iou):
        raise ValueError("iou must hold at least one level, got none")
    true_boxes = [_check_boxes(boxes, f"gt_boxes[{row}]") for row, boxes in enumerate(gt_boxes)]
    for row, boxes in enumerate(true_boxes):
        if not len(boxes):
            raise ValueError(f"gt_boxes[{row}] must hold at least one box, got none; leave out images without objects")
    fractions = _thresholds(thresholds)
    fits = box_fits(maps, true_boxes, fractions, multi)
    shares = {level: float(100 * (fits >= level).mean(0).max()) for level in iou}
    return {**shares, "mean": float(np.mean(list(shares.values())))}


def box_fits(maps: Array, gt_boxes: Sequence[Array], thresholds: Thresholds, multi: bool = False) -> np.ndarray:
    """Compute the best IoU of a predicted and a true box, float64 ``(N, T)``; arguments as in ``max_box_accuracy``.

    Images are independent, so workers may each take some and concatenate the rows.
    """
    fractions = _thresholds(thresholds)
    fits = np.empty((len(maps), len(fractions)))
    for row, (one, true_boxes) in enumerate(zip(to_numpy(maps), gt_boxes, strict=True)):
        cuts, of_threshold, boxes, of_box = _boxes_of_cuts(one, fractions, multi)
        best = np.zeros(len(cuts))
        np.maximum.at(best, of_box, _iou(boxes, to_numpy(true_boxes)).max(1))
        fits[row] = best[of_threshold]
    return fits


def _boxes_of_cuts(
    s: np.ndarray, thresholds: np.ndarray, multi: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct cuts, the cut of each threshold, boxes ``(n, 4)``, and the cut of each box (ascending)."""
    if s.ndim != 2 or not s.size:
        raise ValueError(f"s must be one map (H, W), got {s.shape}")
    if not (s.min() >= 0 and s.max() <= 1):
        raise ValueError(f"s must lie in [0, 1] without NaN, got {s.min()} to {s.max()}; see normalize_score_map")
    heights = s * s.dtype.type(255) if s.dtype.kind == "f" else s * 255.0
    levels = heights.astype(np.int64)
    greatest = int(levels.max())
    cuts, of_threshold = np.unique((thresholds * greatest).astype(np.int64), return_inverse=True)
    seen = cuts[cuts < greatest]
    boxes, of_box = np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64)
    if len(seen):
        boxes, of_box = (_all_contours if multi else _largest_contours)(levels, heights, seen)
    empty = np.arange(len(seen), len(cuts))
    boxes = np.concatenate([boxes, np.zeros((len(empty), 4), dtype=np.int64)])
    return cuts, of_threshold, boxes, np.concatenate([of_box, empty])


def _largest_contours(levels: np.ndarray, heights: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # With holes filled, a component is everything enclosed by its outer contour.
    filled = fill_holes(background_tree(levels, heights))
    tree = component_tree(filled, np.maximum(heights, filled), diagonal=True)
    columns = cuts + 1
    first = tree.extents[:, 0, columns].astype(np.int64)  # (R, L)
    rank = np.where(tree.visible[:, columns], tree.twice_area[:, columns] * levels.size + first, -1)
    rows = rank.argmax(0)
    return _boxes(tree.extents[rows, :, columns], levels.shape), np.arange(len(cuts))


def _all_contours(levels: np.ndarray, heights: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tree = component_tree(levels, heights, diagonal=True)
    of_component, rows = tree.visible[:, cuts + 1].T.nonzero()
    components = _boxes(tree.extents[rows, :, cuts[of_component] + 1], levels.shape)
    background = background_tree(levels, heights)
    holes = background.visible[:, 255 - cuts] & (background.peak[:, None] < 256)
    of_hole, rows = holes.T.nonzero()
    extents = background.extents[rows, :, 255 - cuts[of_hole]].astype(np.int64)
    # The contour of a hole runs through the surrounding foreground: one pixel further on each side.
    width = levels.shape[1] + 2
    around = np.stack(
        [(extents[:, 0] // width - 2) * levels.shape[1], extents[:, 1] - 2, extents[:, 2], extents[:, 3]], axis=1
    )
    of_box = np.concatenate([of_component, of_hole])
    order = np.argsort(of_box, kind="stable")
    return np.concatenate([components, _boxes(around, levels.shape)])[order], of_box[order]


def _boxes(extents: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert a component tree's extents ``(n, 4)`` to boxes ``(n, 4)``."""
    first, left, right, bottom = extents.astype(np.int64).T
    top = first // shape[1]
    return np.stack([left, top, np.minimum(1 - right, shape[1] - 1), np.minimum(1 - bottom, shape[0] - 1)], axis=1)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low + 1).clip(min=0).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) for boxes in (a, b))
    return shared / (area_a[:, None] + area_b - shared)


def _check_boxes(boxes: Array, name: str) -> np.ndarray:
    given = to_numpy(boxes)
    if given.ndim != 2 or given.shape[1] != 4:
        raise ValueError(f"{name} must be boxes (n, 4) of x0, y0, x1, y1, got {given.shape}")
    wrong = (given < 0).any(1) | (given[:, 2] < given[:, 0]) | (given[:, 3] < given[:, 1])
    if wrong.any():
        raise ValueError(f"{name} must have 0 <= x0 <= x1 and 0 <= y0 <= y1, got {given[wrong][0].tolist()}")
    return given


def _thresholds(thresholds: Thresholds) -> np.ndarray:
    given = np.asarray(to_numpy(thresholds) if isinstance(thresholds, Tensor) else thresholds, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not (given.min() >= 0 and given.max() <= 1):
        raise ValueError(f"thresholds must be one or more values in [0, 1], got {given.tolist()[:5]}")
    return given
