"""Disk cache of large arrays: built once, then memory-mapped."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm


def cached_array(
    target: Path,
    shape: tuple[int, ...],
    dtype: type[np.generic],
    fill: Callable[[np.ndarray, int, int], None],
    *,
    chunk: int,
    description: str,
    progress: bool = True,
) -> np.memmap:
    """Return the ``.npy`` file ``target`` as a read-only memory map, building it first if it is missing.

    ``fill(out, start, stop)`` writes rows ``start..stop`` into ``out``, ``chunk`` rows at a time. The file is written
    atomically, and concurrent processes wait for the one that builds it. The name must identify the content.

    Raises:
        OSError: Not enough disk space; raised before anything is computed.
        ValueError: The file holds another dtype or shape.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _build(target, shape, dtype, fill, chunk, description, progress)
    array = np.load(target, mmap_mode="r")
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{target} must hold {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}; delete it")
    return array


def _build(
    target: Path,
    shape: tuple[int, ...],
    dtype: type[np.generic],
    fill: Callable[[np.ndarray, int, int], None],
    chunk: int,
    description: str,
    progress: bool,
) -> None:
    for stale in target.parent.glob(f"{target.name}.*.partial"):  # left by a killed builder: the lock is ours
        stale.unlink()
    descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent)
    try:
        array = np.lib.format.open_memmap(name, mode="w+", dtype=dtype, shape=shape)
        _reserve(descriptor, target)
        with tqdm(total=shape[0], desc=description, disable=not progress) as bar:
            for start in range(0, shape[0], chunk):
                stop = min(start + chunk, shape[0])
                fill(array[start:stop], start, stop)
                bar.update(stop - start)
        array.flush()
        os.fsync(descriptor)
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide a shared cache from other users
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, target: Path) -> None:
    """Allocate the file's bytes now: writing to a memory map on a full disk would kill the process."""
    size = os.fstat(descriptor).st_size
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"no room for a cache of {size / 1e9:.1f} GB at {target} ({error.strerror}); choose another folder",
        ) from error
