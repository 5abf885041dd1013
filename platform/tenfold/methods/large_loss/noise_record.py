"""On-disk format of the label-noise record: a folder of Parquet files that pandas, DuckDB or Spark can read.

- ``losses/epoch=003/rank=0.parquet``: ``sample`` int32, ``loss`` a list of K float32, the uncorrected loss of every
  entry at its training step;
- ``treated/epoch=003/rank=0.parquet``: ``sample`` int32, ``class`` int16, ``class_name``, ``loss`` float32, ``action``
  (rejected, corrected, permanently corrected), ``true`` int8 or null;
- ``labels.parquet``: ``sample``, ``observed`` and, if known, ``true`` (K int8 each; -1 in ``true``: not annotated);
- ``manifest.json``: run, settings and data of the record.

Shapes: N samples of the training set, K classes. ``sample`` is a row of the training set. Every file is written
atomically.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    """Write one worker's losses ``(n, K)`` of an epoch for the samples ``(n,)``."""
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
    """Write the entries that one worker treated in an epoch, each array ``(m,)``; ``true`` is -1 where unknown."""
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
    """Write the initial label matrices ``(N, K)``, unless they are already there."""
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
    """Write ``manifest.json``, which identifies the run of the record so that it can be found and reproduced.

    Args:
        folder: Folder of the record.
        run_id: Run id on the tracking server.
        seed: Seed of the training.
        scheme: Treatment of large losses.
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


def read_treated(folder: Path | str) -> pd.DataFrame:
    """Read treated entries: columns epoch, sample, class, class_name, loss, action, true; sorted by the first three.

    Raises:
        FileNotFoundError: If the folder holds no record.
    """
    table = _dataset(folder, "treated").to_table()
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get)
    columns = ["epoch", "sample", "class", "class_name", "loss", "action", "true"]
    keys = columns[:3]
    # A sample may be seen by two workers: the sampler pads an epoch to a multiple of the number of workers.
    return frame[columns].sort_values(keys, kind="stable").drop_duplicates(keys, ignore_index=True)


def epoch_losses(folder: Path | str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each epoch, its samples ``(n,)`` in ascending order and their losses ``(n, K)``.

    One epoch is in memory at a time.

    Raises:
        FileNotFoundError: If the folder holds no losses (mode ``treated`` keeps none).
    """
    dataset = _dataset(folder, "losses")
    for epoch in recorded_epochs(folder, "losses"):
        table = dataset.to_table(filter=ds.field("epoch") == epoch)
        sample = table.column("sample").to_numpy()
        rows = last_of_each(sample)
        yield epoch, sample[rows], _matrix(table, "loss")[rows]


def read_labels(folder: Path | str) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the initial observed labels ``(N, K)`` and the true labels ``(N, K)``, None if unknown.

    Raises:
        FileNotFoundError: If the record holds no labels.
    """
    path = Path(folder) / "labels.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"there are no labels at {path}; the first worker writes them with its first epoch")
    table = pq.read_table(path)
    return _matrix(table, "observed"), _matrix(table, "true") if "true" in table.column_names else None


def recorded_epochs(folder: Path | str, part: str) -> list[int]:
    """Return the epochs for which ``part`` (losses or treated) has files, ascending."""
    return sorted({int(path.parent.name.removeprefix("epoch=")) for path in Path(folder).glob(f"{part}/*/*.parquet")})


def last_of_each(keys: np.ndarray) -> np.ndarray:
    """Return the position of the last occurrence of every key, in ascending order of the keys."""
    _, from_the_end = np.unique(keys[::-1], return_index=True)
    places: np.ndarray = len(keys) - 1 - from_the_end
    return places


def _lists(matrix: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """Convert the rows of ``(n, K)`` to a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), dtype), matrix.shape[1])


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    """Invert ``_lists``."""
    num_classes = table.schema.field(column).type.list_size
    chunks = [chunk.flatten().to_numpy() for chunk in table.column(column).chunks]
    dtype = table.schema.field(column).type.value_type.to_pandas_dtype()
    values: np.ndarray = np.concatenate([np.zeros(0, dtype), *chunks]).reshape(-1, num_classes)
    return values


def _dataset(folder: Path | str, part: str) -> ds.Dataset:
    path = Path(folder) / part
    if not recorded_epochs(folder, part):
        raise FileNotFoundError(f"there is no label-noise record at {path}; train an epoch with method.observatory on")
    return ds.dataset(str(path), format="parquet", partitioning=_PARTITIONING)


def _write_table(path: Path, table: pa.Table, classes: Sequence[str]) -> None:
    table = table.replace_schema_metadata({_CLASSES_KEY: json.dumps(list(classes)).encode()})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
