"""Builder of the embedded data: every task is built once and read memory-mapped."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from tenfold.data.embedded.handwriting.characters import draw_ambiguous, draw_digits, draw_glyphs, draw_warps
from tenfold.data.embedded.handwriting.config import SPLITS, HandwritingConfig, Split
from tenfold.data.embedded.handwriting.fonts import glyphs
from tenfold.data.embedded.handwriting.grids import draw_pairs, draw_sums
from tenfold.data.embedded.handwriting.scenes import draw_scenes, render_scenes
from tenfold.data.embedded.handwriting.sources import NUM_SOURCES, SOURCE_SIZE, read_source, split_rows
from tenfold.data.embedded.handwriting.splits import (
    Ambiguous,
    Digits,
    Glyphs,
    Letters,
    Pairs,
    Scenes,
    Sums,
    Warps,
    schema,
)
from tenfold.data.embedded.handwriting.store import StoredFolder, cache_root, create_array, stored
from tenfold.data.embedded.handwriting.stream import Stream

BUILDER_VERSION = 1
"""Incremented with every change that alters bytes: old caches are then ignored and new ones built."""

BLOCK = 256
"""Images drawn together. Each block has its own random stream and is always drawn whole, so neither the number of
workers nor the number of images requested alters an image."""

TaskName = Literal["digits", "glyphs", "letters", "scenes", "warps", "ambiguous", "pairs", "sums"]
KINDS: dict[TaskName, type] = {
    "digits": Digits,
    "glyphs": Glyphs,
    "letters": Letters,
    "scenes": Scenes,
    "warps": Warps,
    "ambiguous": Ambiguous,
    "pairs": Pairs,
    "sums": Sums,
}

Kind = TypeVar("Kind", Digits, Glyphs, Letters, Scenes, Warps, Ambiguous, Pairs, Sums)


@dataclass(frozen=True)
class HandwritingFolder:
    """One task, built and checked."""

    task: TaskName
    stored: StoredFolder

    @property
    def fingerprint(self) -> str:
        """Hex digest of all bytes of the arrays."""
        return self.stored.fingerprint

    def split(self, split: Split) -> dict[str, np.ndarray]:
        """Return all arrays of a split by name, read-only and memory-mapped."""
        return {column.name: self.stored.array(split, column.name) for column in fields(KINDS[self.task])}


def build(
    task: TaskName, config: HandwritingConfig, *, workers: int | None = None, progress: bool = True
) -> HandwritingFolder:
    """Return a task of the embedded data, building it into the cache if it is missing.

    Blocks are drawn by threads (numpy releases the interpreter lock), so building works the same way in a script, a
    notebook, a daemon and a cluster worker, and starts no process.

    Args:
        task: One of ``KINDS``.
        config: Settings of the data; only the fields that affect the task's content enter the cache key.
        workers: Threads; None: the number of usable cores.
        progress: Whether a build of more than a second shows a progress bar (on a terminal).

    Raises:
        ValueError: If the task is unknown, or ``workers`` is below 1.
        OSError: If the cache folder cannot be written.
    """
    if task not in KINDS:
        raise ValueError(f"task must be one of {', '.join(KINDS)}, got {task!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    num_workers = workers or _usable_cores()
    root = cache_root(config.cache)

    def fill(folder: Path) -> None:
        columns = schema(KINDS[task], config)
        lengths = {split: NUM_SOURCES[split] if task == "digits" else config.num(split) for split in SPLITS}
        arrays = {
            (split, name): create_array(folder, split, name, lengths[split], row)
            for split in SPLITS
            for name, row in columns.items()
        }
        draw = _drawer(task, config, root)

        def draw_block(block: tuple[Split, int]) -> None:
            split, start = block
            drawn = draw(split, start)
            stop = min(start + BLOCK, lengths[split])
            for name, row in columns.items():
                _write_rows(arrays[split, name], start, stop, drawn[name], row)

        blocks = [(split, start) for split in SPLITS for start in range(0, lengths[split], BLOCK)]
        bar = tqdm(
            total=len(blocks), desc=f"handwriting {task}", unit="block", delay=1.0, disable=None if progress else True
        )
        with bar, ThreadPoolExecutor(num_workers) as pool:
            for _ in pool.map(draw_block, blocks):
                bar.update()
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]  # a memmap

    return HandwritingFolder(task, stored(root, f"handwriting-{task}", _settings(task, config), fill))


def load(kind: type[Kind], config: HandwritingConfig, split: Split) -> Kind:
    """Load the arrays of a split as a typed value, ``load(Scenes, config, "train").boxes``; builds them if missing.

    Args:
        kind: One of the values of ``KINDS``.
        config: Settings of the data.
        split: "train", "val" or "test".

    Raises:
        ValueError: If the split or the kind is none of these.
        OSError: If the cache folder cannot be written.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    for task, value in KINDS.items():
        if value is kind:
            return kind(**build(task, config).split(split))
    raise ValueError(f"kind must be one of {', '.join(value.__name__ for value in KINDS.values())}, got {kind!r}")


