"""Localisation metrics at all thresholds at once, against plain loops over thresholds and images.

    python -m tests.benchmarks.bench_localisation [--maps 8] [--loop-maps 2] [--size 224] [--thresholds 1000]

Prints milliseconds per map and ratios of the same run. The loops are naive implementations: label the components of
every cut with scipy, take the box of each or of the largest; count hits and misses at every threshold. The values are
compared, too. Maps have the resolution of network outputs: 14 x 14 cells, upsampled.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from tenfold.metrics.localisation.boxes import box_fits, box_iou_inclusive
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map
from tenfold.metrics.localisation.pixel_ap import PixelAveragePrecision

EIGHT = np.ones((3, 3))


def milliseconds(function: Callable[[], np.ndarray | float], num_maps: int, repeats: int) -> tuple[float, object]:
    """Return the best time per map over the calls, and the last result."""
    times, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / num_maps, value


def boxes_by_labelling(levels: np.ndarray, cut: int, multi: bool) -> np.ndarray:
    """Find the boxes of one cut; areas from triangles of neighbouring pixels, holes filled."""
    height, width = levels.shape
    foreground = levels > cut
    labels, count = ndimage.label(foreground if multi else ndimage.binary_fill_holes(foreground), EIGHT)
    if not count:
        return np.zeros((1, 4), dtype=int)
    boxes, areas = [], []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        boxes.append([columns.start, rows.start, min(columns.stop, width - 1), min(rows.stop, height - 1)])
        if multi:
            continue
        inside = (labels[rows, columns] == label).astype(np.int8)
        corners = inside[:-1, :-1] + inside[:-1, 1:] + inside[1:, :-1] + inside[1:, 1:]
        areas.append((corners == 4).sum() + (corners == 3).sum() / 2)
    if multi:
        around, _ = ndimage.label(np.pad(~foreground, 1, constant_values=True))
        for label, (rows, columns) in enumerate(ndimage.find_objects(around), start=1):
            if label != around[0, 0]:
                right, bottom = min(columns.stop, width - 1), min(rows.stop, height - 1)
                boxes.append([columns.start - 2, rows.start - 2, right, bottom])
        return np.array(boxes)
    return np.array(boxes)[[max(range(count), key=lambda i: (areas[i], i))]]


def fits_by_loop(maps: np.ndarray, truth: list[np.ndarray], thresholds: np.ndarray, multi: bool) -> np.ndarray:
    fits = np.empty((len(maps), len(thresholds)))
    for row, s in enumerate(maps):
        levels = (s * 255).astype(np.uint8)
        greatest = int(levels.max())
        for t, threshold in enumerate(thresholds):
            boxes = boxes_by_labelling(levels, int(threshold * greatest), multi)
            fits[row, t] = box_iou_inclusive(boxes, truth[row]).max()
    return fits


def pixel_ap_by_loop(maps: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> float:
    hits, found = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    for s, gt in zip(maps, truth, strict=True):
        for t, threshold in enumerate(thresholds):
            marked = s >= threshold
            hits[t] += (marked & (gt == 1)).sum()
            found[t] += marked.sum()
    precision, recall = hits / np.maximum(found, 1), hits / hits[0]
    return float(100 * (precision[::-1] * np.diff(recall[::-1], prepend=0)).sum())


def pixel_ap(maps: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> float:
    metric = PixelAveragePrecision(thresholds)
    metric.update(maps, truth)
    return metric.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=8)
    parser.add_argument("--loop-maps", type=int, default=2, help="number of maps for the loops, which take seconds")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--thresholds", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    cells = torch.from_numpy(rng.normal(size=(options.maps, 14, 14)))
    maps = normalize_score_map(resize_score_map(cells, options.size), "minmax").numpy()
    truth = (maps + 0.2 * rng.normal(size=maps.shape) > 0.8).astype(np.uint8)
    corners = rng.integers(0, options.size // 2, (options.maps, 1, 2))
    boxes = list(np.concatenate([corners, corners + options.size // 3], axis=2))
    thresholds = np.arange(options.thresholds) / options.thresholds
    few = options.loop_maps
    print(f"maps of {options.size} x {options.size}, {options.thresholds} thresholds, {options.threads} threads")
    for name, multi in (("MaxBoxAcc", False), ("MaxBoxAccV2", True)):
        ours, fits = milliseconds(
            lambda multi=multi: box_fits(maps, boxes, thresholds, multi), options.maps, options.repeats
        )
        theirs, expected = milliseconds(
            lambda multi=multi: fits_by_loop(maps[:few], boxes[:few], thresholds, multi), few, 1
        )
        same = np.array_equal(np.asarray(fits)[:few], np.asarray(expected))
        print(f"{name}: {ours:.1f} ms per map, loop {theirs:.0f} ms: {theirs / ours:.0f} times as long, same: {same}")
    ours, _ = milliseconds(lambda: pixel_ap(maps, truth, thresholds), options.maps, options.repeats)
    theirs, expected = milliseconds(lambda: pixel_ap_by_loop(maps[:few], truth[:few], thresholds), few, 1)
    difference = abs(pixel_ap(maps[:few], truth[:few], thresholds) - float(str(expected)))
    print(
        f"PxAP: {ours:.1f} ms per map, loop {theirs:.0f} ms: {theirs / ours:.0f} times as long, "
        f"differs by {difference:.1e} %"
    )


if __name__ == "__main__":
    main()
