"""Connected components of all threshold cuts of a map at once.

Labelling each cut of a map of levels 0..255 anew repeats the same work 256 times. Instead, the map is partitioned once
into basins (every pixel climbs to a peak along a path that stays above any level the pixel is above), and basins join
at the highest saddle between them. A few hundred joins thus give the components of every cut.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

TOP = 256
"""Levels run from 0 to 255; 256 is above (or around) everything."""
_NONE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ComponentTree:
    """Components of {level >= l} for every l in 1..256; one row per basin, one column per level.

    A row represents the component that contains its peak, at the levels where that peak is the component's highest
    (``visible``).
    """

    levels: np.ndarray
    """int ``(H, W)``, 0..256."""
    basin: np.ndarray
    """Row of each pixel, ``(H, W)``."""
    peak: np.ndarray
    """Level of each row's peak, ``(R,)``."""
    joins: list[tuple[int, int, int]]
    """(surviving row, joining row, level), from the highest level down."""

    @cached_property
    def visible(self) -> np.ndarray:
        """Whether a row represents a component at a level, bool ``(R, 257)``."""
        joined_at = np.zeros(len(self.peak), dtype=np.int64)
        for _, row, level in self.joins:
            joined_at[row] = level
        columns = np.arange(TOP + 1)
        return (columns > joined_at[:, None]) & (columns <= self.peak[:, None])

    @cached_property
    def extents(self) -> np.ndarray:
        """Smallest row-major pixel index, smallest x, -largest x, -largest y: int32 ``(R, 4, 257)``."""
        y, x = np.nonzero(self.levels)
        row, level = self.basin[y, x], self.levels[y, x]
        table = np.full((len(self.peak), 4, TOP + 1), _NONE, dtype=np.int32)
        place = row * table[0].size + level
        for k, values in enumerate((y * self.levels.shape[1] + x, x, -x, -y)):
            np.minimum.at(table.reshape(-1), place + k * (TOP + 1), values.astype(np.int32))
        np.minimum.accumulate(table[..., ::-1], axis=-1, out=table[..., ::-1])
        for stays, joins, last in self.joins:
            part = table[stays, :, : last + 1]
            np.minimum(part, table[joins, :, : last + 1], out=part)
        return table

    @cached_property
    def twice_area(self) -> np.ndarray:
        """Twice the area of the polygon through the border pixels' centres, for maps without holes: int64 ``(R, 257)``.

        Of four neighbouring centres, four inside span a square of area 1 and three a triangle of area 1/2.
        """
        levels, basin = self.levels, self.basin
        corners = [(s[:-1, :-1], s[:-1, 1:], s[1:, :-1], s[1:, 1:]) for s in (levels, basin)]
        (a, b, c, d), (row_a, row_b, row_c, row_d) = corners
        low_ab, high_ab, low_cd, high_cd = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
        least = np.minimum(low_ab, low_cd)
        second_least = np.minimum(np.maximum(low_ab, low_cd), np.minimum(high_ab, high_cd))
        row_of_highest = np.where(
            high_ab >= high_cd, np.where(a >= b, row_a, row_b), np.where(c >= d, row_c, row_d)
        )  # in the same component as the others wherever those are inside
        place = row_of_highest * (TOP + 1)
        size = len(self.peak) * (TOP + 1)
        halves = sum(np.bincount((place + corner)[corner > 0], minlength=size) for corner in (second_least, least))
        table = np.cumsum(np.reshape(halves, (-1, TOP + 1))[:, ::-1], axis=1)[:, ::-1].copy()
        for stays, joins, level in self.joins:
            table[stays, : level + 1] += table[joins, : level + 1]
        return table


def component_tree(levels: np.ndarray, heights: np.ndarray, diagonal: bool) -> ComponentTree:
    """Build the components of all cuts of a map.

    Args:
        levels: int ``(H, W)``, 0..256.
        heights: Floats ``(H, W)`` in the same order, possibly finer: fewer ties give fewer basins.
        diagonal: Whether pixels that touch at a corner are connected (8-connectivity).
    """
    basin, peaks = _basins(heights, diagonal)
    peak = levels.reshape(-1)[peaks]
    return ComponentTree(levels, basin, peak, _joins(basin, levels, peak, diagonal))


