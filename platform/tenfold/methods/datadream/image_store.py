"""Synthetic pictures on disk: a pool that grows, where each picture has its place and is made once.

A pool is named by a hash of all that decides what its pictures look like (generator, adapter, guidance, prompts, seed,
block size), but not by how many there are. Pictures ``0 .. M-1`` of a class are in it for any M that was ever asked
for, so asking for 50 and then for 200 makes the missing 150. They are made in blocks of fixed size, since what a
GPU computes depends in its last bits on what else is in the batch: a block is there when all of its files are, else it
is made anew as a whole, with the same bytes. Nothing else marks what is complete.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tenfold.engine.run import Run
from tenfold.files import write_atomically
from tenfold.hashing import content_hash


class ImageStore:
    """``<shared>/pools/<digest>/train/<class number>/<picture number>.png``.

    Classes go by number, since their names may hold slashes; ``prompts.json`` says which is which.

    Args:
        run: The machine.
        key: All that the pictures depend on; JSON-like.
        block_size: Pictures of a class that are made together, at least 1.
    """

    def __init__(self, run: Run, key: Mapping[str, Any], block_size: int) -> None:
        self.block_size = block_size
        self.digest = content_hash({"key": dict(key), "block_size": block_size})
        self.name = f"datadream-{self.digest[:16]}"
        self._storage = run.shared / f"pools/{self.name}"
        self.folder = self._storage.local_path() if self._storage.is_local else run.scratch / self.name

    def path(self, label: int, index: int) -> Path:
        """File of a picture; it is here once the pool was filled that far (``fetch``, in an object store)."""
        return self.folder / _name(label, index)

    def paths(self, label: int, count: int) -> list[Path]:
        """Files of the first ``count`` pictures of a class."""
        return [self.path(label, index) for index in range(count)]

    def missing(self, run: Run, labels: Sequence[int], count: int) -> list[tuple[int, int]]:
        """Blocks ``(class, number)`` that are not whole yet, of those with pictures below ``count``.

        Rank 0 looks, so that all workers share out the same list.
        """
        blocks = range(-(-count // self.block_size))

        def look() -> list[tuple[int, int]]:
            there = self._list(labels)
            return [
                (label, block)
                for label in labels
                for block in blocks
                if not all(_name(label, index) in there for index in self.indices(block))
            ]

        return run.share(look() if run.is_main else [])

    def indices(self, block: int) -> range:
        """Numbers of the pictures of a block."""
        return range(block * self.block_size, (block + 1) * self.block_size)

    def write(self, label: int, block: int, pictures: np.ndarray) -> None:
        """Keep a block, uint8 ``(block_size, S, S, 3)``; each file appears whole."""
        for index, picture in zip(self.indices(block), pictures, strict=True):
            content = io.BytesIO()
            Image.fromarray(picture).save(content, format="PNG")
            write_atomically(self.path(label, index), content.getvalue())
            self._send(_name(label, index))

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write ``prompts.json`` beside the pictures."""
        write_atomically(self.folder / "prompts.json", json.dumps(about, indent=2, ensure_ascii=False).encode())
        self._send("prompts.json")

    def fetch(self, labels: Sequence[int], count: int) -> None:
        """Bring the first ``count`` pictures of classes here from an object store; nothing to do on a disk."""
        if self._storage.is_local:
            return
        for label in labels:
            for index in range(count):
                path = self.path(label, index)
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._storage.fs.get_file(self._storage.path(_name(label, index)), str(path))

    def _send(self, name: str) -> None:
        if self._storage.is_local:
            return
        target = self._storage.path(name)
        self._storage.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self._storage.fs.put_file(str(self.folder / name), target)

    def _list(self, labels: Sequence[int]) -> set[str]:
        if self._storage.is_local:
            folders = [(self.folder / _name(label, 0)).parent for label in labels]
            files = (entry for folder in folders if folder.is_dir() for entry in folder.iterdir())
            return {file.relative_to(self.folder).as_posix() for file in files}
        if not self._storage.exists():
            return set()
        self._storage.fs.invalidate_cache()
        root = f"{self._storage.root.rstrip('/')}/"
        return {str(path).removeprefix(root) for path in self._storage.fs.find(self._storage.root)}


def _name(label: int, index: int) -> str:
    return f"train/{label:05d}/{index:06d}.png"
