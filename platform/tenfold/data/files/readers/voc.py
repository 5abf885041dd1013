"""PASCAL VOC 2012: ``VOCdevkit/VOC2012/ImageSets/Main/<class>_{train,val}.txt`` and ``JPEGImages``.

A line is an image id and a flag: 1 is positive; -1 (absent) and 0 (only difficult objects) are not. Images without a
positive class are skipped; names are sorted.
"""

from pathlib import Path

import numpy as np

from tenfold.data.files.readers.official_lists import Listing, OfficialLists, read_lines

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

_DEVKIT = Path("VOCdevkit/VOC2012")


def read_voc(root: Path) -> OfficialLists:
    """Read both lists. Raises ValueError, with the path, for a missing or malformed file."""
    return OfficialLists(classes=CLASSES, train=_read_list(root, "train"), test=_read_list(root, "val"))


def _read_list(root: Path, part: str) -> Listing:
    lists = root / _DEVKIT / "ImageSets" / "Main"
    ids, first = _read_flags(lists / f"{CLASSES[0]}_{part}.txt")
    order = np.argsort(ids)
    positive = np.empty((len(ids), len(CLASSES)), dtype=np.int8)
    positive[:, 0] = first[order] == 1
    for column, name in enumerate(CLASSES[1:], start=1):
        path = lists / f"{name}_{part}.txt"
        other_ids, flags = _read_flags(path)
        other_order = np.argsort(other_ids)
        if not np.array_equal(ids[order], other_ids[other_order]):
            raise ValueError(f"{path} lists other images than {CLASSES[0]}_{part}.txt; is one of them truncated?")
        positive[:, column] = flags[other_order] == 1
    keep = positive.any(axis=1)
    names = [f"{image_id}.jpg" for image_id in ids[order][keep].tolist()]
    return Listing(folder=root / _DEVKIT / "JPEGImages", names=names, full=positive[keep])


def _read_flags(path: Path) -> tuple[np.ndarray, np.ndarray]:
    lines = read_lines(path, "VOC's image list of one class, lines 'id flag'")
    fields = np.array([field for line in lines for field in line.split()])
    if not lines or len(fields) != 2 * len(lines):
        raise ValueError(f"{path}: expected lines 'id flag', got {len(fields)} fields on {len(lines)} lines")
    ids, flags = fields[0::2], fields[1::2]
    wrong = np.flatnonzero(~np.isin(flags, ("-1", "0", "1")))
    if wrong.size:
        raise ValueError(f"{path}: the flag of {ids[wrong[0]]} must be -1, 0 or 1, got {flags[wrong[0]]}")
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{path} lists an image twice")
    return ids, flags.astype(np.int8)
