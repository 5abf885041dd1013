"""Removal of an object from a scene, by rendering the scene again without it."""

from dataclasses import fields

import numpy as np

from tenfold.data.embedded.handwriting.build import source_digits
from tenfold.data.embedded.handwriting.config import HandwritingConfig
from tenfold.data.embedded.handwriting.scenes import render_scenes
from tenfold.data.embedded.handwriting.splits import Scenes
from tenfold.data.embedded.handwriting.store import cache_root

_OBJECT_FIELDS = ("digits", "colours", "sources", "sizes", "offsets")


def remove_object(scenes: Scenes, rows: np.ndarray, slots: np.ndarray, config: HandwritingConfig) -> Scenes:
    """Remove one object from each selected scene; everything else stays bit-identical.

    Only pixels that the object's ink covered change (what lies under it appears). The other objects keep their slots
    and so their ids in ``instances``; labels, boxes, concepts and caption are those of the remaining objects ("an empty
    canvas" if there are none).

    Args:
        scenes: Scenes of the embedded data.
        rows: Rows of the scenes, ``(B,)``; a scene may occur more than once.
        slots: Slot of the object to remove from each, ``(B,)``.
        config: Settings of the data, which name the cache of the source digits.

    Returns:
        New arrays of ``B`` scenes.

    Raises:
        ValueError: If ``rows`` and ``slots`` differ in length, lie outside the scenes, or a slot is empty.
    """
    rows, slots = np.asarray(rows), np.asarray(slots)
    num_scenes, num_slots = scenes.digits.shape
    if rows.ndim != 1 or rows.shape != slots.shape:
        raise ValueError(f"rows and slots must both be (B,), got {rows.shape} and {slots.shape}")
    if len(rows) == 0:
        raise ValueError("rows must hold at least one scene, got none")
    if rows.min() < 0 or rows.max() >= num_scenes or slots.min() < 0 or slots.max() >= num_slots:
        raise ValueError(
            f"rows must lie in 0..{num_scenes - 1} and slots in 0..{num_slots - 1}, "
            f"got rows {rows.min()}..{rows.max()} and slots {slots.min()}..{slots.max()}"
        )
    empty = np.flatnonzero(scenes.digits[rows, slots] < 0)
    if len(empty):
        raise ValueError(f"slots must hold an object, but slot {slots[empty[0]]} of scene {rows[empty[0]]} is empty")
    arrays = {column.name: np.array(getattr(scenes, column.name)[rows]) for column in fields(Scenes)}
    for name in _OBJECT_FIELDS:
        arrays[name][np.arange(len(rows)), slots] = -1
    arrays["counts"] -= 1
    source_images, _ = source_digits(cache_root(config.cache))
    return Scenes(**{**arrays, **render_scenes(arrays, source_images)})