def background_tree(levels: np.ndarray, heights: np.ndarray) -> ComponentTree:
    """Build the 4-connected components of the background {level <= t}, as components of {255 - level >= 255 - t}.

    The map is padded by one pixel at level 256; components not connected to the padding are holes.
    """
    inverted = np.pad(255 - levels, 1, constant_values=TOP)
    depths = np.pad(-heights, 1, constant_values=np.inf)
    return component_tree(inverted, depths, diagonal=False)


def fill_holes(background: ComponentTree) -> np.ndarray:
    """Return levels ``(H, W)`` whose every cut is the cut of the map with its holes filled.

    A pixel is in the outer background of a cut if a path leads outside on which no pixel is above the cut. Its new
    level is therefore the highest pixel on the best path out.
    """
    # Joins at level 0 are not listed: basins without a join are walled in by pixels of level 255.
    way_out = np.where(background.peak == TOP, 0, 255)
    for stays, joins, level in reversed(background.joins):
        way_out[joins] = 255 - level if background.peak[stays] == TOP else way_out[stays]
    filled = np.maximum(255 - background.levels, way_out[background.basin])
    return filled[1:-1, 1:-1]


def _neighbours(diagonal: bool) -> list[tuple[int, int]]:
    """Return the offsets to the neighbours that come later in row-major order."""
    return [(0, 1), (1, -1), (1, 0), (1, 1)] if diagonal else [(0, 1), (1, 0)]


def _basins(heights: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the peak that each pixel climbs to ``(H, W)``, and the peaks' flat positions ``(R,)``."""
    height, width = heights.shape
    later = _neighbours(diagonal)
    padded = np.pad(heights, 1, constant_values=-np.inf)
    place = np.arange(heights.size).reshape(heights.shape)
    highest = np.full(heights.shape, -np.inf)
    target = place.copy()
    # In row-major order the last of ties wins: equal heights are ordered by position, so no path is a cycle.
    for down, right in [*((-y, -x) for y, x in reversed(later)), (0, 0), *later]:
        neighbour = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        better = neighbour >= highest
        np.copyto(highest, neighbour, where=better)
        np.copyto(target, place + (down * width + right), where=better)
    pointers = target.reshape(-1)
    while True:
        further = pointers[pointers]
        if np.array_equal(further, pointers):
            break
        pointers = further
    peaks = np.flatnonzero(pointers == place.reshape(-1))
    number = np.empty(heights.size, dtype=np.int64)
    number[peaks] = np.arange(len(peaks))
    return number[pointers].reshape(heights.shape), peaks


def _joins(basin: np.ndarray, levels: np.ndarray, peak: np.ndarray, diagonal: bool) -> list[tuple[int, int, int]]:
    """List which basins join at which level, from the highest down; the basin with the higher peak survives."""
    ends, saddles = [], []
    height, width = basin.shape
    for down, right in _neighbours(diagonal):
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width + min(0, right)))
        border = basin[here] != basin[there]
        ends.append(np.stack([basin[here][border], basin[there][border]]))
        saddles.append(np.minimum(levels[here][border], levels[there][border]))
    (first, second), saddle = np.sort(np.concatenate(ends, axis=1), axis=0), np.concatenate(saddles)
    # Level 0 is never foreground. Of several saddles between two basins the highest counts.
    code = ((first * len(peak) + second) * (TOP + 1) + (TOP - saddle))[saddle > 0]
    code.sort()
    pair = code // (TOP + 1)
    best = code[np.diff(pair, prepend=-1) > 0]
    pair, cost = best // (TOP + 1), best % (TOP + 1) + 1
    graph = csr_array((cost, (pair // len(peak), pair % len(peak))), shape=(len(peak), len(peak)))
    tree = minimum_spanning_tree(graph).tocoo()
    order = np.argsort(tree.data, kind="stable")
    edges = zip(tree.row[order].tolist(), tree.col[order].tolist(), tree.data[order].tolist(), strict=True)
    return _union(((a, b, TOP + 1 - int(cost)) for a, b, cost in edges), peak.tolist())


def _union(edges: Iterable[tuple[int, int, int]], peak: list[int]) -> list[tuple[int, int, int]]:
    """Turn edges between any two rows into joins of the rows that represent their components."""
    parent = list(range(len(peak)))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    joins = []
    for a, b, level in edges:
        stays, joining = find(a), find(b)
        if peak[stays] < peak[joining]:
            stays, joining = joining, stays
        parent[joining] = stays
        joins.append((stays, joining, level))
    return joins
