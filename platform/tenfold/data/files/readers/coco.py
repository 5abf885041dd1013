"""COCO 2014: ``annotations/instances_{train,val}2014.json`` and the folders ``train2014``, ``val2014``.

An image is positive for a class if it has an annotation of it, crowd or not; images without an annotation are skipped.
Images are ordered by their id as a string, classes by their position in ``categories``: the published single-positive
draw depends on this order.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from tenfold.data.files.readers.official_lists import (
    Listing,
    OfficialLists,
    check_distinct,
    require_file,
)

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""The 80 classes in the order of ``categories``, for label matrices without names."""


def read_coco(root: Path) -> OfficialLists:
    """Read both lists. Raises ValueError, with the path, for a missing or malformed file."""
    classes, train = _read_list(root, "train2014")
    test_classes, test = _read_list(root, "val2014")
    if classes != test_classes:
        raise ValueError(f"{root}/annotations: the train and val files name different categories")
    return OfficialLists(classes=classes, train=train, test=test)


def _table(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(list(fields.items())))


_SCHEMA = pa.schema(
    {
        "images": _table(id=pa.int64(), file_name=pa.string()),
        "annotations": _table(image_id=pa.int64(), category_id=pa.int64()),
        "categories": _table(id=pa.int64(), name=pa.string()),
    }
)


def _read_list(root: Path, part: str) -> tuple[tuple[str, ...], Listing]:
    path = require_file(root / "annotations" / f"instances_{part}.json", "COCO's instance annotations")
    tables = _read_tables(path)
    classes = tuple(tables["categories"]["name"].to_pylist())
    check_distinct(classes, path, "category")
    columns = _positions(tables["annotations"]["category_id"], tables["categories"]["id"], path, "category id")
    images = _positions(tables["annotations"]["image_id"], tables["images"]["id"], path, "image id")

    used, rows = np.unique(images, return_inverse=True)
    as_strings = np.argsort(tables["images"]["id"].to_numpy()[used].astype(str), kind="stable")
    row_of = np.empty_like(as_strings)
    row_of[as_strings] = np.arange(len(used))
    full = np.zeros((len(used), len(classes)), dtype=np.int8)
    full[row_of[rows], columns] = 1
    names = tables["images"]["file_name"].take(pa.array(used[as_strings])).to_pylist()
    return classes, Listing(folder=root / part, names=names, full=full)


def _read_tables(path: Path) -> dict[str, dict[str, pa.Array]]:
    """Read the required columns of each table. Arrow skips the polygons, which Python's json would parse to lists."""
    try:
        content = pyarrow.json.read_json(
            path,
            read_options=pyarrow.json.ReadOptions(block_size=path.stat().st_size + 1),  # one object: one block
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=_SCHEMA, newlines_in_values=True, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not JSON of COCO's layout: {error}") from error
    if content.num_rows != 1:
        raise ValueError(f"{path}: expected one JSON object, got {content.num_rows}")
    tables: dict[str, dict[str, pa.Array]] = {}
    for field in _SCHEMA:
        entries = content[field.name].combine_chunks().values
        if not len(entries):
            raise ValueError(f"{path}: expected the non-empty lists {', '.join(_SCHEMA.names)}; {field.name} is empty")
        tables[field.name] = {inner.name: entries.field(inner.name) for inner in field.type.value_type}
        for name, column in tables[field.name].items():
            if entries.null_count or column.null_count:
                raise ValueError(f"{path}: an entry of {field.name} has no {name}")
    return tables


def _positions(values: pa.Array, ids: pa.Array, path: Path, what: str) -> np.ndarray:
    """Return the index of each of ``values`` in ``ids``."""
    positions = pc.index_in(values, value_set=ids)
    if positions.null_count:
        stranger = values.filter(pc.is_null(positions))[0]
        raise ValueError(f"{path}: {what} {stranger} of an annotation is not listed in the file")
    return positions.to_numpy()
