"""Evaluation of attribution maps on a split: remove-and-classify, pixel average precision, boxes, in one pass.

An image passes through the network once for all maps of its head; its erased copies pass together, for all fractions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.data.localisation import LocalisationSplit
from tenfold.engine.run import Run
from tenfold.methods.calm.data import read_batch
from tenfold.methods.calm.map_metrics import Measured, Tally
from tenfold.methods.calm.network import calm_head
from tenfold.methods.calm.settings import Config, Measure
from tenfold.methods.calm.sources import Source, View, view
from tenfold.metrics.localisation.erasure import random_erase_masks, topk_erase_masks
from tenfold.metrics.localisation.maps import resize_score_map
from tenfold.models.image_classifier import ImageClassifier
from tenfold.types import Batch, check_label_range

PIXELS_AT_ONCE = 1 << 20
"""Upper bound on the pixels of a batch: 256 images of 64x64, 20 of 224x224."""
NEEDS: dict[Measure, str] = {"pixels": "masks", "mass": "masks", "boxes": "boxes"}


def usable_measures(config: Config, split: LocalisationSplit, part: str = "test") -> tuple[Measure, ...]:
    """Return the measures to evaluate on a split, besides accuracy.

    Args:
        config: Settings; ``measures`` None selects all that the split has annotations for.
        split: The images.
        part: Name of the split in error messages.

    Raises:
        ValueError: If a measure is requested that the split has no annotations for.
    """
    there = {"masks": split.masks is not None, "boxes": split.boxes is not None}
    if config.measures is None:
        every: tuple[Measure, ...] = ("remove_and_classify", "pixels", "mass", "boxes")
        return tuple(name for name in every if name not in NEEDS or there[NEEDS[name]])
    for name in config.measures:
        if name in NEEDS and not there[NEEDS[name]]:
            raise ValueError(
                f"measures must not have {name}, as the {part} split has no {NEEDS[name]}; "
                f"leave it out, or choose data that have them"
            )
    return tuple(name for name in config.measures if name != "cues")


def check_cues(config: Config, there: bool) -> None:
    """Check that the data have cue annotations if cue localisation is requested.

    Raises:
        ValueError: If they have none.
    """
    if "cues" in (config.measures or ()) and not there:
        raise ValueError("measures must not have cues, as the data have no annotated parts; choose CUB for it")


def measure_maps(
    run: Run,
    model: ImageClassifier,
    split: LocalisationSplit,
    sources: Mapping[str, Source],
    config: Config,
    *,
    rows: np.ndarray | None = None,
    measures: Sequence[Measure] | None = None,
) -> dict[str, Measured]:
    """Evaluate maps of the ground-truth class, distributed over all workers.

    Args:
        run: Execution context; its seed is that of random erasing.
        model: A network of ``calm_classifier``.
        split: Images, labels and annotations.
        sources: Sources of maps, by name.
        config: Fractions, thresholds, normalisation.
        rows: Rows of the images to use; None: all.
        measures: Measures to evaluate; None: ``usable_measures``.

    Returns:
        Results of each source, the same on every worker.

    Raises:
        ValueError: If a measure lacks its annotations, a label is not a class of the model, or there are no images.
    """
    chosen = np.arange(len(split)) if rows is None else np.asarray(rows)
    wanted = usable_measures(config, split) if measures is None else tuple(measures)
    _check_classes(split.labels[chosen], model)
    if not wanted:
        return {name: Measured(num_pictures=len(chosen)) for name in sources}
    with_masks = any(NEEDS.get(name) == "masks" for name in wanted)
    with_boxes = "boxes" in wanted
    model = model.to(run.device).eval()

    def read(at: np.ndarray) -> Batch:
        batch = read_batch(split, chosen[at])
        return {**batch, "masks": torch.from_numpy(split.read_masks(chosen[at]))} if with_masks else batch

    size = model.preprocessing.image_size
    images = split.images
    loader = run.loader(
        read,
        len(chosen),
        max(1, min(256, PIXELS_AT_ONCE // size**2)),
        shuffle=False,
        prefetch=0 if images.in_memory else 2,
    )
    tallies = {name: Tally(config, wanted) for name in sources}
    before = 0
    with torch.no_grad():
        for batch in loader.epoch(0):
            at = batch.pop("index").numpy()
            # The last images of some workers are repeated as padding: count each once.
            fresh = int((run.rank + run.world_size * (before + np.arange(len(at))) < len(chosen)).sum())
            before += len(at)
            if not fresh:
                continue
            batch = run.to_device({name: value[:fresh] for name, value in batch.items()})
            numbers = chosen[at[:fresh]]
            seen = view(model, batch["images"], batch["labels"], _seed(run.seed, int(numbers[0])))
            boxes = [split.boxes[number] for number in numbers] if with_boxes and split.boxes is not None else None
            erasing = _Erasing(model, config, seen, run.seed, numbers) if "remove_and_classify" in wanted else None
            for name, source in sources.items():
                maps = resize_score_map(source(seen).float(), size)
                still_right = erasing.still_right(maps) if erasing is not None else None
                tallies[name].add(maps, still_right, batch.get("masks"), boxes)
    return {name: tally.result(run, with_truth=(with_masks, with_boxes)) for name, tally in tallies.items()}


class _Erasing:
    """Predictions on erased copies of a batch; those with random erasing are shared by all sources."""

    def __init__(self, model: ImageClassifier, config: Config, seen: View, seed: int, numbers: np.ndarray) -> None:
        self._model, self._seen = model, seen
        self._fractions = config.fractions
        pixels = seen.pixels
        self._colour = pixels.mean((2, 3), keepdim=True) if config.erase_to == "picture_mean" else pixels.new_zeros(())
        # One random stream per image, so that draws do not depend on how images are distributed over workers.
        masks = [
            random_erase_masks(
                (1, 1, *pixels.shape[2:]), self._fractions, torch.Generator().manual_seed(_seed(seed, int(number)))
            )
            for number in numbers
        ]
        self._random = self._right(torch.cat(masks, dim=1).to(pixels.device))

    def still_right(self, maps: Tensor) -> Tensor:
        """Return correctness, bool ``(2, K, B)``: top pixels of maps ``(B, S, S)`` erased, and random pixels erased."""
        return torch.stack([self._right(topk_erase_masks(maps[:, None], self._fractions)), self._random])

    def _right(self, masks: Tensor) -> Tensor:
        """Return correctness ``(K, B)`` under masks ``(K, B, 1, S, S)``, in one forward pass."""
        erased = torch.where(masks > 0, self._seen.pixels, self._colour)
        logits = self._model.head(self._model.backbone(erased.flatten(0, 1)))
        return logits.argmax(1).view(masks.shape[:2]) == self._seen.labels


def _check_classes(labels: np.ndarray, model: ImageClassifier) -> None:
    num_classes = calm_head(model).conv_last.out_channels
    if not len(labels):
        raise ValueError("rows must have at least one image to evaluate maps on, got none")
    check_label_range(labels, num_classes)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
