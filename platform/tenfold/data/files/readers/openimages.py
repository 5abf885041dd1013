"""OpenImages V3: ``2017_11/{train,validation,test}/annotations-human.csv`` and ``images_{train,val,test}``.

Only human-verified labels count: Confidence 1 is an observed positive, 0 an observed negative, and all other classes
of an image are unobserved. Where verifiers disagree the positive one wins. The classes are those of
``classes-trainable.txt`` (5,000 lines, one label id each) or of a custom list; other labels are ignored, and images
without any of these labels are skipped. Images are ordered by id.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from scipy.sparse import csr_array

from tenfold.data.files.readers.official_lists import Listing, OfficialLists, check_distinct, read_lines, require_file

_PARTS = {"train": "images_train", "validation": "images_val", "test": "images_test"}


def read_openimages(root: Path, classes_file: Path | None = None) -> OfficialLists:
    """Read the three lists. Raises ValueError, with the path, for a missing or malformed file."""
    path, label_ids = read_openimages_labels(root, classes_file)
    check_distinct(label_ids, path, "label")
    train, val, test = (_read_list(root, part, label_ids) for part in _PARTS)
    return OfficialLists(classes=_names(root, label_ids), train=train, val=val, test=test)


def read_openimages_labels(root: Path, classes_file: Path | None = None) -> tuple[Path, tuple[str, ...]]:
    """Return the path of the list of classes, and its label ids in order."""
    places = (
        [classes_file] if classes_file else [root / "classes-trainable.txt", root / "2017_11/classes-trainable.txt"]
    )
    path = next((place for place in places if place.is_file()), places[0])
    return path, tuple(line.strip() for line in read_lines(path, "OpenImages' classes, one label id a line"))


def _names(root: Path, label_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of label ids from ``class-descriptions.csv``; an id without a unique name is its own name."""
    path = next(
        (p for p in (root / "class-descriptions.csv", root / "2017_11/class-descriptions.csv") if p.is_file()), None
    )
    if path is None:
        return label_ids
    options = csv.ReadOptions(column_names=["label", "words"])
    types = csv.ConvertOptions(column_types={"label": pa.string(), "words": pa.string()})
    try:
        table = csv.read_csv(path, read_options=options, convert_options=types)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: expected lines 'label_id,words' ({error})") from error
    words = dict(zip(table["label"].to_pylist(), table["words"].to_pylist(), strict=True))
    names = [words.get(label_id, label_id) for label_id in label_ids]
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return tuple(label_id if name in repeated else name for name, label_id in zip(names, label_ids, strict=True))


def _read_list(root: Path, part: str, label_ids: tuple[str, ...]) -> Listing:
    path = root / "2017_11" / part / "annotations-human.csv"
    require_file(path, "OpenImages' human-verified labels, columns ImageID, LabelName, Confidence")
    images, labels, positive = _read_columns(path)
    column_of = pc.fill_null(pc.index_in(labels.dictionary, value_set=pa.array(label_ids)), -1).to_numpy()
    columns = column_of[labels.indices.to_numpy()]
    keep = columns >= 0
    if not keep.any():
        raise ValueError(f"{path}: none of its labels is among the {len(label_ids)} classes")
    codes = images.indices.to_numpy()[keep]

    used = np.zeros(len(images.dictionary), dtype=bool)
    used[codes] = True
    by_id = pc.sort_indices(images.dictionary).to_numpy()
    by_id = by_id[used[by_id]]
    row_of = np.empty(len(used), dtype=np.int64)
    row_of[by_id] = np.arange(len(by_id))
    observed = _scatter(row_of[codes], columns[keep], positive[keep], (len(by_id), len(label_ids)))
    names = pc.binary_join_element_wise(images.dictionary.take(pa.array(by_id)), ".jpg", "").to_pylist()
    return Listing(folder=root / _PARTS[part], names=names, full=None, observed=observed)


def _read_columns(path: Path) -> tuple[pa.DictionaryArray, pa.DictionaryArray, np.ndarray]:
    coded = pa.dictionary(pa.int32(), pa.string())
    types = {"ImageID": coded, "LabelName": coded, "Confidence": pa.float32()}
    try:
        table = csv.read_csv(path, convert_options=csv.ConvertOptions(include_columns=list(types), column_types=types))
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: expected a CSV with columns ImageID, LabelName, Confidence ({error})") from error
    if table.num_rows == 0:
        raise ValueError(f"{path} holds no annotation")
    confidence = table["Confidence"].to_numpy()
    wrong = np.flatnonzero((confidence != 0) & (confidence != 1))  # an empty field is NaN here
    if wrong.size:
        raise ValueError(f"{path}, line {wrong[0] + 2}: Confidence must be 0 or 1, got {confidence[wrong[0]]}")
    images, labels = (table[name].unify_dictionaries().combine_chunks() for name in ("ImageID", "LabelName"))
    return images, labels, confidence == 1


def _scatter(rows: np.ndarray, columns: np.ndarray, positive: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Build sparse int8 rows of +1 and -1; positive wins where an entry is repeated."""
    keys = rows * shape[1] + columns
    order = np.argsort(keys, kind="stable")
    keys, starts = np.unique(keys[order], return_index=True)
    data = np.where(np.maximum.reduceat(positive[order], starts), np.int8(1), np.int8(-1))
    pointers = np.searchsorted(keys, np.arange(shape[0] + 1) * shape[1])
    return csr_array((data, keys % shape[1], pointers), shape=shape)
