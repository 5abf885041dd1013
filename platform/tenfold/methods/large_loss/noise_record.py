"""The label-noise record on disk: a folder of Parquet files that pandas, DuckDB or Spark open as they are.

- ``losses/epoch=003/rank=0.parquet``: ``sample`` int32, ``loss`` a list of K float32, the unflipped loss of every entry
  at the moment of its step;
- ``treated/epoch=003/rank=0.parquet``: ``sample`` int32, ``class`` int16, ``class_name``, ``loss`` float32, ``action``
  (rejected, corrected, permanently corrected), ``true`` int8 or null;
- ``labels.parquet``: ``sample``, ``observed`` and, if known, ``true`` (K int8 each; -1 in ``true``: nobody looked);
- ``manifest.json``: which run, settings and data these are.

Shapes: N samples of the training set, K classes. ``sample`` is a row of the training set. Every file appears whole or
not at all.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tenfold.files import write_atomically

_CLASSES_KEY = b"classes"
_PARTITIONING = ds.partitioning(pa.schema([("epoch", pa.int16())]), flavor="hive")


def write_losses(
    folder: Path, epoch: int, rank: int, classes: Sequence[str], sample: np.ndarray, losses: np.ndarray
) -> None:
    """One worker's losses ``(n, K)`` of an epoch, of the samples ``(n,)``."""
    table = pa.table({"sample": pa.array(sample, pa.int32()), "loss": _lists(losses, pa.float32())})
    _write_table(folder / "losses" / f"epoch={epoch:03d}" / f"rank={rank}.parquet", table, classes)


def write_treated(
    folder: Path,
    epoch: int,
    rank: int,
    classes: Sequence[str],
    *,
    sample: np.ndarray,
    class_index: np.ndarray,
    loss: np.ndarray,
    action: str | None,
    true: np.ndarray,
) -> None:
    """The entries that one worker treated in an epoch, each array ``(m,)``; ``true`` is -1 where unknown."""
    names = pa.DictionaryArray.from_arrays(pa.array(class_index, pa.int16()), pa.array(classes, pa.string()))
    columns = {
        "sample": pa.array(sample, pa.int32()),
        "class": pa.array(class_index, pa.int16()),
        "class_name": names,
        "loss": pa.array(loss, pa.float32()),
        "action": pa.array([action] * len(sample), pa.string()),
        "true": pa.array(true, pa.int8(), mask=true < 0),
    }
    _write_table(folder / "treated" / f"epoch={epoch:03d}" / f"rank={rank}.parquet", pa.table(columns), classes)


def write_labels(folder: Path, classes: Sequence[str], observed: np.ndarray, true: np.ndarray | None) -> None:
    """The label matrices ``(N, K)`` that the training began with, once."""
    path = folder / "labels.parquet"
    if path.exists():
        return
    columns = {"sample": pa.array(np.arange(len(observed)), pa.int32()), "observed": _lists(observed, pa.int8())}
    if true is not None:
        columns["true"] = _lists(true, pa.int8())
    _write_table(path, pa.table(columns), classes)


def write_manifest(
    folder: Path | str,
    *,
    run_id: str,
    seed: int,
    scheme: str,
    delta_rel: float,
    config_digest: str,
    data_fingerprint: str,
) -> None:
    """Say, in ``manifest.json``, which run the record belongs to, so that it can be found and made again.

    Args:
        folder: The record.
        run_id: Of the tracking server.
        seed: Of the training.
        scheme: What was done to large losses.
        delta_rel: Increase per epoch, a fraction.
        config_digest: Digest of the composed settings.
        data_fingerprint: Digest of the training data.
    """
    manifest = {
        "format": 1,
        "run_id": run_id,
        "seed": seed,
        "scheme": scheme,
        "delta_rel": delta_rel,
        "config_digest": config_digest,
        "data_fingerprint": data_fingerprint,
    }
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(Path(folder) / "manifest.json", lambda path: path.write_text(text, encoding="utf-8"))


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """What ``write_manifest`` wrote."""
    manifest: dict[str, Any] = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def read_treated(folder: Path | str) -> pd.DataFrame:
    """Every treated entry: columns epoch, sample, class, class_name, loss, action, true; sorted by the first three.

    Raises:
        FileNotFoundError: If the folder holds no record.
    """
    table = _dataset(folder, "treated").to_table()
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get)
    columns = ["epoch", "sample", "class", "class_name", "loss", "action", "true"]
    keys = columns[:3]
    # A sample may reach two workers: the sampler pads an epoch to a multiple of their number.
    return frame[columns].sort_values(keys, kind="stable").drop_duplicates(keys, ignore_index=True)


