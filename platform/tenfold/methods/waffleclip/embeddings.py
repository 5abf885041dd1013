"""Pictures and prompts through CLIP once, in pieces that any worker can make and nobody makes twice.

A piece holds the same rows in the same forward passes however many workers there are, so embeddings agree bit for bit;
and as each piece is a file that appears whole, work that was killed goes on with the next one.
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
"""Rows of a forward pass; fixed, since the last bits of an embedding depend on it."""
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
    """Embeddings of all pictures of a part, made once for every run that uses the same pictures and the same CLIP.

    Args:
        run: The machine.
        embed: uint8 pictures ``(B, S, S, 3)`` to unit rows ``(B, D)``.
        split: The pictures.
        part: Their name in the data set: ``val``, ``test``.
        fingerprint: Of the data set.
        clip_fingerprint: Of the CLIP, which fixes the resizing too.

    Returns:
        float32 ``(N, D)`` on the CPU of every worker.
    """

    def rows(start: int, stop: int) -> Tensor:
        # A shard of its own: pieces, not single pictures, are dealt out to the workers.
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
    """Embeddings of distinct prompts, float32 ``(T, D)`` on the CPU of every worker; each goes through CLIP once."""
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
