"""CLIP embeddings of images and prompts, computed once, in pieces that are divided among the workers.

A piece holds the same rows in the same forward passes for any number of workers, so embeddings agree bit for bit. Each
piece is a file that is written atomically, so interrupted work resumes with the next piece.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_bytes
from torch import Tensor

from tenfold import __version__
from tenfold.data.classification import ClassificationSplit
from tenfold.engine.loader import Loader
from tenfold.engine.run import Run
from tenfold.files import write_atomically
from tenfold.hashing import content_hash

BATCH = 256
"""Rows of a forward pass, fixed because the last bits of an embedding depend on it."""
PIECE = 2 * BATCH
"""Rows of a file."""
NAME = "embeddings"


def embed_split(
    run: Run,
    embed: Callable[[Tensor], Tensor],
    split: ClassificationSplit,
    part: str,
    fingerprint: str,
    clip_fingerprint: str,
) -> Tensor:
    """Embed all images of a split, once for all runs with the same images and the same CLIP.

    Args:
        run: The machine.
        embed: Function from uint8 images ``(B, S, S, 3)`` to unit rows ``(B, D)``.
        split: The images.
        part: Name of the split: ``val``, ``test``.
        fingerprint: Fingerprint of the data set.
        clip_fingerprint: Fingerprint of the CLIP, which determines the resizing, too.

    Returns:
        float32 ``(N, D)`` on the CPU of every worker.
    """

    def rows(start: int, stop: int) -> Tensor:
        # A loader without shards: pieces, not single images, are divided among the workers.
        loader = Loader(
            lambda numbers: {"images": split.images.read(numbers + start)},
            stop - start,
            BATCH,
            shuffle=False,
            prefetch=0 if split.images.in_memory else 2,
        )
        return torch.cat([embed(batch["images"]).float().cpu() for batch in loader.epoch(0)])

    key = {"data": fingerprint, "part": part, "num": len(split), "clip": clip_fingerprint, "version": __version__}
    return _in_pieces(run, "clip_images", key, len(split), rows, f"embedding {part}")


def embed_prompts(
    run: Run, embed: Callable[[Sequence[str]], Tensor], prompts: Sequence[str], clip_fingerprint: str
) -> Tensor:
    """Embed distinct prompts, once each; float32 ``(T, D)`` on the CPU of every worker."""
    key = {"prompts": content_hash(list(prompts)), "clip": clip_fingerprint, "version": __version__}
    return _in_pieces(
        run,
        "clip_prompts",
        key,
        len(prompts),
        lambda start, stop: torch.cat([embed(prompts[at : min(at + BATCH, stop)]) for at in range(start, stop, BATCH)]),
        "encoding prompts",
    )


def _in_pieces(
    run: Run, name: str, key: dict, num_rows: int, rows: Callable[[int, int], Tensor], description: str
) -> Tensor:
    def work(folder: Path) -> None:
        def piece(start: int) -> int:
            path = folder / f"rows-{start:09d}.safetensors"
            if not path.exists():
                made = rows(start, min(start + PIECE, num_rows)).float().cpu().contiguous()
                write_atomically(path, save_bytes({NAME: made}))
            return start

        run.map(piece, range(0, num_rows, PIECE), description)

    folder = run.stage(name, key, work)
    return torch.cat([load_file(path)[NAME] for path in sorted(folder.glob("rows-*.safetensors"))])