def read_losses(folder: Path | str, epochs: Sequence[int] | None = None) -> pd.DataFrame:
    """The loss of every entry: one row for each (epoch, sample), which are the index, and one column for each class.

    Args:
        folder: The record.
        epochs: Which to read; all of them if None (4 N K bytes each).

    Raises:
        FileNotFoundError: If the folder holds no losses (mode ``treated`` keeps none), or not of an epoch asked for.
    """
    classes: list[str] = json.loads(_dataset(folder, "losses").schema.metadata[_CLASSES_KEY])
    frames = []
    for epoch, sample, losses in epoch_losses(folder, epochs):
        index = pd.MultiIndex.from_product([[epoch], sample], names=["epoch", "sample"])
        frames.append(pd.DataFrame(losses, index=index, columns=classes))
    return pd.concat(frames)


def epoch_losses(
    folder: Path | str, epochs: Sequence[int] | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Epoch, its samples ``(n,)`` in ascending order and their losses ``(n, K)``; one epoch in memory at a time.

    Arguments and errors as in ``read_losses``.
    """
    dataset = _dataset(folder, "losses")
    found = recorded_epochs(folder, "losses")
    wanted = found if epochs is None else sorted(set(epochs))
    if not set(wanted) <= set(found):
        raise FileNotFoundError(f"no losses of epochs {sorted(set(wanted) - set(found))} at {folder}; it has {found}")
    for epoch in wanted:
        table = dataset.to_table(filter=ds.field("epoch") == epoch)
        sample = table.column("sample").to_numpy()
        rows = last_of_each(sample)
        yield epoch, sample[rows], _matrix(table, "loss")[rows]


def read_labels(folder: Path | str) -> tuple[np.ndarray, np.ndarray | None]:
    """Observed labels ``(N, K)`` that the training began with, and the truth ``(N, K)``, None if unknown.

    Raises:
        FileNotFoundError: If the record holds no labels.
    """
    path = Path(folder) / "labels.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"no labels of the record at {path}: the first worker writes them with its first epoch")
    table = pq.read_table(path)
    return _matrix(table, "observed"), _matrix(table, "true") if "true" in table.column_names else None


def recorded_epochs(folder: Path | str, part: str) -> list[int]:
    """Epochs of which ``part`` (losses or treated) has files, ascending."""
    return sorted({int(path.parent.name.removeprefix("epoch=")) for path in Path(folder).glob(f"{part}/*/*.parquet")})


def last_of_each(keys: np.ndarray) -> np.ndarray:
    """Places of the last occurrence of every key, in ascending order of the keys."""
    _, from_the_end = np.unique(keys[::-1], return_index=True)
    places: np.ndarray = len(keys) - 1 - from_the_end
    return places


def _lists(matrix: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """Rows of ``(n, K)`` as a column of lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), dtype), matrix.shape[1])


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    """The inverse of ``_lists``."""
    num_classes = table.schema.field(column).type.list_size
    chunks = [chunk.flatten().to_numpy() for chunk in table.column(column).chunks]
    dtype = table.schema.field(column).type.value_type.to_pandas_dtype()
    values: np.ndarray = np.concatenate([np.zeros(0, dtype), *chunks]).reshape(-1, num_classes)
    return values


def _dataset(folder: Path | str, part: str) -> ds.Dataset:
    path = Path(folder) / part
    if not recorded_epochs(folder, part):
        raise FileNotFoundError(f"no label-noise record at {path}: was the observatory on, and an epoch finished?")
    return ds.dataset(str(path), format="parquet", partitioning=_PARTITIONING)


def _write_table(path: Path, table: pa.Table, classes: Sequence[str]) -> None:
    table = table.replace_schema_metadata({_CLASSES_KEY: json.dumps(list(classes)).encode()})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
