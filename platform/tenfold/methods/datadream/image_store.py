"""Synthetic images on disk: a store that grows, in which each image has its place and is generated once.

A store is named by a hash of all that determines its images (generator, adapter, guidance, prompts, seed, block size)
but not by their number. Images ``0 .. M-1`` of a class are in it for the largest M requested so far, so a request for
200 after one for 50 generates the missing 150. They are generated in blocks of fixed size, since the last bits of what
a GPU computes depend on the rest of the batch: a block is complete when all of its files exist; otherwise the whole
block is generated again, to the same bytes. Nothing else marks what is complete.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tenfold.data.images import FileImages
from tenfold.engine.run import Run
from tenfold.files import write_atomically
from tenfold.hashing import content_hash
from tenfold.types import Preprocessing


class ImageStore:
    """Images as ``<shared>/pools/<digest>/train/<class number>/<image number>.png``.

    Folders carry the number of a class, since its name may hold slashes; ``prompts.json`` maps numbers to names.

    Args:
        run: The machine.
        key: Everything that the images depend on; JSON-like.
        block_size: Images of a class that are generated together, at least 1.
    """

    def __init__(self, run: Run, key: Mapping[str, Any], block_size: int) -> None:
        self.block_size = block_size
        self.digest = content_hash({"key": dict(key), "block_size": block_size})
        self.name = f"datadream-{self.digest[:16]}"
        self._storage = run.shared / f"pools/{self.name}"
        self.folder = self._storage.local_path() if self._storage.is_local else run.scratch / self.name

    def path(self, label: int, index: int) -> Path:
        """File of an image; it exists once the store is filled that far (with an object store, after ``fetch``)."""
        return self.folder / _name(label, index)

    def paths(self, label: int, count: int) -> list[Path]:
        """Files of the first ``count`` images of a class."""
        return [self.path(label, index) for index in range(count)]

    def missing(self, run: Run, labels: Sequence[int], count: int) -> list[tuple[int, int]]:
        """Incomplete blocks ``(class, number)`` among those that hold images below ``count``.

        Rank 0 lists the files, so that all workers divide the same list.
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
        """Numbers of the images of a block."""
        return range(block * self.block_size, (block + 1) * self.block_size)

    def write(self, label: int, block: int, images: np.ndarray) -> None:
        """Write a block, uint8 ``(block_size, S, S, 3)``, each file atomically."""
        for index, image in zip(self.indices(block), images, strict=True):
            content = io.BytesIO()
            Image.fromarray(image).save(content, format="PNG")
            write_atomically(self.path(label, index), content.getvalue())
            self._send(_name(label, index))

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write ``prompts.json`` beside the images."""
        write_atomically(self.folder / "prompts.json", json.dumps(about, indent=2, ensure_ascii=False).encode())
        self._send("prompts.json")

    def fetch(self, labels: Sequence[int], count: int) -> None:
        """Download the first ``count`` images of some classes from an object store; a no-op on a local disk."""
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


def image_source(paths: Sequence[Path], preprocessing: Preprocessing) -> FileImages:
    """Image files, resized to the input of a network."""
    way = preprocessing
    return FileImages(paths, way.image_size, resize=way.resize, interpolation=way.interpolation)


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read image files at their own size, uint8 ``(H, W, 3)`` each."""
    return FileImages(paths, 1).read_raw(np.arange(len(paths))) if paths else []


def _name(label: int, index: int) -> str:
    return f"train/{label:05d}/{index:06d}.png"
