"""What people look at after a training: samples before and after, nearness to real pictures, curves, confusions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.torch import load_file

from tenfold.data.classification import ClassificationData
from tenfold.data.images import SubsetImages, shared_tensor
from tenfold.engine.recipe import Trained
from tenfold.engine.run import Run
from tenfold.engine.settings import JobConfig
from tenfold.figures.history import figure_history
from tenfold.figures.labels import figure_confusion
from tenfold.methods.datadream.adapt import Adapters
from tenfold.methods.datadream.few_shot import FewShotData
from tenfold.methods.datadream.figures import (
    class_means,
    feature_distances,
    figure_distances,
    figure_samples,
    file_source,
    read_pictures,
)
from tenfold.methods.datadream.generate import PREVIEW_BLOCK, preview
from tenfold.methods.datadream.image_store import ImageStore
from tenfold.methods.datadream.settings import ADAPTED, Config
from tenfold.models.clip import Clip

SHOWN_CLASSES = 10
MOST_CONFUSED = 100
"""Classes above which a matrix of confusions shows nothing."""
BEFORE, AFTER = "generator as it is", "adapted"


def log_pictures(
    job: JobConfig,
    run: Run,
    data: ClassificationData,
    few_shot: FewShotData,
    clip: Clip,
    adapters: Adapters,
    store: ImageStore | None,
    trained: Trained,
) -> None:
    """Draw and log; every worker must call it, since features are computed by all. Without a record nothing is done.

    Args:
        job: The settings.
        run: The machine.
        data: Where real pictures to compare with come from: the validation part, else the test part.
        few_shot: Classes and shots.
        clip: As it is, for features.
        adapters: From stage A.
        store: From stage B; None without synthetic pictures.
        trained: Of stage C.
    """
    config: Config = job.method
    if not config.figures or run.share(run.recorder is None):
        return
    results = trained.results
    if results["history"]:
        names = ["train/loss", "val/accuracy"]
        run.log_figure("curves.png", figure_history(results["history"], names, f"{config.scheme} on {data.name}"))
    if len(data.classes) <= MOST_CONFUSED:
        logits = load_file(trained.folder / "logits.safetensors")["test"]
        title = f"{config.scheme} on {data.name}, test {results['metrics']['test/accuracy']:.1f} %"
        run.log_figure("confusion.png", figure_confusion(logits, shared_tensor(data.test.labels), data.classes, title))
    if store is None:
        return
    labels = range(min(SHOWN_CLASSES, len(data.classes)))
    count = min(PREVIEW_BLOCK, config.images_per_class)
    stores = {AFTER if config.scheme in ADAPTED else config.scheme: store}
    if config.scheme in ADAPTED:
        stores = {BEFORE: preview(job, run, few_shot, labels), **stores}
    log_samples(run, data, few_shot, stores, labels, count, config.scheme)
    distances = store_distances(run, data, clip, stores, labels, count)
    names_shown = [data.classes[label] for label in labels]
    title = f"CLIP features of {count} synthetic pictures a class, against real ones"
    run.log_figure("feature_distance.png", figure_distances(distances, names_shown, title))
    run.log_metrics({f"features/{_word(name)}": float(np.nanmean(each)) for name, each in distances.items()}, 0)


def log_samples(
    run: Run,
    data: ClassificationData,
    few_shot: FewShotData,
    stores: dict[str, ImageStore],
    labels: Sequence[int],
    count: int,
    title: str,
) -> None:
    """The contact sheet: shots beside synthetic pictures, the same noise in each store."""
    if not run.is_main:
        return
    rows: dict[str, Any] = {"real shots": [few_shot.images.read_raw(few_shot.rows(label)[:count]) for label in labels]}
    for name, store in stores.items():
        rows[name] = [read_pictures(store.paths(label, count)) for label in labels]
    run.log_figure("samples.png", figure_samples(rows, [data.classes[label] for label in labels], title))


def store_distances(
    run: Run,
    data: ClassificationData,
    clip: Clip,
    stores: dict[str, ImageStore],
    labels: Sequence[int],
    count: int,
) -> dict[str, np.ndarray]:
    """Distance of class-mean features to those of real pictures, for the first ``count`` pictures of each store."""
    split = data.val if data.val is not None else data.test
    rows = np.flatnonzero(np.isin(split.labels, list(labels)))
    place = np.searchsorted(np.asarray(labels), split.labels[rows])
    real = class_means(run, clip, SubsetImages(split.images, rows), place, len(labels))
    distances = {}
    for name, store in stores.items():
        files = [path for label in labels for path in store.paths(label, count)]
        of_files = np.repeat(np.arange(len(labels)), count)
        distances[name] = feature_distances(
            class_means(run, clip, file_source(clip, files), of_files, len(labels)), real
        )
    return distances


def _word(name: str) -> str:
    return name.replace(" ", "_")