def source_digits(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the 5,000 source digits, cached: uint8 ``(5000, 28, 28)`` and their classes int64 ``(5000,)``."""

    def fill(folder: Path) -> None:
        source_images, labels = read_source()
        create_array(folder, "all", "images", len(source_images), np.dtype(("|u1", (SOURCE_SIZE, SOURCE_SIZE))))[:] = (
            source_images
        )
        create_array(folder, "all", "labels", len(labels), np.dtype("<i8"))[:] = labels

    folder = stored(root, "handwriting-source", {"version": BUILDER_VERSION}, fill)
    return folder.array("all", "images"), folder.array("all", "labels")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settings(task: TaskName, config: HandwritingConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"task": task, "version": BUILDER_VERSION, "seed": config.seed}
    if task != "digits":
        settings |= {f"num_{split}": config.num(split) for split in SPLITS}
    if task == "scenes":
        settings |= {"max_digits": config.max_digits, "distinct": config.distinct}
        settings |= {f"cooccurrence_{split}": float(config.strength(split)) for split in SPLITS}
    if task in ("pairs", "sums"):
        settings |= {"noise": float(config.noise), "repeat": float(config.repeat)}
    if task == "sums":
        settings["operands"] = list(config.operands)
    return settings


def _drawer(task: TaskName, config: HandwritingConfig, root: Path) -> Callable[[Split, int], dict[str, np.ndarray]]:
    """Return the function that draws a block: split and first row to arrays of ``BLOCK`` rows (fewer for "digits")."""
    if task in ("glyphs", "letters"):
        glyphs()  # fills the cache, so that not every thread draws them
        return lambda split, start: draw_glyphs(
            split, Stream(task, config.seed, split, start), BLOCK, letters=task == "letters"
        )
    source_images, labels = source_digits(root)
    rows = {split: split_rows(labels, split, config.seed) for split in SPLITS}

    def draw(split: Split, start: int) -> dict[str, np.ndarray]:
        if task == "digits":
            order = Stream(task, config.seed, split).orders(1, rows[split].size)[0]
            return draw_digits(rows[split].reshape(-1)[order[start : start + BLOCK]], source_images, labels)
        stream = Stream(task, config.seed, split, start)
        if task == "warps":
            return draw_warps(rows[split], source_images, stream, BLOCK)
        if task == "ambiguous":
            return draw_ambiguous(rows[split], source_images, stream, BLOCK)
        if task == "pairs":
            return draw_pairs(config, rows[split], source_images, stream, BLOCK)
        if task == "sums":
            return draw_sums(config, rows[split], source_images, stream, BLOCK)
        spec = draw_scenes(config, split, rows[split], source_images, stream, BLOCK)
        return {**spec, **render_scenes(spec, source_images)}

    return draw


def _write_rows(array: np.ndarray, start: int, stop: int, rows: np.ndarray, row: np.dtype) -> None:
    longer = row.kind == "U" and rows.dtype.itemsize > row.itemsize
    if rows.shape[1:] != row.shape or len(rows) < stop - start or longer or rows.dtype.kind != row.base.kind:
        raise AssertionError(f"a block must have rows {row}, got {rows.dtype} {rows.shape}")
    array[start:stop] = rows[: stop - start]
