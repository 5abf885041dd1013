"""Predictions for all images of a split, distributed over the workers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tenfold.engine.run import Run
from tenfold.types import ImageSource


def predict_images(run: Run, predict: Callable[[Tensor], Tensor], images: ImageSource, batch_size: int = 256) -> Tensor:
    """Compute one float32 row per image, ``(N, K)`` in their order, on the CPU of every worker.

    Args:
        run: Runtime of this worker.
        predict: Maps uint8 images ``(B, S, S, 3)`` on the run's device to rows ``(B, K)`` (logits, embeddings).
        images: Images to predict.
        batch_size: Images per forward pass.
    """
    loader = run.loader(
        lambda rows: {"images": images.read(rows)},
        len(images),
        batch_size,
        shuffle=False,
        prefetch=0 if images.in_memory else 2,
    )
    values, index = [], []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            values.append(predict(run.to_device(batch)["images"]).float().cpu())
            index.append(batch["index"])
    return run.gather_rows(torch.cat(values), torch.cat(index), len(images))


def check_classes(known: Sequence[str], data_name: str, classes: Sequence[str]) -> None:
    """Check that the data has the classes of the model.

    Raises:
        ValueError: The names or their order differ.
    """
    if tuple(known) != tuple(classes):
        raise ValueError(
            f"the model knows {len(known)} classes ({', '.join(known[:4])} ...), "
            f"data {data_name!r} has {len(classes)} ({', '.join(classes[:4])} ...)"
        )
